"""`reflect worker` and `reflect lessons consolidate`: the commands that need a model."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from reflect_middleware.cli_open import STORE, Target, folder, from_app, opened
from reflect_middleware.cli_view import View
from reflect_middleware.core import off
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.reflection import Reflection
from reflect_middleware.worker import POLL_SECONDS, Worker
from reflect_middleware.worker import worker as make

Once = Annotated[bool, typer.Option("--once", help="Do all that is due, then exit; code 1 if a reflection failed.")]
Parallel = Annotated[
    int, typer.Option("--parallel", min=1, help="Most reflections at once, each of another namespace.")
]
AtOnce = Annotated[int | None, typer.Option("--at-once", min=1, help="Most at once of all workers on the ledger.")]
PerMinute = Annotated[int | None, typer.Option("--per-minute", min=1, help="Most begun in 60 s by all workers.")]
Poll = Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between two looks at the ledger.")]
Model = Annotated[str | None, typer.Option("--model", help="The model that reflects, without --app.")]
Every = Annotated[int | None, typer.Option("--every", min=1, help="How many runs make a reflection due.  [default: 5]")]


def _reflection(target: Target, values: dict[str, Any]) -> Reflection:
    """The user's own Reflection, or one over a ledger with a model by name."""
    model, every = values["model"], values.get("every")
    if target.app:
        for name, value in (("--model", model), ("--every", every)):
            if value is not None:
                raise ConfigurationError(name, value, "nothing beside --app, whose Reflection says it")
        return from_app(target.app)
    if model is None:
        raise ConfigurationError(
            "--model", None, "a name such as openai:gpt-5-mini", "Or name your own Reflection: --app module:name."
        )
    settings: dict[str, Any] = {"every": every or 5, "store": STORE, "run": "external"}
    if target.ledger is not None:
        return Reflection(model, ledger=target.ledger, namespace=("worker",), **settings)
    return Reflection(model, path=folder(target, creates=False), **settings)


@opened(opens=_reflection)
def worker(
    reflection: Reflection,
    view: View,
    *,
    once: Once = False,
    parallel: Parallel = 1,
    at_once: AtOnce = None,
    per_minute: PerMinute = None,
    poll: Poll = POLL_SECONDS,
    model: Model = None,  # noqa: ARG001 - read where the Reflection is opened
    every: Every = None,  # noqa: ARG001
) -> None:
    """Do the reflections that are due, for all processes on the ledger; `*` in --namespace fits any part.

    Ends on SIGTERM or Ctrl-C when what it does is done, at the latest after exit_timeout; on the second one, at once.
    """
    if off():
        view.say("REFLECT=off: nothing is done.")
        return
    made = make(
        reflection._core,  # noqa: SLF001 - the command line is part of the house
        view.namespace,
        parallel=parallel,
        at_once=at_once,
        per_minute=per_minute,
        poll=poll,
        tell=None if once else view.report,
    )
    with _signals(made):
        reports = made.run(once=once)
    made.close()
    if once:
        view.reports(reports)
    if any(report.error for report in reports):
        raise typer.Exit(1)


@opened(opens=_reflection)
def consolidate(
    reflection: Reflection,
    view: View,
    *,
    model: Model = None,  # noqa: ARG001 - read where the Reflection is opened
) -> None:
    """Merge related lessons into fewer, more general ones, and let fade what is never used (needs --app or --model).

    What was merged or faded is retired: `reflect lessons approve` brings it back, `reflect lessons rollback` all of it.
    """
    if view.namespace is None and reflection._options.rule.plain is None:  # noqa: SLF001 - part of the house
        raise ConfigurationError("--namespace", None, "parts with commas between", "This Reflection has no plain one.")
    report = reflection.consolidate(namespace=view.namespace)
    view.consolidated(report)
    if report.error:
        raise typer.Exit(1)


@contextmanager
def _signals(made: Worker) -> Iterator[None]:
    """Let signals stop a worker."""
    before = {number: signal.signal(number, lambda *_: made.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
