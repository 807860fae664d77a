"""Where lessons enter: the message list of each model call of the active run, merged into its one system message.

While no run of ours is active, the hook only reads one context variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from threading import Lock
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import ChatPromptValue, PromptValue

from reflect_middleware import hooks

if TYPE_CHECKING:
    from reflect_middleware.session import Session

active: ContextVar[Session | None] = ContextVar("reflect_active", default=None)
"""The session whose graph is running here."""
_muted: ContextVar[bool] = ContextVar("reflect_muted", default=False)
_installing = Lock()


@contextlib.contextmanager
def no_lessons() -> Iterator[None]:
    """Model calls inside this block get no lessons."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


def leave(token: Token[Session | None] | None) -> None:
    """End the block that `active.set` began."""
    if token is None:
        return
    try:  # not `suppress`: this runs for every chunk
        active.reset(token)
    except ValueError:  # a run that the garbage collector ends, in another context
        return


def muted() -> bool:
    """Whether a `no_lessons` block is open here."""
    return _muted.get()


def get_lessons() -> str:
    """The lesson block of the run that this code is part of; empty outside of one.

    For raw provider SDK calls, and for prompts with a place of their own for it: `prompt.partial(lessons=get_lessons)`.
    A message that holds the block gets no second one.
    """
    session = session_here()
    return "" if session is None or muted() else session.block


def get_episode_id() -> str | None:
    """The id of the episode that this code (a node, a tool) is part of; None outside of one."""
    session = session_here()
    return None if session is None else session.episode_id


def session_here() -> Session | None:
    """The session of the innermost run that this code is part of, whether wrapped or followed by a middleware."""
    return next((session for find in finders if (session := find()) is not None), None) or active.get()


finders: list[Callable[[], Session | None]] = []
"""Further ways to know the session; the middleware adds its own."""


def install() -> None:
    """Hook the model boundary, once per process."""
    with _installing:
        hooks.at_every_model_call(_wanted, _inject)


def _wanted() -> bool:
    session = active.get()
    return session is not None and bool(session.block) and not _muted.get()


def merge(messages: Sequence[BaseMessage], block: str) -> list[BaseMessage]:
    """The messages with `block` at the end of the first system message, or of a new one in front.

    Where it stands already, put in by hand with `get_lessons`, they are left as they are.
    """
    if holds(messages, block):
        return list(messages)
    for index, message in enumerate(messages):
        if isinstance(message, SystemMessage):
            merged = message.model_copy(update={"content": extend(message.content, block)})
            return [*messages[:index], merged, *messages[index + 1 :]]
    return [SystemMessage(block), *messages]


def holds(messages: Sequence[BaseMessage], block: str) -> bool:
    """Whether the block stands in a system or human message."""
    return any(block in text_of(m.content) for m in messages if isinstance(m, (SystemMessage, HumanMessage)))


def extend(content: str | list[Any], block: str) -> str | list[Any]:
    """System content with the block behind it; plain text stays plain text."""
    if isinstance(content, str):
        return f"{content}\n\n{block}" if content else block
    return [*content, {"type": "text", "text": block}]


def text_of(content: str | list[Any]) -> str:
    """The text in a message's content."""
    if isinstance(content, str):
        return content
    known = (part for part in content if isinstance(part, (str, dict)))
    return "\n".join(str(part if isinstance(part, str) else part.get("text", "")) for part in known)


def _inject(value: PromptValue, config: Mapping[str, Any]) -> PromptValue:
    session = active.get()
    if session is None:
        return value
    try:
        if session_here() is not session or not session.wants_lessons(config):
            return value
        return ChatPromptValue(messages=merge(value.to_messages(), session.block))
    except Exception as error:  # noqa: BLE001 - boundary to the user's run
        session.core.failed("inject", error)
        return value
