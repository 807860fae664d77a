"""Ask a model what went well, what did not, and what to try next time: a batch in, edits out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

from reflect_middleware.answer import parse_answer
from reflect_middleware.batch import Batch
from reflect_middleware.errors import ReflectorError
from reflect_middleware.pack import Count, approximate_tokens, render
from reflect_middleware.prompts import EXAMPLE, EXAMPLE_ANSWER, INSTRUCTIONS, RETRY, answer_schema, system_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import RunnableConfig

    from reflect_middleware.types import Edit

__all__ = ["Answer", "Batch", "ModelReflector", "Reflector", "UnusableAnswerError", "parse_answer", "render"]

BUDGET_TOKENS = 16_000
"""Default size of the whole prompt."""
RETRY_MARK = "\n\n--- asked again ---\n\n"


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
    note: str = ""
    """What was wrong with the answer, e.g. edits that could not be read; empty if nothing."""


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
    """Reflects with a chat model: structured output where it has it, else JSON in text, asked again once.

    Args:
        model: A chat model, or a callable that builds one on first use.
        budget_tokens: Most tokens of the prompt, instructions included.
        count_tokens: Text to its number of tokens; the default is a cautious guess.
        prompt: Instructions that replace ours. The form of the answer is added to them.
    """

    def __init__(
        self,
        model: BaseChatModel | Callable[[], BaseChatModel],
        *,
        budget_tokens: int = BUDGET_TOKENS,
        count_tokens: Count = approximate_tokens,
        prompt: str | None = None,
    ) -> None:
        self._given = model
        self._budget = budget_tokens
        self._count = count_tokens
        self._instructions = INSTRUCTIONS if prompt is None else prompt

    @cached_property
    def model(self) -> BaseChatModel:
        """The model, built on first use."""
        given: Any = self._given
        return cast("BaseChatModel", given if hasattr(given, "invoke") else given())

    def question(self, batch: Batch) -> tuple[str, str]:
        """The system and the user text of the prompt for this batch; a worked example stands between them."""
        system = system_text(self._instructions, lessons=bool(batch.lessons))
        fixed = self._count(system) + self._count(EXAMPLE) + self._count(EXAMPLE_ANSWER)
        return system, render(batch, self._budget - fixed, self._count)

    def __call__(self, batch: Batch, /) -> Answer:
        """Ask once, and once more with the reason where the answer cannot be used.

        Raises:
            UnusableAnswerError: Both answers were unusable, or the model failed. It carries prompt, answers and tokens.
        """
        from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

        system, text = self.question(batch)
        example = [HumanMessage(EXAMPLE), AIMessage(EXAMPLE_ANSWER)]
        messages: list[BaseMessage] = [SystemMessage(system), *example, HumanMessage(text)]
        schema = answer_schema(batch.episode_handles, batch.lesson_handles)
        first = self._ask(messages, schema, Answer(prompt=f"{system}\n\n{EXAMPLE}\n\n{EXAMPLE_ANSWER}\n\n{text}"))
        if first.edits or not first.note:
            return first
        again = RETRY.format(problems=first.note)
        messages += [AIMessage(first.raw or "(no text)"), HumanMessage(again)]
        second = self._ask(messages, None, replace(first, prompt=f"{first.prompt}\n\n{again}"))
        if second.edits or not second.note:
            return second
        raise UnusableAnswerError(second.note, second)

    def _ask(self, messages: list[BaseMessage], schema: dict[str, Any] | None, so_far: Answer) -> Answer:
        """One question; its answer is added to what came before."""
        try:
            reply = self.reply(messages, schema)
        except Exception as error:
            raise UnusableAnswerError(f"its model raised {type(error).__name__}: {error}", so_far) from error
        raw = answer_text(reply)
        edits, problems = parse_answer(raw)
        usage = getattr(reply, "usage_metadata", None) or {}
        return replace(
            so_far,
            edits=tuple(edits),
            raw=f"{so_far.raw}{RETRY_MARK}{raw}" if so_far.raw else raw,
            input_tokens=so_far.input_tokens + int(usage.get("input_tokens") or 0),
            output_tokens=so_far.output_tokens + int(usage.get("output_tokens") or 0),
            note="; ".join(problems),
        )

    def reply(self, messages: list[BaseMessage], schema: dict[str, Any] | None) -> BaseMessage:
        """The model's reply, under the schema where it has structured output."""
        return self._structured(messages, schema) or self.model.invoke(messages, config=_config())

    def _structured(self, messages: list[BaseMessage], schema: dict[str, Any] | None) -> BaseMessage | None:
        """The reply under the schema; None where the model, its server or this call cannot do that."""
        if schema is None:
            return None
        try:
            result = self.model.with_structured_output(schema, include_raw=True).invoke(messages, config=_config())
        except Exception:  # noqa: BLE001 - how "unsupported" is said differs by provider; the plain call tells the rest
            return None
        raw = result.get("raw") if isinstance(result, dict) else None
        return cast("BaseMessage | None", raw)


def answer_text(message: BaseMessage) -> str:
    """The words of a reply; the arguments of its tool calls where structured output came as one."""
    calls = getattr(message, "tool_calls", None) or []
    said = str(message.text).strip()
    return said if said and not calls else "\n".join(json.dumps(call["args"], ensure_ascii=False) for call in calls)


def _config() -> RunnableConfig:
    """No parent's callbacks: the reflector's tokens must never enter the user's stream."""
    return {"callbacks": [], "run_name": "reflect", "tags": ["reflect"], "metadata": {}}
