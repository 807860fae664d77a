"""The nouns: what is recorded, learned and reported. All of them are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

Namespace = tuple[str, ...]
EpisodeStatus = Literal["completed", "failed", "cancelled", "abandoned", "interrupted"]
LessonStatus = Literal["candidate", "active", "retired"]
RewardSource = Literal["outcome", "user", "judge", "implicit", "self"]
StepKind = Literal["model", "tool", "interrupt", "resume", "retry"]
EditOp = Literal["add", "edit", "merge", "retire"]

TRUST: tuple[str, ...] = ("outcome", "user", "judge", "implicit", "self")
"""Reward sources, the most trusted first. `Episode.reward` is the mean over the first one present."""

TASK_CHARS = 200
"""Most characters that a lesson keeps of the task that taught it."""
SEARCHED_CHARS = 120
"""Most characters of the evidence by which a lesson is found."""

Unit = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


def now() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """A new random id (UUID4 text)."""
    return str(uuid4())


class Frozen(BaseModel):
    """Base of the stored nouns: immutable, docstrings under fields are their descriptions."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants", defer_build=True
    )


class Reward(Frozen):
    """One judgement of one episode. Unique by (episode, source, key)."""

    value: Unit
    """0 is worst, 1 is best."""
    source: str = "outcome"
    """Who judged: `outcome`, `user`, `judge`, `self`, `implicit`, or a word of your own (trusted least)."""
    key: str = "reward"
    """What was judged, e.g. `correct` or `tone`."""
    comment: str = ""
    """Why, in the judge's own words. The reflector reads it."""
    correction: str = ""
    """What the right answer or action would have been, if the judge said so."""
    at: datetime = Field(default_factory=now)
    """When it was given (UTC)."""


def most_trusted(rewards: Iterable[Reward]) -> str:
    """The most trusted source present; empty without any reward."""
    present = {reward.source for reward in rewards}
    return next((source for source in (*TRUST, *sorted(present - set(TRUST))) if source in present), "")


def combined(rewards: Sequence[Reward]) -> float | None:
    """Mean over the rewards of the most trusted source present; None without any."""
    source = most_trusted(rewards)
    values = [reward.value for reward in rewards if reward.source == source]
    return sum(values) / len(values) if values else None


class Step(Frozen):
    """One step of a trajectory: a model call, a tool call, an interrupt, a resume or a retry of the whole run."""

    kind: StepKind
    name: str = ""
    """The model's or tool's name; the id of an interrupt."""
    node: str = ""
    """The graph node it ran in."""
    depth: int = 0
    """0 for the wrapped graph's own nodes, 1 for its subgraphs, and so on."""
    input: str = ""
    """What went in: new messages for a model (lessons removed), arguments for a tool. Size-capped text."""
    output: str = ""
    """What came out. Size-capped text."""
    error: str = ""
    """The error's type and message where the step failed, else empty."""
    run_id: str = ""
    """The run id in callbacks and traces; the tool call id for a call that never ran."""
    started_at: datetime = Field(default_factory=now)
    """When it started (UTC)."""
    seconds: float = 0.0
    """How long it took."""
    input_tokens: int = 0
    """Tokens read, as the provider reports them; 0 if it does not."""
    output_tokens: int = 0
    """Tokens written, as the provider reports them; 0 if it does not."""
    truncated: bool = False
    """True where the provider says that a limit of tokens has cut off the model's answer."""


class Exposure(Frozen):
    """The fact that a lesson was eligible for an episode, and what became of it."""

    lesson_id: str
    version: int
    """The lesson's version at that time."""
    shown: bool
    """True if it was in the prompt, False if it was withheld or had no room."""
    probability: Unit = 1.0
    """The probability with which an eligible lesson was shown."""
    similarity: float = 0.0
    """Cosine between the task and the lesson, in [-1, 1]; 0 for an always-on lesson that is not among the nearest."""
    position: int = 0
    """Its place in the prompt, from 0."""
    namespace: Namespace = ()
    """Where the lesson lives: the episode's own namespace, or one that it reads."""


class Episode(Frozen):
    """One run of the agent on one task. An interrupted and resumed run is one episode."""

    id: str
    """The run id of the wrapped graph's own run."""
    run_ids: tuple[str, ...] = ()
    """All runs that belong to it: the first and every resume."""
    root_run_id: str = ""
    """The outermost run's id, as in traces."""
    parent_id: str = ""
    """The episode of the wrapped graph that called this one, if any."""
    agent: str = ""
    """The wrapped agent's name."""
    namespace: Namespace
    read: tuple[Namespace, ...] = ()
    """The namespaces whose lessons it could be shown beside those of its own."""
    thread_id: str = ""
    principal: str = ""
    """On whose behalf it ran, if the run said so."""
    task: str
    """What the run was asked to do."""
    task_key: str = ""
    """Groups rollouts of the same task, if the run said so."""
    input: str = ""
    """The graph input as JSON, size-capped."""
    output: str = ""
    """The graph output as JSON, size-capped."""
    reference: str = ""
    """The known right answer, if the run said so."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """The run's metadata that JSON can hold."""
    status: EpisodeStatus
    error: str = ""
    """The error's type and message for a failed run, else empty."""
    instructions: str = ""
    """What the agent was told anyway: its system text without lessons, and what its tools say of themselves. No
    reflector reads it, but lessons that only repeat it are refused. Size-capped."""
    trajectory: tuple[Step, ...] = ()
    rewards: tuple[Reward, ...] = ()
    exposures: tuple[Exposure, ...] = ()
    started_at: datetime
    ended_at: datetime | None = None
    """None while it is interrupted."""
    reflection_id: str = ""
    """The committed reflection that consumed it, else empty; `held-out` for a run of a practice that measured."""
    dead_letter: str = ""
    """Why no reflection could use it, else empty."""

    @property
    def reward(self) -> float | None:
        """Mean over the rewards of the most trusted source present; None without any."""
        return combined(self.rewards)

    @property
    def input_tokens(self) -> int:
        """Tokens read by the agent's model calls."""
        return sum(step.input_tokens for step in self.trajectory)

    @property
    def output_tokens(self) -> int:
        """Tokens written by the agent's model calls."""
        return sum(step.output_tokens for step in self.trajectory)


class Lesson(Frozen):
    """When (the situation), do (the advice), because (the evidence)."""

    id: str = Field(default_factory=new_id)
    namespace: Namespace
    when: str
    """The situation in which it applies."""
    do: str
    """The advice."""
    because: str = ""
    """The evidence, in the words of the episodes."""
    task: str = ""
    """The beginning of the task that taught it, at most `TASK_CHARS` characters, by which tasks like it find it.

    A merged lesson has an equal part of each parent's. It is never shown in a prompt. Empty for a lesson that was
    written by hand.
    """
    status: LessonStatus = "active"
    version: int = 1
    """Counts every change, from 1. Old versions stay in the ledger."""
    sources: tuple[str, ...] = ()
    """Ids of the episodes it came from; empty for a lesson added by hand."""
    pinned: bool = False
    """Pinned lessons are never edited, merged or retired by a reflection or the cap."""
    always: bool = False
    """True: it applies everywhere, and every run of the namespace is shown it, whatever its task."""
    supported: bool = True
    """False when `because` is not found in the named episodes."""
    held: tuple[str, ...] = ()
    """Values that only one task had when it was learned; for them it waits as a candidate until they are gone from its
    text, or known to be a rule."""
    replaces: tuple[str, ...] = ()
    """Ids of lessons that retire when this candidate is approved, or that were merged into it."""
    needs_review: bool = False
    """True when a reward changed the picture after the lesson was learned."""
    created_by: str = "human"
    """`human`, `import`, or the id of the reflection that wrote this version."""
    created_at: datetime = Field(default_factory=now)
    updated_at: datetime = Field(default_factory=now)
    shown: int = 0
    """In how many episodes it was in the prompt."""
    shown_reward: float | None = None
    """Mean reward of the latest 500 of them, by the most trusted source that judged any.

    Signs found in the runs themselves do not count. A description, not a proof that it helps.
    """

    @property
    def text(self) -> str:
        """The lesson as one line, the form in which lessons are compared with each other."""
        return f"{self.when}: {self.do}"

    @property
    def place(self) -> tuple[datetime, str, str]:
        """Sorts lessons by age; those of one reflection by their words, because their ids are chance."""
        return self.created_at, self.text, self.id

    @property
    def searched(self) -> str:
        """What tasks are compared with: the task that taught it, in front of the advice and its evidence."""
        return f"{self.task} {self.text} {self.because[:SEARCHED_CHARS]}".strip()


class Task(Frozen):
    """One task to practise on."""

    input: Any
    """The graph input."""
    reference: Any = None
    """The known right answer, given to the reward callable."""
    key: str | None = None
    """Groups rollouts of the same task."""


class Edit(Frozen):
    """One change to the lessons, as the reflector proposed it; lessons and episodes by the prompt's handles."""

    op: EditOp
    episodes: tuple[str, ...] = ()
    """Handles of the episodes that show it."""
    lessons: tuple[str, ...] = ()
    """Handles of the lessons it changes: one for edit and retire, two or more for merge."""
    because: str = ""
    """The exact words of the episodes that show it."""
    when: str = ""
    do: str = ""


class EditOutcome(Frozen):
    """What became of one proposed edit."""

    edit: Edit
    accepted: bool
    reason: str = ""
    """Why it was rejected and what would be accepted, or how it was changed."""
    lasting: bool = False
    """True if it was rejected for what it says, and would be again: the next reflections are told of it."""
    lesson_id: str = ""
    """The lesson that it made or changed, if accepted."""


class Cut(Frozen):
    """What of one episode a reflection's prompt had no room for."""

    episode: str
    """The episode's id."""
    steps: int = 0
    """Steps of which the prompt showed nothing, not even notes."""
    of_steps: int = 0
    """All its steps, without those that only repeat others."""
    characters: int = 0
    """Characters that the prompt did not show word for word."""
    of_characters: int = 0
    """All its characters, as they would stand in the prompt."""
    segments: int = 0
    """Parts in which the model read it before; its notes on them stood in the prompt. 0: it was not read in parts."""

    @property
    def text(self) -> str:
        """The cut in one line."""
        steps = f"{self.steps:,} of {self.of_steps:,} steps"
        characters = f"{self.characters:,} of {self.of_characters:,} characters"
        noted = f", read before in {self.segments:,} segments with notes" if self.segments else ""
        return f"{steps} and {characters} cut{noted}"


class Skipped(Frozen):
    """Episodes of one task that a reflection consumed without reading: they say nothing new."""

    episodes: tuple[str, ...]
    """Their ids."""
    reason: str


class Footprint(Frozen):
    """What the active lessons of a namespace take, and what they give, at one moment."""

    lessons: int
    """How many are active."""
    tokens: int
    """Of all of them together, as a prompt would show them, without the fence."""
    found: int = 0
    """For how many of the tasks tried retrieval brings the lesson that belongs to them."""
    tried: int = 0
    """How many tasks were tried: those from which the related lessons came, and the situations that they name."""


class Consolidation(Frozen):
    """What one consolidation did to the lessons as a whole."""

    before: Footprint
    after: Footprint
    """As it is afterwards; with `approval="human"` as it would be once all merges are approved."""
    clusters: tuple[str, ...] = ()
    """The groups of lessons that the model was asked about, as `id@version` with spaces between."""


class ReflectionRecord(Frozen):
    """One reflection, as kept in the ledger: enough to read and judge it later."""

    id: str
    namespace: Namespace
    status: Literal["running", "done", "failed", "released"]
    episodes: tuple[str, ...] = ()
    """Ids of the episodes it read, in the order of their handles."""
    prompt: str = ""
    """The prompt as sent, redacted."""
    answer: str = ""
    """The raw answer; both answers if there was a retry."""
    outcomes: tuple[EditOutcome, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    way: str = ""
    """How the model was asked: `json_schema`, `function_calling`, `json_mode`, `tools`, `text` or `one message`; empty
    for a reflector of the user's own."""
    note: str = ""
    """What could not be read of an answer that was used otherwise."""
    cut: tuple[Cut, ...] = ()
    """The episodes that the prompt does not show in full, and what it lacks of each."""
    skipped: tuple[Skipped, ...] = ()
    """The episodes that were not read, and why."""
    error: str = ""
    """Why it failed, else empty."""
    consolidation: Consolidation | None = None
    """Of a consolidation: what came of it. None for a reflection on episodes."""
    started_at: datetime = Field(default_factory=now)


class ReflectionReport(Frozen):
    """What one call of `reflect` did; also given to `on_reflection` for each reflection."""

    namespace: Namespace
    reflections: tuple[str, ...] = ()
    """Ids of the reflections made; empty if nothing was waiting."""
    episodes: tuple[str, ...] = ()
    """Ids of the episodes consumed."""
    accepted: tuple[EditOutcome, ...] = ()
    rejected: tuple[EditOutcome, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    """The lessons that were made or changed, as they are now."""
    cut: tuple[Cut, ...] = ()
    """The episodes that the prompt did not show in full, and what it lacked of each."""
    skipped: tuple[Skipped, ...] = ()
    """The episodes that were consumed unread, because they say nothing new, and why."""
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Why a reflection failed, else empty. Its episodes went back to the ledger."""
    consolidation: Consolidation | None = None
    """Of a consolidation: the lessons as a whole before and after. None for a reflection on episodes."""


class Retrieved(Frozen):
    """One lesson that retrieval considered."""

    lesson: Lesson
    similarity: float
    shown: bool
    reason: str = ""
    """Why it was not shown, else empty."""
    always: bool = False
    """True if it was shown because it applies everywhere, whatever its similarity."""


class Preview(Frozen):
    """What a run on this input would get, and why."""

    task: str
    namespace: Namespace
    read: tuple[Namespace, ...] = ()
    """The namespaces whose lessons it could be shown beside those of its own."""
    block: str
    """The text that would be merged into the system message; empty for none."""
    tokens: int
    """Its size by `count_tokens`, fence included."""
    lessons: tuple[Retrieved, ...] = ()
    reason: str = ""
    """Why nothing would be shown, else empty."""


class AuditEntry(Frozen):
    """One thing that was done to the ledger as a whole: a purge, a retention, a restore."""

    at: datetime
    action: str
    details: dict[str, Any] = Field(default_factory=dict)
    """Counts and kinds; never content."""
