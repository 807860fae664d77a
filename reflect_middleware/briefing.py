"""What an agent was told anyway in its model calls: its own system text, and what its tools say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.messages import SystemMessage

from reflect_middleware.boundary import text_of
from reflect_middleware.render import STEP_CHARS, clip, is_a

if TYPE_CHECKING:
    from reflect_middleware.record import Noted

TOOLS = 64
"""Most tools of one call that are looked at."""


def briefing(steps: Iterable[Noted], block: str, clean: Callable[[str], str]) -> str:
    """All of it as one text, each piece once, lessons left out.

    Args:
        steps: What was noted of a run.
        block: The lessons that were merged into its system text; empty for none.
        clean: What every text passes through.
    """
    told: dict[str, None] = {}
    tools: dict[str, None] = {}
    known: set[tuple[Any, ...]] = set()
    for step in steps:
        if step.kind == "model" and isinstance(step.input, list):
            told.update((_without(text_of(m.content), block), None) for m in step.input if is_a(m, SystemMessage))
            offered = [_about(tool) for tool in (step.tools if isinstance(step.tools, list) else ())[:TOOLS]]
            names = tuple(str(about.get("name")) for about in offered)
            if names not in known:  # an agent offers the same tools in each of its calls
                known.add(names)
                tools.update((text, None) for about in offered for text in _documents(about))
    parts = ("\n".join(filter(None, texts)).strip() for texts in (told, tools))
    return "\n".join(clip(clean(part), STEP_CHARS) for part in parts if part)


def _without(text: str, block: str) -> str:
    return (text.replace(block, "") if block else text).strip()


def _about(tool: Any) -> Mapping[str, Any]:
    """What a tool says of itself, in the forms of the providers; nothing in any other form."""
    inner = tool.get("function") if isinstance(tool, Mapping) else None
    about = inner if isinstance(inner, Mapping) else tool
    return about if isinstance(about, Mapping) else {}


def _documents(about: Mapping[str, Any]) -> Iterator[str]:
    """`name: what it does` of a tool, and the same of its parameters."""
    yield _line(about.get("name"), about.get("description"))
    schema = about.get("parameters") or about.get("input_schema")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    for name, field in properties.items() if isinstance(properties, Mapping) else ():
        yield _line(name, field.get("description") if isinstance(field, Mapping) else None)


def _line(name: Any, said: Any) -> str:
    return f"{name}: {said}" if isinstance(said, str) and said else ""
