"""What the views of a Reflection have in common: the inner side, the namespace, and async twins of their methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from reflect_middleware.lanes import awaited
from reflect_middleware.signals import carried
from reflect_middleware.types import Namespace

if TYPE_CHECKING:
    from reflect_middleware.core import Core

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="HasCore")


class HasCore(Protocol):
    """Whatever has the inner side of a Reflection."""

    _core: Core


class View:
    """Base of the views."""

    def __init__(self, core: Core, own: Callable[[Namespace | None], Namespace]) -> None:
        self._core = core
        self._own = own


def twin(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The async form of a method: the same, on a thread of ours."""

    @functools.wraps(method)
    async def asynchronous(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        return await awaited(self._core.calls.submit(carried(lambda: method(self, *args, **kwargs))))

    asynchronous.__doc__ = f"Async twin of `{method.__name__}`."
    asynchronous.__name__ = f"a{method.__name__}"
    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", asynchronous)
