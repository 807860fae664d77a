"""The one object that users hold: it ties retrieval, recording, reflection and the ledger together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from reflect_middleware import wrap as wrapping
from reflect_middleware.core import Core, off, tracks
from reflect_middleware.errors import ConfigurationError, MissingExtraError, TemplateError
from reflect_middleware.freezing import Freezing
from reflect_middleware.giving import give
from reflect_middleware.lanes import awaited, once
from reflect_middleware.namespaces import ALLOWED, NamespaceFn, rule, rules
from reflect_middleware.node import reflect_node
from reflect_middleware.operating import Operating
from reflect_middleware.options import DEFAULT_STORE, options
from reflect_middleware.practising import Practising
from reflect_middleware.registry import check_embedder, check_store
from reflect_middleware.reward import from_score, unit
from reflect_middleware.session import Session, Spec
from reflect_middleware.types import Namespace, Preview, ReflectionReport, Reward
from reflect_middleware.viewing import twin
from reflect_middleware.views import Episodes, Lessons, Reflections

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableConfig, RunnableLambda

    from reflect_middleware.cadence import Cadence
    from reflect_middleware.middleware import ReflectMiddleware
    from reflect_middleware.reflect import Reflector
    from reflect_middleware.retention import Retention
    from reflect_middleware.retrieve import CountTokens

G = TypeVar("G")
R = TypeVar("R")


class Track:
    """The episodes that began inside a `track` block."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []

    @property
    def episode_ids(self) -> tuple[str, ...]:
        """Their ids, in the order in which they began."""
        return tuple(dict.fromkeys(session.episode_id for session in self._sessions if session.plan.learn))


class Reflection(Freezing, Operating, Practising):
    """Makes any LangGraph agent learn from its own runs.

    Building it touches no file, network, model or store; all open on first use.

    Args:
        model: The model that reflects: a chat model, a name for langchain's `init_chat_model` (built on first use), a
            callable that makes one, or None to only record.
        every: How many ready episodes of a namespace make a reflection due, at least 1; or a Cadence.
        path: Folder for ledger and store. The environment's REFLECT_PATH wins.
        ledger: SQLAlchemy URL of the ledger instead of a file in `path`; `namespace` must then be given.
        store: The vector store: an installed store's name or URL, a `LessonStore`, a LangGraph `BaseStore`,
            or a LangChain `VectorStore`. None: the one to which `reindex` has moved the ledger, else `"chroma"`.
        store_options: Further settings for the store; without `store` for the default one.
        embeddings: langchain Embeddings or an installed embedder's name; None for the default embedder.
        namespace: Scopes lessons and episodes: strings with fields such as "{user_id}", or a callable(config, context).
        read: Further namespaces, written like `namespace`, whose lessons runs may be shown beside their own: a team's
            or an organisation's. They are ranked together, own ones win ties; nothing is ever written to them. One
            whose fields a run cannot fill is left out.
        reward: Judges each ended episode: callable(Episode), or an evaluator with parameters `inputs`, `outputs`,
            `reference_outputs`; sync or async; gives bool, number in [0, 1], Reward, dict, a list of these, or None.
            `"self"`: the model judges what nobody has rewarded, before it reflects.
        signals: What runs say of themselves becomes rewards with `source="implicit"`: True for all rules, False for
            none, or names of rules: `failed`, `limit`, `error`, `loop`, `repair`, `correction`, `thanks`, `agreement`.
        decision: Reads a person's answer to an interrupt: callable(what was asked, the answer to it), with the results
            of `reward`; their source is `user`. None: the decisions of `HumanInTheLoopMiddleware` are known (approve
            is 1, edit 0.5 with the edited call as correction, reject 0), and other answers judge nothing.
        task: callable(graph input) giving the task's text; None for the last turns of the messages, else JSON.
        top_k: Most lessons that a run adds to its prompt.
        token_budget: Most tokens of the whole lesson block.
        count_tokens: Tokens of a text; None for a cautious estimate.
        min_similarity: Cosine in [-1, 1] below which a lesson does not fit a task; -1 for no floor. The default is for
            all-MiniLM-L6-v2; `make retrieval ARGS="--embeddings …"` finds the one for another model.
        reward_wait: Seconds that an ended episode waits for a late reward before it counts.
        reward_timeout: Seconds after which an episode counts though its reward callable has not answered.
        run: Where due reflections run: `"background"`, `"inline"` (the run waits) or `"external"` (elsewhere).
        approval: `"human"`: what reflections write waits as candidates until approved.
        learn: False: record nothing.
        use_lessons: False: only observe.
        redact: Applied to every text before it is stored or sent to the reflector.
        inject: callable(run metadata) deciding which model calls get lessons, instead of the default scope.
        on_reflection: Called with the ReflectionReport of each reflection.
        reflector: Replaces the step of reflection: a batch in, edits out.
        prompt: Replaces the default reflector's instructions.
        reflector_budget: Most tokens of the reflector's prompt.
        max_lessons: Most active lessons of a namespace.
        consolidate_every: After so many reflections of a namespace, sooner where 80 % of `max_lessons` are active,
            related lessons are merged into fewer, more general ones, and what is never used fades. 0 or None: only when
            `consolidate` is called.
        durability: What a run's end waits for: `"commit"` (survives a killed process), `"fsync"` (survives power
            loss), `"queue"` (nothing).
        retrieve_timeout: Seconds after which a run goes on without lessons.
        exit_timeout: Seconds that `close` and the end of the process wait for unfinished work.
        resume_within: Seconds after which an interrupted episode counts as abandoned.
        lease: Seconds for which a reflection's claim holds; renewed while it runs.
        tries: After so many failed reflections an episode is dead-lettered; `episodes.retry` gives it another chance.
            Failures that say nothing about the episodes, such as a provider that is away, count as no try.
        sample: Share, from 0 to 1, of the successful runs without a reward that count towards `every`; failed and
            rewarded ones always count, and all are recorded.
        seed: A whole number from 0 on that makes what we draw repeatable: it is given to the reflecting model where its
            class has a field for one that is not set, and `sample` draws by it. The model's temperature is left alone.
            None: as the model is.
        daily_tokens: Most tokens that reflections on this ledger may use in a day of UTC; those that are under way
            when it is reached may go beyond it. None: no limit.
        run_overrides: False: ignore `configurable["reflect"]` of single runs.
        retention: How many episodes are kept, and for how long; applied in the background. None: all, for ever.

    Raises:
        ConfigurationError: If an argument has a value that is not allowed; the message says what is.
        MissingExtraError: If an argument needs a package that is not installed.
        UnknownStoreError: If no installed store has this name.
    """

    lessons: Lessons
    episodes: Episodes
    reflections: Reflections

    def __init__(
        self,
        model: BaseChatModel | str | Callable[[], BaseChatModel] | None = None,
        *,
        every: int | Cadence = 5,
        path: str | os.PathLike[str] = ".reflect",
        ledger: str | None = None,
        store: Any = None,
        store_options: Mapping[str, Any] | None = None,
        embeddings: Embeddings | str | None = None,
        namespace: Namespace | NamespaceFn | None = None,
        read: Sequence[Namespace | NamespaceFn] = (),
        reward: Callable[..., Any] | Literal["self"] | None = None,
        signals: bool | tuple[str, ...] = True,
        decision: Callable[[list[Any], Any], Any] | None = None,
        task: Callable[[Any], str] | None = None,
        top_k: int = 8,
        token_budget: int = 600,
        count_tokens: CountTokens | None = None,
        min_similarity: float = 0.15,
        reward_wait: float = 0,
        reward_timeout: float = 60,
        run: Literal["background", "inline", "external"] = "background",
        approval: Literal["auto", "human"] = "auto",
        learn: bool = True,
        use_lessons: bool = True,
        redact: Callable[[str], str] | None = None,
        inject: Callable[[Mapping[str, Any]], bool] | None = None,
        on_reflection: Callable[[ReflectionReport], Any] | None = None,
        reflector: Reflector | None = None,
        prompt: str | None = None,
        reflector_budget: int = 16_000,
        max_lessons: int = 200,
        consolidate_every: int | None = 10,
        durability: Literal["commit", "fsync", "queue"] = "commit",
        retrieve_timeout: float = 1.0,
        exit_timeout: float = 10.0,
        resume_within: float = 86_400.0,
        lease: float = 30.0,
        tries: int = 3,
        sample: float = 1.0,
        seed: int | None = None,
        daily_tokens: int | None = None,
        run_overrides: bool = True,
        retention: Retention | None = None,
    ) -> None:
        given = dict(locals())
        for name in ("self", "__class__"):
            given.pop(name, None)
        given["store_options"] = dict(store_options or {})
        if store is None and store_options:  # whoever gives settings means a certain store
            given["store"] = DEFAULT_STORE
        self._options = options(**given)
        if self._options.store is not None:
            check_store(self._options.store)
        check_embedder(embeddings)
        self._over(Core(self._options))

    def _over(self, core: Core) -> None:
        self._core = core
        self.lessons = Lessons(core, self._own)
        self.episodes = Episodes(core, self._own)
        self.reflections = Reflections(core, self._own)

    # Putting it on.

    def wrap(
        self,
        graph: G,
        *,
        name: str | None = None,
        namespace: Namespace | NamespaceFn | None = None,
        task: Callable[[Any], str] | None = None,
        reward: Callable[..., Any] | None = None,
        inject: Callable[[Mapping[str, Any]], bool] | None = None,
        read: Sequence[Namespace | NamespaceFn] | None = None,
    ) -> G:
        """The same graph, learning: same class, schemas, streams, state. Also the one node in an existing graph.

        Args:
            graph: Any compiled LangGraph graph. A `RemoteGraph` is recorded too, but its model runs on the server and
                gets no lessons; its v3 event streams are not recorded.
            name: The agent's name in episodes and as `{agent}` in namespaces; the graph's own by default.
            namespace: As in `Reflection`, for this agent.
            read: As in `Reflection`, for this agent; `[]` reads none.
            task: As in `Reflection`, for this agent.
            reward: As in `Reflection`, for this agent.
            inject: As in `Reflection`, for this agent.

        Raises:
            WrapError: If `graph` is neither.
        """
        agent = name or str(getattr(graph, "name", "") or "LangGraph")
        spec = self._spec(agent, namespace, task, reward, inject, read=read)
        return wrapping.wrap(graph, wrapping.Link(self._core, spec))

    def middleware(
        self,
        *,
        name: str = "agent",
        namespace: Namespace | NamespaceFn | None = None,
        task: Callable[[Any], str] | None = None,
        reward: Callable[..., Any] | None = None,
        read: Sequence[Namespace | NamespaceFn] | None = None,
    ) -> ReflectMiddleware:
        """A middleware for `langchain.agents.create_agent`; the arguments are those of `wrap`.

        Raises:
            MissingExtraError: If langchain is not installed.
        """
        try:
            from reflect_middleware.middleware import ReflectMiddleware
        except ImportError as error:
            raise MissingExtraError("Reflection.middleware", "langchain") from error
        return ReflectMiddleware(self._core, self._spec(name, namespace, task, reward, None, read=read))

    def node(self) -> RunnableLambda[Any, Any]:
        """A node that starts a due reflection, for graphs that want to show where; wrapping does without it."""
        return reflect_node(self._core, self._spec("", None, None, None, None))

    # Judging runs.

    def reward(
        self,
        target: Any = None,
        value: float | Reward | None = None,
        *,
        thread_id: str | None = None,
        source: str = "outcome",
        key: str = "reward",
        comment: str = "",
        correction: str = "",
        namespace: Namespace | None = None,
    ) -> None:
        """Say how well a run went, now or days later. The same source and key again replaces the former reward.

        Args:
            target: The run's result, a message of it or the message's id, a run id or an episode id.
            value: True, False or a number from 0 (worst) to 1 (best).
            thread_id: Instead of a target: the thread's latest episode.
            source: `outcome`, `user`, `judge`, `self`, `implicit`, or a word of your own.
            key: What is judged.
            comment: Why. The reflector reads it.
            correction: What would have been right.
            namespace: With `thread_id`: only in this namespace.

        Raises:
            RewardError: If the value is not allowed.
            TargetError: If the target names no run, or several that gave the same result.
        """
        if isinstance(value, Reward):
            given = value
        else:
            given = Reward(value=unit(value), source=source, key=key, comment=comment, correction=correction)
        self._give(target, thread_id, namespace, given)

    def feedback(
        self,
        target: Any = None,
        *,
        key: str,
        score: float | bool | None = None,
        comment: str | None = None,
        correction: Any = None,
        thread_id: str | None = None,
        source: str = "user",
    ) -> None:
        """A reward in LangSmith's shape: `score` from -1 to 1, where below 0 counts as 0.

        Raises:
            RewardError: If the score is not allowed.
            TargetError: If the target names no run.
        """
        text = "" if correction is None else str(correction)
        given = Reward(value=from_score(score), source=source, key=key, comment=comment or "", correction=text)
        self._give(target, thread_id, None, given)

    @contextlib.contextmanager
    def track(self) -> Iterator[Track]:
        """`with reflection.track() as t:` collects the ids of the episodes that begin inside, in `t.episode_ids`."""
        track = Track()
        token = tracks.set((*tracks.get(), track._sessions))  # noqa: SLF001 - its own
        try:
            yield track
        finally:
            tracks.reset(token)

    # Learning and looking.

    def reflect(self, *, namespace: Namespace | None = None) -> ReflectionReport:
        """Reflect on everything that has ended, now, whatever the cadence and the rewards it still waits for.

        A failure of the model is in the report's `error`; the episodes then wait for the next reflection.
        """
        space = self._own(namespace)
        if off():
            return ReflectionReport(namespace=space)
        self._open()
        self._core.drain(None)
        return self._core.parts.learner.reflect(space)

    def consolidate(self, *, namespace: Namespace | None = None) -> ReflectionReport:
        """Merge related lessons into fewer, more general ones, now, and let fade what is never used.

        What was merged or faded is retired, and `lessons.approve` brings it back. A merge that would lose a number, a
        condition, a source, or a task that found its lesson before, is refused. With `approval="human"` merges wait as
        candidates, and nothing fades. Without a model nothing is merged.

        Returns:
            What came of it: `consolidation` has the lessons as a whole before and after, and is None where there was
            nothing to do. A failure is in its `error`.
        """
        space = self._own(namespace)
        if off():
            return ReflectionReport(namespace=space)
        self._core.drain(None)
        return self._core.parts.learner.consolidate(space)

    def work(
        self,
        *,
        namespace: Namespace | None = None,
        parallel: int = 1,
        at_once: int | None = None,
        per_minute: int | None = None,
    ) -> tuple[ReflectionReport, ...]:
        """Do every reflection that is due, whoever recorded its episodes: `reflect worker --once` in your own code.

        Args:
            namespace: Only in this one, where a part "*" fits any; None for all namespaces of the ledger.
            parallel: Most reflections that this call does at once, each of another namespace.
            at_once: Most reflections under way in all processes on the ledger; None: no limit.
            per_minute: Most reflections begun within 60 seconds by all of them; None: no limit.

        Returns:
            A report for each; a failure is in its `error`.

        Raises:
            ConfigurationError: If there is no model to reflect with, or an argument is not allowed.
        """
        from reflect_middleware.worker import worker

        core = self._open()
        if off():
            return ()
        return worker(core, namespace, parallel=parallel, at_once=at_once, per_minute=per_minute).run(once=True)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait for records, reward callables and due reflections; False if `timeout` seconds passed first."""
        return self._core.drain(timeout)

    def preview(self, graph_input: Any, config: RunnableConfig | None = None, *, context: Any = None) -> Preview:
        """What would be put into the prompt of a run on this input, and why. Records nothing."""
        effective = wrapping.effective(None, config)
        return self._core.preview(self._spec("", None, None, None, None), graph_input, effective, context)

    def close(self) -> None:
        """Write what is queued, wait up to `exit_timeout` for running work, release the rest. May be called twice."""
        self._core.close()

    # Async twins.

    areward, afeedback, areflect, awork, aflush = twin(reward), twin(feedback), twin(reflect), twin(work), twin(flush)
    aconsolidate = twin(consolidate)
    apreview = twin(preview)

    async def aclose(self) -> None:
        """Async twin of `close`."""
        await awaited(once("close", self.close))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # Inside.

    def _spec(self, agent: str, namespace: Any, task: Any, reward: Any, inject: Any, *, read: Any = None) -> Spec:
        if reward is not None and not callable(reward):
            raise ConfigurationError("reward", reward, "a callable or None", "For 'self' see `Reflection(reward=…)`.")
        found = self._options.rule if namespace is None else rule(namespace)
        self._core.rules.add(found)
        return Spec(
            agent=agent,
            rule=found,
            task=task,
            reward=reward,
            inject=inject or self._options.inject,
            read=self._options.read if read is None else rules(read),
        )

    def _own(self, namespace: Namespace | None) -> Namespace:
        self._open()
        wanted = self._options.rule if namespace is None else rule(namespace)
        if wanted.plain is None:
            raise TemplateError(
                "namespace", wanted.parts, "one without fields here", f"Pass namespace=(…), {ALLOWED} all filled in."
            )
        return wanted.plain

    def _give(self, target: Any, thread_id: str | None, namespace: Namespace | None, given: Reward) -> None:
        if not off():
            give(self._open(), target, thread_id, namespace, given)
