"""A model that is no language model: it follows what is stated in its prompt, and reflects by quoting refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda

from benchmarks.reflecting.world import Task, World

LABEL = "SIMULATED: a scripted model, not a language model"


class Scripted(BaseChatModel):
    """Plays one world by rule, so that the machinery can be seen and tested in seconds.

    As an agent it obeys each rule that its system prompt states, by the world's own check; as a reflector it quotes
    each rule that is worded in what it reads.
    """

    world: World
    known: list[Task]
    """The tasks that may come."""
    calls: int = 0
    """How often it was really asked."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        form: str = "",
        **kwargs: Any,
    ) -> ChatResult:
        self.calls += 1
        text = json.dumps(self._answer(form, messages))
        read, written = sum(len(str(m.text).split()) for m in messages), len(text.split())
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The answer is JSON anyway; the schema's title says which."""
        title = schema["title"] if isinstance(schema, dict) else getattr(schema, "__name__", "")

        def read(raw: AIMessage) -> Any:
            parsed: Any = json.loads(str(raw.text))
            return {"raw": raw, "parsed": parsed, "parsing_error": None} if include_raw else parsed

        return self.bind(form=title) | RunnableLambda(read)

    def _answer(self, form: str, messages: Sequence[BaseMessage]) -> dict[str, Any]:
        if form == "form":
            return self._form(messages)
        read = str(messages[-1].text)
        quoted = [rule.text for rule in self.world.rules if rule.text in read]
        if form in ("insights", "bullets"):
            return {form: quoted}
        if form == "GeneralResponse":
            return {"logic": "", "update_prompt": True, "new_prompt": f"{self.world.about}\n" + "\n".join(quoted)}
        return {"edits": [edit for text in quoted if (edit := lesson(text, read))]}

    def _form(self, messages: Sequence[BaseMessage]) -> dict[str, Any]:
        asked = next(str(m.text) for m in messages if isinstance(m, HumanMessage))
        facts = next(task.facts for task in self.known if task.text == asked)
        lines = str(messages[0].text).splitlines()[1:]
        known = [rule for rule in self.world.rules if any(rule.stated_in(line) for line in lines)]
        return self.world.obedient(facts, known)


def lesson(text: str, read: str) -> dict[str, Any] | None:
    """An addition that quotes a rule, with the first episode that has it as evidence; None where none has it."""
    episodes = re.findall(r"<episode id=\"(E\d+)\">(.*?)</episode>", read, re.DOTALL)
    handles = [handle for handle, said in episodes if text in said]
    when = f"filling in the {text.partition(' ')[0]}"
    return {"op": "add", "episodes": handles[:1], "because": text, "when": when, "do": text} if handles else None
