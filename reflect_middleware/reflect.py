"""Ask a model what went well, what did not, and what to try next time: a batch in, edits out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

from reflect_middleware.answer import parse_answer, read_answers
from reflect_middleware.asking import Asking, said, was_cut
from reflect_middleware.batch import Batch
from reflect_middleware.cases import told_apart
from reflect_middleware.errors import ReflectorError
from reflect_middleware.pack import Count, Packed, approximate_tokens, pack, render
from reflect_middleware.prompts import CUT_OFF, EXAMPLE, EXAMPLE_ANSWER, INSTRUCTIONS, RETRY, answer_schema, system_text
from reflect_middleware.reading import Reader, Reading
from reflect_middleware.segments import MOST_SEGMENTS, too_long

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage

    from reflect_middleware.types import Cut, Edit, Skipped

__all__ = ["Answer", "Batch", "ModelReflector", "Reflector", "UnusableAnswerError", "parse_answer", "render"]

BUDGET_TOKENS = 16_000
"""Default size of the whole prompt."""
RETRY_MARK = "\n\n--- asked again ---\n\n"
NOTES_MARK = "\n\n--- with these notes ---\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a reflector proposed, with all that is needed to judge it later."""

    edits: tuple[Edit, ...] = ()
    prompt: str = ""
    """The prompt as sent, the question of a retry included."""
    raw: str = ""
    """The model's own words; both answers if it was asked again."""
    input_tokens: int = 0
    output_tokens: int = 0
    way: str = ""
    """How the model was asked, as in `ReflectionRecord.way`."""
    note: str = ""
    """What was wrong with the answer, e.g. edits that could not be read; empty if nothing."""
    cut: tuple[Cut, ...] = ()
    """The episodes that the prompt does not show in full."""
    skipped: tuple[Skipped, ...] = ()
    """The episodes that were not read, because they say nothing new."""


class Reflector(Protocol):
    """The step of reflection, replaceable as a whole. An async callable of the same form will do too."""

    def __call__(self, batch: Batch, /) -> Answer | Sequence[Edit]:
        """Propose edits; lessons and episodes are named by the batch's handles. Raise to give the batch back."""


class UnusableAnswerError(ReflectorError):
    """The reflector's model failed, or answered twice in a form that cannot be read."""

    def __init__(self, what: str, answer: Answer) -> None:
        super().__init__(f"The reflector gave no usable answer: {what}. Its episodes wait for the next reflection.")
        self.answer = answer
        """The prompt, the raw answers and the tokens so far; no edits."""


class ModelReflector:
    """Reflects with a chat model, asked again once where its answer cannot be used.

    It is asked for structured output by the method that its package prefers, else by `json_schema`, `function_calling`
    or `json_mode` as far as the package names them, else for JSON in text, at last in one message without roles. What
    failed while a later way worked is not tried again.

    Args:
        model: A chat model, or a callable that builds one on first use.
        budget_tokens: Most tokens of the prompt, instructions included.
        count_tokens: Text to its number of tokens; the default is a cautious guess.
        prompt: Instructions that replace ours. The form of the answer is added to them.
        segments: Most calls of one reflection that read long trajectories part by part and take notes, from 0. It does
            so for an episode longer than the prompt that shows less than a tenth of it. A batch's `tokens_left` may
            allow fewer.
        seed: Given to a model whose class has a field for one, unless it is set already.
    """

    def __init__(
        self,
        model: BaseChatModel | Callable[[], BaseChatModel],
        *,
        budget_tokens: int = BUDGET_TOKENS,
        count_tokens: Count = approximate_tokens,
        prompt: str | None = None,
        segments: int = MOST_SEGMENTS,
        seed: int | None = None,
    ) -> None:
        self._given = model
        self._seed = seed
        self._budget = budget_tokens
        self._count = count_tokens
        self._instructions = INSTRUCTIONS if prompt is None else prompt
        self._segments = segments

    @cached_property
    def model(self) -> BaseChatModel:
        """The model, built on first use."""
        given: Any = self._given
        return cast("BaseChatModel", given if hasattr(given, "invoke") else given())

    @cached_property
    def asking(self) -> Asking:
        """The model with what is known of how it can be asked."""
        return Asking(self.model, self._seed)

    def question(self, batch: Batch) -> tuple[str, str]:
        """The system and the user text of the prompt for this batch; a worked example stands between them."""
        system, packed = self._packed(batch)
        return system, packed.text

    def _packed(self, batch: Batch, reading: Reading | None = None) -> tuple[str, Packed]:
        system = system_text(self._instructions, lessons=bool(batch.lessons))
        fixed = self._count(system) + self._count(EXAMPLE) + self._count(EXAMPLE_ANSWER)
        return system, pack(batch, self._budget - fixed, self._count, reading.notes if reading else None)

    def __call__(self, batch: Batch, /) -> Answer:
        """Ask once, and once more with the reason where the answer cannot be used.

        Trajectories of hours are read in segments before that; where no episode says anything new, nobody is asked.

        Raises:
            UnusableAnswerError: Both answers were unusable, or the model failed. It carries prompt, answers and tokens.
        """
        system, packed = self._packed(batch)
        if packed.skipped and not packed.handles:
            return Answer(skipped=packed.skipped)
        reader = Reader(budget=self._budget, count=self._count, most=self._segments)
        reading = reader.read(
            batch, too_long(packed.cut, len(packed.text)), lambda messages: self.reply(messages, None)
        )
        if reading.notes:
            system, packed = self._packed(batch, reading)
        try:
            answer = self._asked(batch, system, packed, reading)
        except UnusableAnswerError as error:
            error.answer = self._account(error.answer, packed, reading)
            raise
        return self._account(replace(answer, edits=told_apart(answer.edits)), packed, reading)

    def _account(self, answer: Answer, packed: Packed, reading: Reading) -> Answer:
        """The answer with what the prompt lacks, and with what was asked, said and used in reading before it."""
        answer = replace(answer, cut=packed.cut, skipped=packed.skipped)
        if not reading.prompt:
            return answer
        used = answer.input_tokens, answer.output_tokens
        if not any(used):  # the provider does not say; what was read before is counted, so this must be too
            used = self._count(answer.prompt), self._count(answer.raw)
        return replace(
            answer,
            prompt=NOTES_MARK.join(filter(None, (reading.prompt, answer.prompt))),
            raw=NOTES_MARK.join(filter(None, (reading.raw, answer.raw))),
            input_tokens=reading.input_tokens + used[0],
            output_tokens=reading.output_tokens + used[1],
        )

    def _asked(self, batch: Batch, system: str, packed: Packed, reading: Reading) -> Answer:
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        if reading.error is not None:
            raise UnusableAnswerError(_raised(reading.error), Answer()) from reading.error
        text, example = packed.text, [HumanMessage(EXAMPLE), AIMessage(EXAMPLE_ANSWER)]
        messages: list[BaseMessage] = [SystemMessage(system), *example, HumanMessage(text)]
        return self.ask(messages, answer_schema(packed.handles, batch.lesson_handles))

    def ask(
        self,
        messages: Sequence[BaseMessage],
        schema: dict[str, Any],
        wrong: Callable[[Sequence[Edit]], str] = lambda _: "",
    ) -> Answer:
        """Ask once, and once more with the reason where the answer cannot be used.

        Args:
            messages: The whole prompt.
            schema: Of the answer.
            wrong: Says what is wrong with edits that could be read; they are asked for again then, once.

        Raises:
            UnusableAnswerError: Both answers could not be read, or the model failed.
        """
        from langchain_core.messages import AIMessage, HumanMessage

        first = self._ask(messages, schema, Answer(prompt="\n\n".join(str(message.text) for message in messages)))
        readable = bool(first.edits) or not first.note
        problems = wrong(first.edits) if readable else first.note
        if not problems:
            self.asking.note(first.way, readable=True)
            return first
        again = RETRY.format(problems=problems)
        messages = [*messages, AIMessage(first.raw or "(no text)"), HumanMessage(again)]
        second = self._ask(messages, None, replace(first, prompt=f"{first.prompt}\n\n{again}"))
        if second.edits or not second.note:
            self.asking.note(first.way, readable=readable)
            return second
        raise UnusableAnswerError(second.note, second)

    def _ask(self, messages: Sequence[BaseMessage], schema: dict[str, Any] | None, so_far: Answer) -> Answer:
        """One question; its answer is added to what came before."""
        try:
            reply, way = self.asking.ask(messages, schema)
        except Exception as error:
            raise UnusableAnswerError(_raised(error), so_far) from error
        texts = said(reply)
        edits, problems = read_answers(texts)
        raw = "\n".join(texts)
        usage = getattr(reply, "usage_metadata", None) or {}
        return replace(
            so_far,
            edits=tuple(edits),
            raw=f"{so_far.raw}{RETRY_MARK}{raw}" if so_far.raw else raw,
            input_tokens=so_far.input_tokens + int(usage.get("input_tokens") or 0),
            output_tokens=so_far.output_tokens + int(usage.get("output_tokens") or 0),
            way=way,
            note="; ".join([*problems, *([CUT_OFF] if problems and was_cut(reply) else [])]),
        )

    def reply(self, messages: list[BaseMessage], schema: dict[str, Any] | None) -> BaseMessage:
        """The model's reply, under the schema where it has structured output."""
        return self.asking.ask(messages, schema)[0]


def _raised(error: Exception) -> str:
    return f"its model raised {type(error).__name__}: {error}"
