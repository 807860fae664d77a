"""Run data as text: bounded, readable, and never failing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

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


_SIMPLE = frozenset({str, int, float, bool, type(None)})


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
    return _Plain().of(value, 0)


class _Plain:
    """One value on its way to JSON; bounded, because states may hold graphs of objects that lead back to themselves."""

    def __init__(self) -> None:
        self.left = PARTS
        self.path: set[int] = set()

    def of(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        self.left -= 1
        if depth > DEPTH or self.left < 0 or id(value) in self.path:
            return f"<{type(value).__name__} …>"
        self.path.add(id(value))
        try:
            return self._inside(value, depth + 1)
        finally:
            self.path.discard(id(value))

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, BaseMessage):
            return self._message(value, depth)
        if isinstance(value, Mapping):
            items = islice(value.items(), PARTS)
            return {str(key): item if type(item) in _SIMPLE else self.of(item, depth) for key, item in items}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [item if type(item) in _SIMPLE else self.of(item, depth) for item in islice(value, PARTS)]
        if isinstance(value, BaseModel):
            return {name: self.of(getattr(value, name), depth) for name in type(value).model_fields}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: self.of(getattr(value, f.name, None), depth) for f in dataclasses.fields(value)}
        return _repr(value)

    def _message(self, message: BaseMessage, depth: int) -> dict[str, Any]:
        fields = vars(message)  # asking a model for a field that it lacks is slow
        shown: dict[str, Any] = {"type": message.type, "content": self.of(message.content, depth)}
        for name in ("tool_calls", "name", "status", "tool_call_id"):
            if value := fields.get(name):
                shown[name] = self.of(value, depth)
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
        return clip(json.dumps(plain(value), ensure_ascii=False), limit)
    except Exception as error:  # noqa: BLE001 - a user's object may fail in any way when it is looked at
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def shortened(value: Any, limit: int, clean: Callable[[str], str]) -> str:
    """The value as text, first cleaned and then cut, so that a cut never hides half of what has to go."""
    return clip(clean(as_json(value, WHOLE_CHARS)), limit)


def fingerprint(value: Any) -> str:
    """A name for a run's output that the same output gives again."""
    text = json.dumps(plain(value), ensure_ascii=False, sort_keys=True)
    return "out:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def messages_in(value: Any) -> Iterator[BaseMessage]:
    """The messages in a state, a node's update or a Command."""
    if isinstance(value, BaseMessage):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, BaseMessage) or hasattr(item, "update"):
                yield from messages_in(item)
    elif not isinstance(value, dict) and hasattr(value, "goto") and hasattr(value, "update"):
        yield from messages_in(value.update)
    else:
        for item in _values(value):
            if isinstance(item, (BaseMessage, list, tuple)):
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


def message_line(message: BaseMessage) -> str:
    """One message as text: who, what, and the tools it calls."""
    body = text_of(message.content)
    calls = vars(message).get("tool_calls") or []
    asked = [f"{call['name']}({json.dumps(plain(call['args']), ensure_ascii=False)})" for call in calls]
    return f"{message.type}: " + "\n".join(part for part in (body, *asked) if part)


def _values(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, f.name, None) for f in dataclasses.fields(value)]
    return []


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
