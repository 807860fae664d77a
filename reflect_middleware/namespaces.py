"""Namespaces: plain tuples, templates filled from a run, or a callable of the user's."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reflect_middleware.errors import TemplateError
from reflect_middleware.private import RUNTIME
from reflect_middleware.types import Namespace

VERIFIED = "langgraph_auth_user_id"
"""Where a LangGraph server puts the user that it has verified; empty if it verifies none."""
NamespaceFn = Callable[[Any, Any], Namespace]
ALLOWED = 'a non-empty tuple of strings, whose parts may hold fields like "{user_id}"'


READ = 'a list of namespaces, such as [("acme", "handbook"), ("team", "{team}")]'


@dataclass(frozen=True)
class NamespaceRule:
    """How a run's namespace is found."""

    parts: Namespace | NamespaceFn

    @cached_property
    def plain(self) -> Namespace | None:
        """The namespace itself if no run is needed to know it."""
        if callable(self.parts) or any(_fields(part) for part in self.parts):
            return None
        return tuple(part.format() for part in self.parts)

    def fits(self, namespace: Namespace) -> bool:
        """Whether a run may have this namespace, as far as the rule itself tells; a callable tells nothing."""
        if callable(self.parts) or len(namespace) != len(self.parts):
            return False
        return all(
            re.fullmatch(_pattern(part), text, re.DOTALL) for part, text in zip(self.parts, namespace, strict=True)
        )

    def resolve(
        self, config: Mapping[str, Any], context: Any, agent: str, principal: str = ""
    ) -> tuple[Namespace | None, str]:
        """The run's namespace, or None and the reason why there is none; `principal` as `principal_of` gives it."""
        if callable(self.parts):
            found = self.parts(config, context)
            if _valid(found):
                return tuple(found), ""
            return None, f"the namespace callable returned {found!r}; expected {ALLOWED}"
        if (fixed := self.plain) is not None:
            return fixed, ""
        values = _values(config, context) | {"agent": agent}
        if principal:
            values["principal"] = principal
        missing = [name for part in self.parts for name in _fields(part) if values.get(name) in (None, "")]
        if missing:
            return None, f"the run has no value for {', '.join(missing)}"
        return tuple(part.format_map(values) for part in self.parts), ""


def rule(parts: Any) -> NamespaceRule:
    """Check a `namespace=` argument.

    Raises:
        TemplateError: If it is neither a callable nor a tuple of readable templates.
    """
    if callable(parts):
        return NamespaceRule(parts)
    if isinstance(parts, str) or not _valid(parts):
        raise TemplateError("namespace", parts, ALLOWED, 'Write namespace=("acme", "{user_id}").')
    for part in parts:
        try:
            names = _fields(part)
        except ValueError as error:
            raise TemplateError("namespace part", part, ALLOWED, f"It cannot be read: {error}.") from error
        if bad := [name for name in names if not name.isidentifier()]:
            raise TemplateError("namespace field", bad[0], "a plain name such as {user_id}")
    return NamespaceRule(tuple(parts))


def rules(read: Any) -> tuple[NamespaceRule, ...]:
    """Check a `read=` argument.

    Raises:
        TemplateError: If it is no list of namespaces.
    """
    if not isinstance(read, (list, tuple)):
        raise TemplateError("read", read, READ, 'Write read=[("acme", "handbook")].')
    for parts in read:
        if isinstance(parts, str):
            raise TemplateError("read", read, READ, f"One namespace is a list of one: read=[({parts!r}, …)].")
    return tuple(dict.fromkeys(rule(parts) for parts in read))


def principal_of(config: Mapping[str, Any], *, overrides: bool) -> str:
    """For whom a run is: the server's verified user, else, where single runs may say so, the one that they name."""
    configurable = config.get("configurable") or {}
    own = configurable.get("reflect") if overrides else None
    named = own.get("principal") if isinstance(own, Mapping) else None
    return str(configurable.get(VERIFIED) or named or "")


def to_key(namespace: Namespace) -> str:
    """The namespace as one string, one to one."""
    return json.dumps(list(namespace), ensure_ascii=False)


def from_key(key: str) -> Namespace:
    """The inverse of `to_key`."""
    return tuple(json.loads(key))


def _valid(parts: Any) -> bool:
    return isinstance(parts, (tuple, list)) and len(parts) > 0 and all(isinstance(p, str) and p for p in parts)


def _pattern(template: str) -> str:
    parts = string.Formatter().parse(template)
    return "".join(re.escape(text) + (".+" if name is not None else "") for text, name, _, _ in parts)


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _values(config: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Template values: the run's context wins over configurable, except for who the server says the user is.

    A server writes that into configurable, last; the context that it passes on is the client's own text.
    """
    configurable = config.get("configurable") or {}
    runtime = configurable.get(RUNTIME)
    values: dict[str, Any] = {}
    for source in (configurable, _mapping(getattr(runtime, "context", None)), _mapping(context)):
        values.update({k: v for k, v in source.items() if isinstance(v, (str, int))})
    return values | {VERIFIED: configurable.get(VERIFIED)}


def _mapping(context: Any) -> Mapping[str, Any]:
    if isinstance(context, Mapping):
        return context
    if hasattr(context, "model_dump"):
        return {name: getattr(context, name) for name in type(context).model_fields}
    return getattr(context, "__dict__", {}) or {
        name: getattr(context, name) for name in getattr(type(context), "__slots__", ()) if hasattr(context, name)
    }
