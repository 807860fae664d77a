"""The command line: see and change what was learned. Imported by the console script only."""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import reflect_middleware
from reflect_middleware import cli_files, cli_forget
from reflect_middleware.cli_files import MANY, full, reflection_id
from reflect_middleware.cli_migrate import migrate
from reflect_middleware.cli_open import named, opened, reported
from reflect_middleware.cli_practice import practice
from reflect_middleware.cli_reindex import following, reindex
from reflect_middleware.cli_view import View
from reflect_middleware.cli_worker import consolidate, worker
from reflect_middleware.errors import ConfigurationError, ReflectError
from reflect_middleware.reflection import Reflection
from reflect_middleware.types import EpisodeStatus, LessonStatus


class DemoNotFoundError(ReflectError, FileNotFoundError):
    """The demo is not part of the installed package."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"The demo lives in the source checkout, and there is no {place!r}."
            " Clone the repository and run `make demo` in it."
        )


class ListByDefault(TyperGroup):
    """A group whose `list` runs when no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front of bare options."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
app = typer.Typer(help="See and change what your agents learned from their runs.", **SETTINGS)
lessons = typer.Typer(
    cls=ListByDefault, help="Lessons: list (the default), show, add, edit, approve, retire, diff, undo."
)
episodes = typer.Typer(cls=ListByDefault, help="Recorded runs: list (the default), show, retry, purge.")
reflections = typer.Typer(cls=ListByDefault, help="How lessons were learned: list (the default), show.")
app.command()(worker)
app.command()(practice)
app.command()(migrate)
lessons.command("consolidate")(consolidate)
app.command()(reindex)
app.add_typer(lessons, name="lessons")
app.add_typer(episodes, name="episodes")
app.add_typer(reflections, name="reflections")

cli_files.register(app, lessons)
cli_forget.register(app, episodes)

Id = Annotated[str, typer.Argument(help="An id, or enough of its last characters.")]
When = Annotated[str, typer.Option("--when", help="The situation in which it applies.")]
Do = Annotated[str, typer.Option("--do", help="The advice.")]
Because = Annotated[str, typer.Option("--because", help="The evidence.")]
NewWhen = Annotated[str | None, typer.Option("--when", help="The situation in which it applies.")]
NewDo = Annotated[str | None, typer.Option("--do", help="The advice.")]
NewBecause = Annotated[str | None, typer.Option("--because", help="The evidence.")]
NewPinned = Annotated[bool | None, typer.Option("--pinned/--no-pinned", help="Keep it as it is, whatever is learned.")]
NewAlways = Annotated[bool | None, typer.Option("--always/--no-always", help="Show it to every run.")]
Always = Annotated[bool, typer.Option("--always", help="Show it to every run, whatever its task.")]
Pinned = Annotated[bool, typer.Option("--pinned", help="Keep it as it is, whatever is learned.")]
LessonsWith = Annotated[LessonStatus | None, typer.Option("--status", help="Only these.")]
EpisodesWith = Annotated[EpisodeStatus | None, typer.Option("--status", help="Only these.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest first.")]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON, add_help_option=False)
def demo(ctx: typer.Context) -> None:
    """Watch a small model learn the house rules of an expense desk (needs the source checkout)."""
    with reported(View()):
        raise typer.Exit(_demo(ctx.args))


@lessons.command("list")
@opened()
def list_lessons(reflection: Reflection, view: View, status: LessonsWith = None) -> None:
    """List the lessons."""
    view.lessons(reflection.lessons.list(status=status, namespace=view.namespace))


@lessons.command("search")
@opened()
def search_lessons(
    reflection: Reflection, view: View, text: str, k: Annotated[int, typer.Option("-k", min=1)] = 5
) -> None:
    """Find the lessons that fit a task."""
    view.nearest(reflection.lessons.search(text, k, namespace=view.namespace))


@lessons.command("show")
@opened()
def show_lesson(reflection: Reflection, view: View, id: Id) -> None:
    """Show one lesson in full."""
    view.lesson(reflection.lessons.get(_lesson(reflection, view, id)))


@lessons.command("add")
@opened(creates=True)
def add_lesson(
    reflection: Reflection,
    view: View,
    *,
    when: When,
    do: Do,
    because: Because = "",
    pinned: Pinned = False,
    always: Always = False,
) -> None:
    """Add a lesson by hand; it is active at once."""
    words = {"when": when, "do": do, "because": because}
    view.lesson(reflection.lessons.add(**words, pinned=pinned, always=always, namespace=view.namespace))


@lessons.command("edit")
@opened()
def edit_lesson(
    reflection: Reflection,
    view: View,
    id: Id,
    *,
    when: NewWhen = None,
    do: NewDo = None,
    because: NewBecause = None,
    pinned: NewPinned = None,
    always: NewAlways = None,
) -> None:
    """Change a lesson's words, pin it, or have it shown to every run."""
    found = _lesson(reflection, view, id)
    view.lesson(reflection.lessons.edit(found, when=when, do=do, because=because, pinned=pinned, always=always))


@lessons.command("approve")
@opened()
def approve_lesson(reflection: Reflection, view: View, id: Id) -> None:
    """Make a candidate active."""
    view.lesson(reflection.lessons.approve(_lesson(reflection, view, id)))


@lessons.command("retire")
@opened()
def retire_lesson(reflection: Reflection, view: View, id: Id) -> None:
    """Stop using a lesson; its history stays."""
    view.lesson(reflection.lessons.retire(_lesson(reflection, view, id)))


@lessons.command("history")
@opened()
def lesson_history(reflection: Reflection, view: View, id: Id) -> None:
    """Show all versions of a lesson."""
    view.versions(reflection.lessons.history(_lesson(reflection, view, id)))


@episodes.command("list")
@opened()
def list_episodes(
    reflection: Reflection,
    view: View,
    *,
    limit: Limit = 20,
    thread: Annotated[str | None, typer.Option("--thread", help="Only this thread's.")] = None,
    status: EpisodesWith = None,
    dead: Annotated[bool, typer.Option("--dead", help="Only the dead-lettered.")] = False,
) -> None:
    """List recorded runs, the newest first."""
    found = reflection.episodes.list(limit=limit, thread_id=thread, status=status, dead=dead, namespace=view.namespace)
    view.episodes(found)


@episodes.command("retry")
@opened()
def retry_episodes(
    reflection: Reflection,
    view: View,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, or enough of their last characters.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that are dead-lettered.")] = False,
) -> None:
    """Give dead-lettered episodes another chance."""
    if bool(ids) == everything:
        raise ConfigurationError("ids", ids or [], "some ids, or --all", "They are listed by: reflect episodes --dead")
    dead = [e.id for e in reflection.episodes.list(dead=True, limit=MANY, namespace=view.namespace)]
    again = reflection.episodes.retry(*(full(given, dead) for given in ids or ()), namespace=view.namespace)
    view.say(f"{len(again)} episodes wait for a reflection again.", retried=again)


@episodes.command("show")
@opened()
def show_episode(reflection: Reflection, view: View, id: Id) -> None:
    """Show one run: its steps, rewards and the lessons it was shown."""
    known = reflection.episodes.list(limit=MANY, namespace=view.namespace)
    view.episode(reflection.episodes.get(full(id, (episode.id for episode in known))))


@reflections.command("list")
@opened()
def list_reflections(reflection: Reflection, view: View, limit: Limit = 20) -> None:
    """List reflections, the newest first."""
    view.reflections(reflection.reflections.list(limit=limit, namespace=view.namespace))


@reflections.command("show")
@opened()
def show_reflection(reflection: Reflection, view: View, id: Id) -> None:
    """Show one reflection: what the model was asked, what it said, what became of it."""
    view.reflection(reflection.reflections.get(reflection_id(reflection, view, id)))


@app.command()
@opened()
def pause(reflection: Reflection, view: View) -> None:
    """Stop lessons and reflections in every process on this ledger, within seconds."""
    reflection.pause()
    view.say("Paused: runs get no lessons and are recorded only. The end of it: reflect resume", paused=True)


@app.command()
@opened()
def resume(reflection: Reflection, view: View) -> None:
    """The end of `pause`."""
    reflection.resume()
    view.say("Resumed.", paused=False)


@app.command()
@opened(opens=lambda target, values: following(target, values) if values["mend"] else named(target, creates=True))
def doctor(
    reflection: Reflection,
    view: View,
    *,
    mend: Annotated[bool, typer.Option("--mend", help="First make the store what the ledger says.")] = False,
) -> None:
    """Say how everything is doing and what to do (your own parts with --app); exit code 1 if there is a problem."""
    findings = reflection.doctor(mend=mend)
    view.findings(findings)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


def _demo(arguments: list[str]) -> int:
    examples = Path(reflect_middleware.__file__).parents[1] / "examples"
    if not (examples / "expense_desk").is_dir():
        raise DemoNotFoundError(str(examples))
    sys.path.insert(0, str(examples))
    return int(importlib.import_module("expense_desk.demo").main(arguments))


def _lesson(reflection: Reflection, view: View, given: str) -> str:
    return full(given, (lesson.id for lesson in reflection.lessons.list(namespace=view.namespace)))
