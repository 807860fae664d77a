"""`reflect practice`: the command that lets an agent practise on a file of tasks."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reflect_middleware.cli_open import STORE, Target, folder, from_app, imported, opened
from reflect_middleware.cli_view import View
from reflect_middleware.errors import ConfigurationError
from reflect_middleware.reflection import Reflection
from reflect_middleware.wrap import LINK

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell expects it."""
AGENT = "module:name, such as 'my_agent:agent', where the name is a compiled graph"
REWARD = "module:name, such as 'my_agent:reward', where the name is a callable"

Agent = Annotated[str, typer.Argument(help="Your compiled graph, as module:name.")]
Tasks = Annotated[Path, typer.Argument(help="A JSONL file: a text, a graph input, or input/reference/key a line.")]
RewardOption = Annotated[str | None, typer.Option("--reward", help="Your callable that judges a run, as module:name.")]
Rollouts = Annotated[int, typer.Option("--rollouts", min=1, help="Runs of each task.")]
Epochs = Annotated[int, typer.Option("--epochs", min=1, help="How often all tasks are gone through.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Most runs at once.")]
Every = Annotated[int, typer.Option("--every", min=1, help="Tasks whose runs one reflection reads.")]
HeldOut = Annotated[str, typer.Option("--held-out", help="Share of the tasks to measure with, or a file of others.")]
Name = Annotated[str | None, typer.Option("--name", help="Goes on with the practice of this name, if there is one.")]
MaxEpisodes = Annotated[int | None, typer.Option("--max-episodes", min=1, help="Most runs, of all calls.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Most tokens, of all calls.")]
MaxMinutes = Annotated[float | None, typer.Option("--max-minutes", help="Most minutes, of this call.")]
Png = Annotated[Path | None, typer.Option("--png", help="Draw the curve into this file (extra: charts).")]
Async = Annotated[bool, typer.Option("--async", help="Run the agent on an event loop, by ainvoke.")]
Model = Annotated[str | None, typer.Option("--model", help="The model that reflects, without --app.")]


def _reflection(target: Target, values: dict[str, Any]) -> Reflection:
    """The user's own Reflection: the one that is named, or the one that has wrapped the agent; else one by a model."""
    agent, model = imported("agent", values["agent"], AGENT), values["model"]
    link = getattr(agent, "__dict__", {}).get(LINK)
    if (target.app or link is not None) and model is not None:
        raise ConfigurationError("--model", model, "nothing beside a Reflection of your own, which says it")
    if target.app:
        return from_app(target.app)
    if link is not None:
        module = vars(sys.modules[values["agent"].partition(":")[0]])
        for found in module.values():
            if isinstance(found, Reflection) and found._core is link.core:  # noqa: SLF001 - part of the house
                return found
        raise ConfigurationError("--app", None, "module:name of the Reflection that has wrapped the agent")
    if model is None:
        raise ConfigurationError(
            "--model", None, "a name such as openai:gpt-5-mini", "Or name your own Reflection: --app module:name."
        )
    settings: dict[str, Any] = {"store": STORE, "run": "external", "namespace": target.parts}
    if target.ledger is None:
        return Reflection(model, path=folder(target, creates=True), **settings)
    return Reflection(model, ledger=target.ledger, **settings)


@opened(opens=_reflection)
def practice(
    reflection: Reflection,
    view: View,
    *,
    agent: Agent,
    tasks: Tasks,
    reward: RewardOption = None,
    rollouts: Rollouts = 4,
    epochs: Epochs = 1,
    concurrency: Concurrency = 4,
    every: Every = 1,
    held_out: HeldOut = "0.2",
    name: Name = None,
    max_episodes: MaxEpisodes = None,
    max_tokens: MaxTokens = None,
    max_minutes: MaxMinutes = None,
    png: Png = None,
    use_async: Async = False,
    model: Model = None,  # noqa: ARG001 - read where the Reflection is opened
) -> None:
    """Let an agent practise on tasks, and measure what it learned: runs, a reflection on those of each task, a report.

    Exit code 0: done, or a limit was reached; 1: an error, or reflections failed; 130: Ctrl-C.
    """
    graph = imported("agent", agent, AGENT)
    settings: dict[str, Any] = {
        "reward": imported("--reward", reward, REWARD) if reward else None,
        "rollouts": rollouts,
        "epochs": epochs,
        "concurrency": concurrency,
        "every": every,
        "held_out": _held_out(held_out),
        "name": name,
        "max_episodes": max_episodes,
        "max_tokens": max_tokens,
        "max_minutes": max_minutes,
        "use_async": use_async or None,
    }
    report = reflection.practice(graph, tasks, **settings)
    if png is not None:
        report.save(png)
    typer.echo(report.model_dump_json(indent=2) if view.as_json else str(report))
    if report.stopped in ("interrupted", "failed"):
        raise typer.Exit(INTERRUPTED if report.stopped == "interrupted" else 1)


def _held_out(given: str) -> float | Path:
    """A share, or the path of a file of tasks."""
    try:
        return float(given)
    except ValueError:
        return Path(given)
