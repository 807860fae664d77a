"""`Reflection.practice`: its arguments, checked before anything runs, and its two forms."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from reflect_middleware.core import off
from reflect_middleware.errors import ClosedError, ConfigurationError, WrapError
from reflect_middleware.render import fingerprint
from reflect_middleware.types import new_id
from reflect_middleware.wrap import LINK, Link, effective

if TYPE_CHECKING:
    import os

    from langchain_core.runnables import RunnableConfig

    from reflect_middleware.core import Core
    from reflect_middleware.practice import Course, Job
    from reflect_middleware.practice_report import PracticeProgress, PracticeReport

P = ParamSpec("P")
S = TypeVar("S", bound="Practising")
NAME_CHARS = 100


def _run(self: Practising, given: dict[str, Any], drive: Callable[[Course], None]) -> PracticeReport:
    from reflect_middleware.practice_bar import told

    with told(given["progress"]) as tell:
        course = self._course(given, tell)
        drive(course)
    return course.report()


async def _arun(self: Practising, given: dict[str, Any]) -> PracticeReport:
    from reflect_middleware.practice_bar import told
    from reflect_middleware.practice_drive import adrive, away

    with told(given["progress"]) as tell:
        course = await away(lambda: self._course(given, tell))
        await adrive(course, given["concurrency"])
    return await away(course.report)


def _twin(
    method: Callable[Concatenate[S, P], PracticeReport],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, PracticeReport]]:
    @functools.wraps(method)
    async def apractice(self: Any, *args: Any, **kwargs: Any) -> PracticeReport:
        bound = inspect.signature(method).bind(self, *args, **kwargs)
        bound.apply_defaults()
        return await _arun(self, {n: v for n, v in bound.arguments.items() if n != "self"})

    apractice.__name__ = "apractice"
    apractice.__doc__ = "Async twin of `practice`: the agent runs on the running event loop, by `ainvoke`."
    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, PracticeReport]]", apractice)


class Practising:
    """The part of a Reflection that practises."""

    _core: Core

    if TYPE_CHECKING:

        def wrap(self, graph: Any) -> Any:
            """The Reflection's own."""

    def practice(
        self,
        agent: Any,
        tasks: Iterable[Any] | str | os.PathLike[str],
        *,
        rollouts: int = 4,
        reward: Callable[..., Any] | None = None,
        epochs: int = 1,
        concurrency: int = 4,
        every: int = 1,
        held_out: float | Iterable[Any] | None = 0.2,
        name: str | None = None,
        max_episodes: int | None = None,
        max_tokens: int | None = None,
        max_minutes: float | None = None,
        progress: Callable[[PracticeProgress], Any] | bool | None = None,
        config: RunnableConfig | None = None,
        context: Any = None,
        use_async: bool | None = None,
    ) -> PracticeReport:
        """Run the agent on tasks, several times each, reflect on the rollouts of a task together, and measure it.

        The runs are real, with all that the agent's tools do. The first Ctrl-C lets what is under way come to its end
        and gives the report; a second one is raised.

        Args:
            agent: A compiled graph. One that this Reflection has wrapped is used as it is; others are wrapped.
            tasks: Texts, `Task` objects, dicts with `input` and perhaps `reference` and `key`, or graph inputs; or the
                path of a JSONL file of these. A text is `{"messages": text}` for a graph that has messages.
            rollouts: Runs of each task, at least 1, in each epoch and measurement.
            reward: Judges each run, as in `Reflection`; None for the agent's own, else the Reflection's.
            epochs: How often all tasks are gone through, at least 1.
            concurrency: Most runs at once, at least 1. An async-only graph runs on one event loop, others on threads.
            every: Tasks whose rollouts one reflection reads, at least 1. With 1 the next task profits at once; more
                tasks let the reflector see what they have in common.
            held_out: Share of the tasks, from 0 up to but not including 1, to measure with and not to practise on; it
                takes 10 tasks or more and a reward callable. Or a list of further tasks, or their file. None for none.
            name: Names the practice in the ledger: the same call with the same name goes on where an earlier one ended.
                None: a new one, named in the report.
            max_episodes: Most runs of the whole practice, measurements included; None: no limit.
            max_tokens: Most tokens of the whole practice, the agent's and the reflector's; None: no limit.
            max_minutes: Most minutes of this call; None: no limit. Of each budget, what the last measurement is
                expected to need is kept for it; what is under way at a limit is finished.
            progress: Called with a `PracticeProgress` after each step; None for a bar if standard error is a terminal,
                True for the bar anyway, False for silence.
            config: Of each run. With a checkpointer each run gets a thread of its own.
            context: Of each run.
            use_async: True: run the agent by `ainvoke`, on an event loop of its own, as agents with async tools need;
                None: if the graph is async only.

        Raises:
            ConfigurationError: If an argument or a task is not allowed, or nothing can be learned here.
            WrapError: If `agent` is no compiled graph, or another Reflection has wrapped it.
            LedgerError: If the ledger fails; the same call with the same name goes on later.
        """
        from reflect_middleware.practice_drive import drive

        given = {n: v for n, v in locals().items() if n not in ("self", "drive")}
        return _run(self, given, lambda course: drive(course, concurrency, use_async=use_async))

    apractice = _twin(practice)

    def _course(self, given: dict[str, Any], tell: Any) -> Course:
        """Check everything, wrap the agent, and set the practice up."""
        from reflect_middleware.practice import Course

        return Course(self._core, job_of(self._core, self.wrap, given, tell))


def job_of(core: Core, wrap: Callable[[Any], Any], given: dict[str, Any], tell: Any) -> Job:
    """What was asked for, checked.

    Raises:
        ConfigurationError: If an argument is not allowed.
        WrapError: If the agent cannot be used.
    """
    from reflect_middleware.practice import Job
    from reflect_middleware.practice_plan import Budget

    _check(given)
    _able(core)
    graph = _agent(core, wrap, given["agent"])
    link: Link = graph.__dict__[LINK]
    _has_namespace(link, graph, given["config"], given["context"])
    reward = given["reward"] or link.spec.reward or core.options.reward
    return Job(
        graph=graph,
        plan=_plan(graph, link.spec.agent, given, judged=callable(reward)),
        reward=reward if callable(reward) else None,
        budget=Budget(episodes=given["max_episodes"], tokens=given["max_tokens"], minutes=given["max_minutes"]),
        config=dict(given["config"] or {}),
        context=given["context"],
        tell=tell,
    )


def _plan(graph: Any, agent: str, given: dict[str, Any], *, judged: bool) -> Any:
    from reflect_middleware.practice_plan import Plan, apart, split
    from reflect_middleware.practice_tasks import read_tasks

    texts = _texts(graph)
    tasks, held_out = read_tasks(given["tasks"], texts=texts), given["held_out"]
    share = isinstance(held_out, (int, float)) or held_out is None
    if share:
        train, out = split(tasks, held_out or 0.0) if judged else (tasks, ())
    else:
        train, out = tasks, read_tasks(held_out, texts=texts, what="held_out")
        apart(train, out)
    return Plan(
        name=given["name"] or new_id()[:8],
        agent=agent,
        train=train,
        held_out=out,
        rollouts=given["rollouts"],
        epochs=given["epochs"],
        every=given["every"],
        marks={task.key or "": fingerprint(task.input) for task in (*train, *out)},
    )


def _check(given: dict[str, Any]) -> None:
    for name in ("rollouts", "epochs", "concurrency", "every"):
        _whole(name, given[name])
    for name in ("max_episodes", "max_tokens"):
        if given[name] is not None:
            _whole(name, given[name])
    minutes = given["max_minutes"]
    if minutes is not None and not (_number(minutes) and minutes > 0):
        raise ConfigurationError("max_minutes", minutes, "minutes, a number above 0, or None")
    if given["reward"] is not None and not callable(given["reward"]):
        raise ConfigurationError("reward", given["reward"], "a callable or None")
    share, name, progress = given["held_out"], given["name"], given["progress"]
    if isinstance(share, (int, float)) and not (_number(share) and 0 <= share < 1):
        raise ConfigurationError(
            "held_out", share, "a share from 0 (none) up to but not including 1, or a list of tasks"
        )
    if name is not None and not (isinstance(name, str) and 0 < len(name.strip()) <= NAME_CHARS):
        raise ConfigurationError("name", name, f"a text of 1 to {NAME_CHARS} characters, or None")
    if given["use_async"] not in (None, True, False):
        raise ConfigurationError("use_async", given["use_async"], "True, False or None")
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise ConfigurationError("progress", progress, "a callable, True, False or None")


def _able(core: Core) -> None:
    """See that what is practised can be learned here.

    Raises:
        ConfigurationError: If not.
        ClosedError: If the Reflection is closed.
    """
    from reflect_middleware.learn import no_model

    if core.closed:
        raise ClosedError("This Reflection is closed; build a new one.")
    if off():
        raise ConfigurationError("REFLECT", "off", "unset, for a practice")
    for name in ("learn", "use_lessons"):
        if not getattr(core.options, name):
            raise ConfigurationError(name, False, "True, for a practice")  # noqa: FBT003 - the value that is refused
    if not core.parts.learner.able:
        raise no_model()
    if core.parts.ledger.lessons.paused():
        raise ConfigurationError("pause", "on", "off, for a practice", "`reflection.resume()` ends it.")


def _agent(core: Core, wrap: Callable[[Any], Any], agent: Any) -> Any:
    link = getattr(agent, "__dict__", {}).get(LINK)
    if link is None:
        return wrap(agent)
    if link.core is not core:
        raise WrapError(
            f"The agent {link.spec.agent!r} is wrapped by another Reflection; allowed: a graph that is not wrapped, or"
            " one that this Reflection has wrapped. Call `practice` of the one that has."
        )
    return agent


def _has_namespace(link: Link, graph: Any, config: Any, context: Any) -> None:
    from reflect_middleware.namespaces import principal_of

    core, spec = link.core, link.spec
    merged = effective(getattr(graph, "config", None), config)
    principal = principal_of(merged, overrides=core.options.run_overrides)
    namespace, why = spec.rule.resolve(merged, context, spec.agent, principal)
    if namespace is None:
        raise ConfigurationError("config", config, "one that fills the namespace", f"Of these runs: {why}.")


def _texts(graph: Any) -> bool | None:
    """What a text among the tasks is: a message (True), the graph's input as it is (False), or nothing it can read."""
    channels = getattr(graph, "channels", None)
    if channels is None or "messages" in channels:
        return True
    return None if hasattr(graph, "builder") else False


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(name, value, "a whole number from 1 on")
