"""Run data as text: bounded, readable, and never failing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeGuard, TypeVar

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, convert_to_messages
from pydantic import BaseModel

from reflect_middleware.boundary import text_of

STEP_CHARS = 4_000
"""Most characters kept of one step's input or output."""
VALUE_CHARS = 16_000
"""Most characters kept of an episode's input or output."""
TASK_CHARS = 2_000
"""Most characters of a task's text."""
WHOLE_CHARS = 400_000
"""Most characters of one value that are looked at."""
DEPTH = 12
"""How far into one value we look."""
PARTS = 20_000
"""Most items of one value that are looked at."""


T = TypeVar("T")
_SIMPLE = frozenset({str, int, float, bool, type(None)})
_text = json.JSONEncoder(ensure_ascii=False).encode
_sorted_text = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
_derives: Callable[[type, type], bool] = lru_cache(maxsize=512)(issubclass)


def is_a(value: Any, kind: type[T]) -> TypeGuard[T]:
    """`isinstance`, remembered by class: pydantic's models and abstract classes make that a slow question."""
    return _derives(value.__class__, kind)


def clip(text: str, limit: int) -> str:
    """The text, its middle cut out and the cut named where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    mark = f" …[{len(text) - limit} characters cut]… "
    head = max(0, limit - len(mark)) * 2 // 3
    tail = max(0, limit - len(mark) - head)
    return text[:head] + mark + (text[-tail:] if tail else "")


def plain(value: Any) -> Any:
    """The value in terms of JSON; objects that have no such form become their `repr`, and loops end."""
    return value if type(value) in _SIMPLE else _Plain().of(value, 0)


class _Plain:
    """One value on its way to JSON; bounded, because states may hold graphs of objects that lead back to themselves."""

    def __init__(self) -> None:
        self.left = PARTS
        self.path: set[int] = set()

    def of(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        self.left -= 1
        name = id(value)
        if depth > DEPTH or self.left < 0 or name in self.path:
            return f"<{type(value).__name__} …>"
        self.path.add(name)
        try:
            return self._inside(value, depth + 1)
        finally:
            self.path.discard(name)

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, (list, tuple, set, frozenset)):
            return [item if type(item) in _SIMPLE else self.of(item, depth) for item in islice(value, PARTS)]
        if type(value) is dict or _derives(value.__class__, Mapping):
            items = islice(value.items(), PARTS)
            return {str(key): item if type(item) in _SIMPLE else self.of(item, depth) for key, item in items}
        if is_a(value, BaseMessage):
            return self._message(value, depth)
        if is_a(value, BaseModel):
            return {name: self.of(getattr(value, name), depth) for name in type(value).model_fields}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: self.of(getattr(value, f.name, None), depth) for f in dataclasses.fields(value)}
        return _repr(value)

    def _message(self, message: BaseMessage, depth: int) -> dict[str, Any]:
        fields = vars(message)  # asking a model for a field that it lacks is slow
        content = message.content
        shown: dict[str, Any] = {
            "type": message.type,
            "content": content if type(content) is str else self.of(content, depth),
        }
        for name in ("tool_calls", "name", "status", "tool_call_id"):
            if value := fields.get(name):
                shown[name] = value if type(value) is str else self.of(value, depth)
        return shown


def _repr(value: Any) -> str:
    try:
        return repr(value)[:2_000]
    except Exception as error:  # noqa: BLE001 - a user's object may fail in any way when it is looked at
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def as_json(value: Any, limit: int) -> str:
    """The value as JSON text of at most `limit` characters; a plain string stays as it is."""
    if isinstance(value, str):
        return clip(value, limit)
    try:
        return clip(_text(plain(value)), limit)
    except Exception as error:  # noqa: BLE001 - a user's object may fail in any way when it is looked at
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def shortened(value: Any, limit: int, clean: Callable[[str], str]) -> str:
    """The value as text, first cleaned and then cut, so that a cut never hides half of what has to go."""
    return clip(clean(as_json(value, WHOLE_CHARS)), limit)


def shortened_and_named(value: Any, limit: int, clean: Callable[[str], str]) -> tuple[str, str]:
    """A run's output as `shortened`, and its `fingerprint`; that is empty where JSON cannot hold it."""
    try:
        form = plain(value)  # made once for both: it may be long
        text, name = value if isinstance(value, str) else _text(form), _named(form)
    except Exception:  # noqa: BLE001 - a user's object may fail in any way when it is looked at
        return shortened(value, limit, clean), ""
    return clip(clean(clip(text, WHOLE_CHARS)), limit), name


def fingerprint(value: Any) -> str:
    """A name for a run's output that the same output gives again."""
    return _named(plain(value))


def _named(form: Any) -> str:
    return "out:" + hashlib.sha256(_sorted_text(form).encode("utf-8", "surrogatepass")).hexdigest()


def messages_in(value: Any) -> Iterator[BaseMessage]:
    """The messages in a state, a node's update or a Command."""
    if is_a(value, BaseMessage):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if is_a(item, BaseMessage):
                yield item
            elif hasattr(item, "update"):
                yield from messages_in(item)
    elif not isinstance(value, dict) and hasattr(value, "goto") and hasattr(value, "update"):
        yield from messages_in(value.update)
    else:
        for item in _values(value):
            if isinstance(item, (list, tuple)) or is_a(item, BaseMessage):
                yield from messages_in(item)


def task_text(graph_input: Any) -> str:
    """What a run is asked to do: the last turns of its messages, else its input as JSON."""
    turns = _turns(graph_input)
    if turns:
        return clip("\n".join(turns[-3:]), TASK_CHARS)
    return as_json(graph_input, TASK_CHARS) if graph_input is not None else ""


def _turns(graph_input: Any) -> list[str]:
    value = _field(graph_input, "messages") if not isinstance(graph_input, (str, list)) else graph_input
    if value is None:
        return []
    if isinstance(value, str):
        return [text] if (text := value.strip()) else []
    try:
        messages = convert_to_messages(value if isinstance(value, list) else [value])
    except Exception:  # noqa: BLE001 - not messages after all
        return []
    turns = [(m, text_of(m.content).strip()) for m in messages if not isinstance(m, SystemMessage)]
    said = [text for message, text in turns if isinstance(message, (HumanMessage, AIMessage)) and text]
    return said or [text for _, text in turns if text]


def last_said(graph_input: Any) -> str:
    """What the user says to a run: the last of its messages, if that is the user's; else empty."""
    value = _field(graph_input, "messages") if not isinstance(graph_input, (str, list)) else graph_input
    if isinstance(value, str):
        return value
    last = value[-1:] if isinstance(value, list) else [] if value is None else [value]
    try:
        return next((text_of(m.content) for m in convert_to_messages(last) if isinstance(m, HumanMessage)), "")
    except Exception:  # noqa: BLE001 - not messages after all
        return ""


def message_line(message: BaseMessage) -> str:
    """One message as text: who, what, and the tools it calls."""
    body = text_of(message.content)
    calls = vars(message).get("tool_calls") or []
    asked = [f"{call['name']}({_text(plain(call['args']))})" for call in calls]
    return f"{message.type}: " + "\n".join(part for part in (body, *asked) if part)


def _values(value: Any) -> Sequence[Any]:
    if _derives(value.__class__, Mapping):
        return list(value.values())
    if is_a(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name, None) for f in dataclasses.fields(value)]
    return []


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
