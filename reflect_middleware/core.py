"""What happens around every run: begin, retrieve, record, reward. Threads of our own do the work."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langgraph.types import Command

from reflect_middleware.boundary import active
from reflect_middleware.errors import LedgerError, ReflectError
from reflect_middleware.lanes import Lane
from reflect_middleware.options import Options
from reflect_middleware.render import task_text
from reflect_middleware.retrieve import Choice, choose
from reflect_middleware.reward import call
from reflect_middleware.session import Plan, Session, Spec
from reflect_middleware.types import Episode, EpisodeStatus, Namespace, Preview, Reward, now

if TYPE_CHECKING:
    from reflect_middleware.embed import Embedder
    from reflect_middleware.episodes_table import Record
    from reflect_middleware.index import Index
    from reflect_middleware.learn import Learner
    from reflect_middleware.ledger import Ledger
    from reflect_middleware.types import Lesson

logger = logging.getLogger(__name__)
tracks: ContextVar[tuple[list[Session], ...]] = ContextVar("reflect_tracks", default=())
WARM_UP_SECONDS = 15.0
"""How long the first run that has lessons to find waits for the embedder to load."""
UNSAVED = 1_000
"""Most records kept in memory while the ledger cannot be written."""
RESULTS = 64
"""Of how many latest runs the result object itself is known."""
BREAKER = (3, 30.0)
"""After so many failures in a row retrieval rests for so many seconds."""


class Core:
    """The inner side of a Reflection, shared by everything that it wraps."""

    commit_timeout: float | None = 2.0
    """Seconds a run waits at most for its record's commit; None (for `run="inline"`) waits for all that follows too."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.closed = False
        if options.run == "inline":
            self.commit_timeout = None
        self.writer = Lane("writer")
        self.rewards = Lane("rewards")
        self.finder = Lane("retrieve", threads=4)
        self.spec_default = Spec(agent="", rule=options.rule, task=None, reward=None, inject=None)
        self._unsaved: deque[Record] = deque(maxlen=UNSAVED)
        self._results: OrderedDict[int, tuple[Any, str]] = OrderedDict()
        self._bodies: OrderedDict[tuple[Namespace, int, str], Lesson | None] = OrderedDict()
        self._warned: set[str] = set()
        self._failures, self._rest_until = 0, 0.0
        self._lock = threading.RLock()
        self._pid = 0
        _alive.add(self)
        weakref.finalize(self, _stop, (self.writer, self.rewards, self.finder))

    # The heavy parts: imported and opened on first use, once per process.

    @property
    def ledger(self) -> Ledger:
        """The ledger, opened lazily."""
        return self._part("ledger", self._make_ledger)

    @property
    def embedder(self) -> Embedder:
        """The embedder, opened lazily."""
        return self._part("embedder", self._make_embedder)

    @property
    def index(self) -> Index:
        """The index, opened lazily."""
        return self._part("index", self._make_index)

    @property
    def learner(self) -> Learner:
        """The reflecting side, made lazily."""
        return self._part("learner", self._make_learner)

    # A run's way.

    def begin(self, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Session | None:
        """A session for a run that starts now; None if it is none of our business."""
        if self.closed or self.off():
            return None
        try:
            plan = self._plan(spec, graph_input, config, context)
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self.failed("begin", error)
            return None
        if plan is None:
            return None
        session = Session(core=self, plan=plan)
        for track in tracks.get():
            track.append(session)
        return session

    def fetches(self, session: Session) -> Iterator[tuple[Callable[[], Future[Any]], float]]:
        """What a run waits for before it starts: first, once, the embedder; then its lessons."""
        plan = session.plan
        if not plan.use_lessons and plan.resume is None:
            return
        if time.monotonic() < self._rest_until:
            return
        if plan.use_lessons and "embedder" not in self.__dict__.get("_parts", {}):
            yield lambda: self.finder.submit(lambda: self._warm_up(plan.namespace)), WARM_UP_SECONDS
        yield lambda: self.finder.submit(lambda: self._find(plan)), self.options.retrieve_timeout

    def finish(self, session: Session, status: EpisodeStatus, error: BaseException | None) -> Future[Any] | None:
        """Queue a run's record; what depends on it follows on other threads."""
        if not session.plan.learn:
            return None
        self._remember(session)
        ended = now()
        done = self.writer.submit(lambda: self._write(session, status, error, ended))
        if self.options.run == "inline":
            return self.rewards.submit(lambda: self._settled(done, session, ended.timestamp()))
        return None if self.options.durability == "queue" else done

    def preview(self, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Preview:
        """What a run on this input would get; reads only."""
        plan = self._plan(spec, graph_input, config, context)
        if plan is None:
            return Preview(task="", namespace=(), block="", tokens=0, reason="the run has no namespace, or is off")
        choice, _ = self._find(plan)
        reason = "" if choice.block else "no lesson fits" if choice.considered else "no active lessons, or paused"
        return Preview(
            task=plan.task,
            namespace=plan.namespace,
            block=choice.block,
            tokens=choice.tokens,
            lessons=choice.considered,
            reason=reason,
        )

    def off(self) -> bool:
        """Whether the environment switches everything off."""
        return os.environ.get("REFLECT", "").lower() == "off"

    def safely(self, where: str, work: Callable[[], Any]) -> None:
        """Run work of ours; a failure is noted, not raised."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - boundary to the user's run
            self.failed(where, error)

    # Failures: logged, counted, never raised into the user's run.

    def failed(self, where: str, error: BaseException) -> None:
        """Note a failure of ours."""
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        first = f"{where}:{type(error).__name__}" not in self._warned
        self._warned.add(f"{where}:{type(error).__name__}")
        log = logger.warning if first else logger.debug
        log("reflect: %s failed, the run goes on without it: %s", where, text, exc_info=error if first else None)
        self.writer.submit(lambda: self._count(where, text))

    def retrieval_failed(self, error: BaseException) -> None:
        """Note that a run got no lessons, and let retrieval rest when that happens in a row."""
        self._failures += 1
        if self._failures >= BREAKER[0]:
            self._rest_until = time.monotonic() + BREAKER[1]
        self.failed("retrieve", error)

    def known_result(self, result: Any) -> str | None:
        """The episode whose run gave exactly this object."""
        with self._lock:
            held = self._results.get(id(result))
        return held[1] if held is not None and held[0] is result else None

    def drain(self, timeout: float | None) -> bool:
        """Wait for records, rewards and due reflections."""
        end = None if timeout is None else time.monotonic() + timeout
        lanes = [self.writer, self.rewards, self.writer]
        if "learner" in self._open_parts():
            lanes += [self.learner.lane, self.writer]
        if "index" in self._open_parts():
            lanes += [self.index.lane]
        return all(lane.wait_idle(None if end is None else max(0.0, end - time.monotonic())) for lane in lanes)

    def close(self) -> None:
        """Write what is queued, give running work `exit_timeout`, release the rest."""
        if self.closed:
            return
        self.closed = True
        self.drain(self.options.exit_timeout)
        parts = self._open_parts()
        if "learner" in parts:
            self.learner.close()
        if "index" in parts:
            self.index.close()
        for lane in (self.rewards, self.finder, self.writer):
            lane.stop()
        if "ledger" in parts:
            self.ledger.close()

    # Deciding.

    def _plan(self, spec: Spec, graph_input: Any, config: Mapping[str, Any], context: Any) -> Plan | None:
        configurable = config.get("configurable") or {}
        own = configurable.get("reflect") if self.options.run_overrides else None
        per_run: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
        learn = self.options.learn and per_run.get("learn", True) is not False
        use_lessons = self.options.use_lessons and per_run.get("use_lessons", True) is not False
        if not learn and not use_lessons:
            return None
        namespace, why = spec.rule.resolve(config, context, spec.agent)
        if namespace is None:
            self._warn_once(f"no lessons and nothing learned for {spec.agent!r}: {why}")
            return None
        outer = active.get()
        return Plan(
            spec=spec,
            namespace=namespace,
            task=self._task(spec, graph_input),
            graph_input=graph_input,
            thread_id=str(configurable.get("thread_id") or ""),
            checkpoint_ns=str(configurable.get("checkpoint_ns") or ""),
            principal=str(configurable.get("langgraph_auth_user_id") or per_run.get("principal") or ""),
            task_key=str(per_run.get("task_key") or ""),
            reference=per_run.get("reference"),
            metadata=config.get("metadata") or {},
            learn=learn,
            use_lessons=use_lessons,
            resume=resume_value(graph_input, configurable),
            parent_id=(outer.episode_id or "") if outer else "",
            root_run_id=_outer_run(outer, config),
        )

    def _task(self, spec: Spec, graph_input: Any) -> str:
        custom = spec.task or self.options.task
        if custom is not None and not isinstance(graph_input, Command):
            try:
                return str(custom(graph_input))
            except Exception as error:  # noqa: BLE001 - the user's callable; the default text serves
                self.failed("task", error)
        return "" if isinstance(graph_input, Command) else task_text(graph_input)

    # Retrieving, on the finder's threads.

    def _warm_up(self, namespace: Namespace) -> None:
        if self.ledger.lessons.state(namespace)[0]:
            _ = self.embedder.id

    def _find(self, plan: Plan) -> tuple[Choice, str]:
        resumed = None
        if plan.resume is not None and plan.thread_id:
            resumed = self.ledger.episodes.interrupted(plan.spec.agent, plan.thread_id, plan.checkpoint_ns)
        revision, paused = self.ledger.lessons.state(plan.namespace)
        choice = Choice()
        if plan.use_lessons and revision and not paused and not (plan.resume is not None and resumed is None):
            choice = self._choose(plan, resumed.task if resumed else plan.task, revision)
        self._failures = 0
        return choice, resumed.id if resumed else ""

    def _choose(self, plan: Plan, task: str, revision: int) -> Choice:
        limits = self.options.limits
        vector = self.embedder.embed_query(task)
        hits = self.index.search(plan.namespace, revision, vector, 2 * limits.top_k + 8)
        shown = self.ledger.episodes.shown_in_thread(plan.namespace, plan.thread_id) if plan.thread_id else []
        bodies = self._active(plan.namespace, revision, [*(lesson_id for lesson_id, _ in hits), *shown])
        candidates = [(bodies[i], score) for i, score in hits if i in bodies]
        earlier = [bodies[i] for i in shown if i in bodies]
        return choose(candidates, earlier, limits, self.options.count_tokens)

    def _active(self, namespace: Namespace, revision: int, ids: list[str]) -> dict[str, Lesson]:
        """Bodies from the ledger: whatever an index says, a retired lesson or another namespace's never comes back."""
        with self._lock:
            missing = [i for i in dict.fromkeys(ids) if (namespace, revision, i) not in self._bodies]
        found = {x.id: x for x in self.ledger.lessons.many(missing)} if missing else {}
        with self._lock:
            for lesson_id in missing:
                self._bodies[namespace, revision, lesson_id] = found.get(lesson_id)
            held = {i: self._bodies.get((namespace, revision, i)) for i in ids}
            while len(self._bodies) > 4_096:  # noqa: PLR2004 - about 4 MB
                self._bodies.popitem(last=False)
        return {i: x for i, x in held.items() if x is not None and x.status == "active" and x.namespace == namespace}

    # Recording, on the writer's thread.

    def _write(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> str:
        try:
            record = self._record(session, status, error, ended)
            self._unsaved.append(record)
            self._save()
        except Exception as failure:  # noqa: BLE001 - nobody waits for a record at `durability="queue"`
            self.failed("record", failure)
            return ""
        if self.options.run != "inline":
            self._follow_up(session, record.episode, ended.timestamp())
        return record.episode.id

    def _record(self, session: Session, status: EpisodeStatus, error: BaseException | None, ended: datetime) -> Record:
        from reflect_middleware.recording import record_of

        if session.plan.resume is not None and not session.resumed_id and session.plan.thread_id:
            standing = self._interrupted(session)
            session.resumed_id = standing.id if standing else ""
        earlier = self.ledger.episodes.get(session.resumed_id) if session.resumed_id else None
        judged = self._reward_of(session) is not None
        wait = self.options.reward_timeout if judged else self.options.reward_wait
        return record_of(session, status, error, ended, earlier, wait, self.options.redact)

    def _save(self) -> None:
        """Write all records that wait; what a full or locked ledger refuses is tried again with the next one."""
        while self._unsaved:
            try:
                self.ledger.episodes.put(self._unsaved[0])
            except LedgerError:
                raise
            except Exception:
                self._unsaved.popleft()
                raise
            self._unsaved.popleft()

    def _interrupted(self, session: Session) -> Any:
        plan = session.plan
        return self.ledger.episodes.interrupted(plan.spec.agent, plan.thread_id, plan.checkpoint_ns)

    def _reward_of(self, session: Session) -> Callable[..., Any] | None:
        return session.plan.spec.reward or self.options.reward

    def _follow_up(self, session: Session, episode: Episode, ended: float) -> None:
        fn = self._reward_of(session)
        if episode.status == "interrupted":
            return
        if fn is not None:
            self.rewards.submit(lambda: self._judge(episode.id, episode.namespace, fn, ended))
        else:
            self.learner.poke(episode.namespace)

    def _judge(self, episode_id: str, namespace: Namespace, fn: Callable[..., Any], ended: float) -> None:
        try:
            for reward in call(fn, self.ledger.episodes.get(episode_id)):
                self.ledger.episodes.reward(episode_id, self.cleaned(reward))
        except Exception as error:  # noqa: BLE001 - the user's callable; the episode counts without its reward
            self.failed("reward", error)
        self.ledger.episodes.open_for_reflection(episode_id, ended + self.options.reward_wait)
        self.learner.poke(namespace)

    def _settled(self, done: Future[str], session: Session, ended: float) -> None:
        """Run inline: the record, its reward callable and a due reflection, one after the other."""
        episode_id, fn, namespace = done.result(), self._reward_of(session), session.plan.namespace
        if episode_id and fn is not None and not session.recorder.interrupted:
            self._judge(episode_id, namespace, fn, ended)
        self.learner.run_due_and_wait(namespace)

    def cleaned(self, reward: Reward) -> Reward:
        """A reward with its words redacted."""
        clean = self.options.redact
        if clean is None:
            return reward
        return reward.model_copy(
            update={"comment": clean(reward.comment), "correction": clean(reward.correction)}
        )

    def _remember(self, session: Session) -> None:
        result = _result_of(session.last)
        if result is None or isinstance(result, (str, int, float, bool)):
            return
        with self._lock:
            self._results[id(result)] = (result, session.episode_id)
            while len(self._results) > RESULTS:
                self._results.popitem(last=False)

    def _count(self, where: str, text: str) -> None:
        try:
            self.ledger.lessons.count(where, text)
        except ReflectError:
            logger.debug("reflect: cannot count a failure of %s", where, exc_info=True)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("reflect: %s", text)

    # Making the parts.

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        part = self._open_parts().get(name)
        if part is None:
            with self._lock:
                part = self._parts.get(name)
                if part is None:
                    part = self._parts[name] = make()
        return part

    def _open_parts(self) -> dict[str, Any]:
        if self._pid != os.getpid():
            # A forked child opens its own; the parent's connections and locks are not ours to use or close.
            self._parts: dict[str, Any] = {}
            self._lock = threading.RLock()
            self._pid = os.getpid()
        return self._parts

    def _make_ledger(self) -> Ledger:
        from reflect_middleware.ledger import Ledger

        return Ledger(self.options.ledger_url, fsync=self.options.durability == "fsync")

    def _make_embedder(self) -> Embedder:
        from reflect_middleware.registry import open_embedder

        return open_embedder(self.options.embeddings)

    def _make_index(self) -> Index:
        from reflect_middleware.index import Index
        from reflect_middleware.registry import open_store

        spec = self.options.store
        opener = None if spec == "exact" else lambda context: open_store(spec, context)
        return Index(self.ledger.lessons, self.embedder, opener, self.options.path / "store", self.failed)

    def _make_learner(self) -> Learner:
        from reflect_middleware.learn import Learner

        return Learner(self)


_alive: weakref.WeakSet[Core] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At exit: records are written, running work gets its time, claims are released."""
    for core in list(_alive):
        core.safely("close", core.close)


def _stop(lanes: tuple[Lane, ...]) -> None:
    for lane in lanes:
        lane.stop()


def resume_value(graph_input: Any, configurable: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The answer that an interrupted run goes on with, in a tuple; None where this run starts anew."""
    if isinstance(graph_input, Command):
        return (graph_input.resume,) if graph_input.resume is not None else None
    if configurable.get("__pregel_resuming"):
        return (None,)
    if graph_input is None and not configurable.get("checkpoint_id"):
        return (None,)
    return None


def _outer_run(outer: Session | None, config: Mapping[str, Any]) -> str:
    if outer is not None:
        return outer.plan.root_run_id or outer.run_id
    runtime = (config.get("configurable") or {}).get("__pregel_runtime")
    info = getattr(runtime, "execution_info", None)
    return str(getattr(info, "run_id", None) or "")


def _result_of(chunk: Any) -> Any:
    """The state in a `values` chunk of any stream form: plain, (mode, state), (namespace, mode, state), or a part."""
    if isinstance(chunk, tuple) and chunk:
        return chunk[-1]
    if isinstance(chunk, Mapping) and set(chunk) >= {"type", "ns", "data"}:
        return chunk["data"]
    return chunk
