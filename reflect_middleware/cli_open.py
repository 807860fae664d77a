"""How a command finds its Reflection: the options that all commands share, and what becomes of errors."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from reflect_middleware.cli_view import View
from reflect_middleware.errors import ConfigurationError, ReflectError
from reflect_middleware.reflection import Reflection
from reflect_middleware.types import Namespace

DEFAULT_PATH = ".reflect"
STORE = "exact"
"""Opens no store: that would take its lock away from a running agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which lessons and episodes a command is about."""

    app: str | None
    path: Path | None
    ledger: str | None
    namespace: str | None

    @property
    def parts(self) -> Namespace | None:
        """The namespace as a tuple; None if none was given."""
        return tuple(part.strip() for part in self.namespace.split(",")) if self.namespace else None


OPTIONS = {
    "app": Annotated[
        str | None, typer.Option("--app", help="Your own Reflection, as module:name.", show_default=False)
    ],
    "path": Annotated[
        Path | None, typer.Option("--path", help=f"Its folder.  [default: {DEFAULT_PATH}]", show_default=False)
    ],
    "ledger": Annotated[
        str | None, typer.Option("--ledger", help="A shared ledger's SQLAlchemy URL.", show_default=False)
    ],
    "namespace": Annotated[
        str | None, typer.Option("--namespace", help="Parts with commas between: acme,user-7.", show_default=False)
    ],
}
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def opened(
    *, creates: bool = False, opens: Callable[[Target, dict[str, Any]], Reflection] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function `(reflection, view, …)`: adds the shared options, opens, reports errors, closes.

    Args:
        creates: Whether the command may make a new ledger where there is none.
        opens: Opens the Reflection in another way, which the command's own arguments may decide.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            target = Target(**{name: values.pop(name) for name in OPTIONS})
            view = View(as_json=values.pop("as_json"), namespace=target.parts)
            with reported(view), _reflection(target, values, creates=creates, opens=opens) as reflection:
                function(reflection, view, **values)

        _describe(command, function)
        return command

    return decorate


@contextmanager
def reported(view: View) -> Iterator[None]:
    """Turn our own errors into one line and exit code 1."""
    try:
        yield
    except ReflectError as error:
        view.fail(str(error))
        raise typer.Exit(1) from error


def _describe(command: Callable[..., None], function: Callable[..., Any]) -> None:
    """Give `command` the parameters of `function` after the first two, and the shared options."""
    own = list(inspect.signature(function).parameters.values())[2:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in [*((n, a, None) for n, a in OPTIONS.items()), ("as_json", JSON, False)]
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]


@contextmanager
def _reflection(
    target: Target,
    values: dict[str, Any],
    *,
    creates: bool,
    opens: Callable[[Target, dict[str, Any]], Reflection] | None,
) -> Iterator[Reflection]:
    reflection = named(target, creates=creates) if opens is None else opens(target, values)
    try:
        yield reflection
    finally:
        reflection.close()


def named(target: Target, *, creates: bool) -> Reflection:
    """The user's own Reflection, or one over a ledger that opens no store."""
    return from_app(target.app) if target.app else _from_place(target, creates=creates)


def from_app(app: str) -> Reflection:
    """The Reflection of a user's own module, named as module:name.

    Raises:
        ConfigurationError: If there is none.
    """
    allowed = "module:name, such as 'my_agent:reflection', where the name is a Reflection"
    found = imported("--app", app, allowed)
    if not isinstance(found, Reflection):
        raise ConfigurationError("--app", app, allowed, f"It is a {type(found).__name__}.")
    return found


def imported(option: str, given: str, allowed: str) -> Any:
    """What a user's own module has under a name, written as module:name.

    Raises:
        ConfigurationError: If there is no such thing.
    """
    module, _, name = given.partition(":")
    if not module or not name:
        raise ConfigurationError(option, given, allowed)
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module may raise anything when it is imported
        raise ConfigurationError(
            option, given, allowed, f"Importing it failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _from_place(target: Target, *, creates: bool) -> Reflection:
    if target.ledger is not None:
        if target.parts is None:
            raise ConfigurationError("--namespace", None, "parts with commas between", "A shared ledger needs one.")
        return Reflection(ledger=target.ledger, namespace=target.parts, store=STORE)
    return Reflection(path=folder(target, creates=creates), namespace=target.parts, store=STORE)


def folder(target: Target, *, creates: bool) -> str:
    """The ledger's folder.

    Raises:
        ConfigurationError: If there is no ledger in it, and the command may not make one.
    """
    path = _folder(target.path)
    if not creates and not (path / "ledger.db").is_file():
        raise ConfigurationError(
            "--path",
            str(path),
            "a folder with a ledger.db",
            "Runs make one; or name another place: --path, --ledger, --app.",
        )
    return str(path)


def _folder(given: Path | None) -> Path:
    environment = os.environ.get("REFLECT_PATH")
    if environment and given is not None and given.absolute() != Path(environment).absolute():
        raise ConfigurationError("--path", str(given), f"REFLECT_PATH, which is {environment!r}", "Unset one of them.")
    return (given or Path(environment or DEFAULT_PATH)).expanduser().absolute()
