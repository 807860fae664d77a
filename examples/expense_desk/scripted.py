"""A model that is no language model: it follows lessons to the letter and reflects by quoting rejections."""

from __future__ import annotations

import json
import re
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel

from expense_desk.agent import PROMPT
from expense_desk.desk import ATTACHED, FIELDS, KINDS, Facts, date_as

BANNER = "SCRIPTED MODEL: not a real language model"
CLAUSE = re.compile(rf"\b({'|'.join(FIELDS)}): (must (?:<number>|[^;\n\"<)])+)")
LESSON = re.compile(rf"^- When filling in the ({'|'.join(FIELDS)})[^:]*: (.+?)(?: \(seen: .*)?$", re.MULTILINE)
EPISODE = re.compile(r"<episode \w+=\"(E\d+)\">(.*?)</episode>", re.DOTALL)
DATE = re.compile(r"(?:the )?(?:(\d+)\w* (?:of )?([A-Z][a-z]+)|([A-Z][a-z]+) (\d+)\w*,) (\d{4})")
MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


class ScriptedModel(BaseChatModel):
    """Plays the agent and the reflector by rule, so that the demo's machinery can be seen and tested in seconds."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        system = "\n".join(str(m.text) for m in messages if isinstance(m, SystemMessage))
        answer = fill_in(system, messages) if system.startswith(PROMPT) else reflect(str(messages[-1].text))
        text = json.dumps(answer)
        read, written = sum(len(str(m.text).split()) for m in messages), len(text.split())
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The answer is JSON anyway; the schema only decides what it is read into."""

        def read(raw: AIMessage) -> Any:
            parsed: Any = json.loads(str(raw.text))
            if isinstance(schema, type) and issubclass(schema, BaseModel):
                parsed = schema.model_validate(parsed)
            return {"raw": raw, "parsed": parsed, "parsing_error": None} if include_raw else parsed

        return self | RunnableLambda(read)


def fill_in(system: str, messages: list[BaseMessage]) -> dict[str, Any]:
    """The agent: an unknowing claim, changed by the lessons in the prompt and by the desk's last answer."""
    said = [str(m.text) for m in messages if isinstance(m, (HumanMessage, ToolMessage))]
    facts = facts_in(said[0])
    claim: dict[str, Any] = {
        "amount": facts.cents / 100,
        "date": date_as("YYYY-MM-DD", facts),
        "cost_centre": str(facts.cost_centre),
        "account": facts.kind,
        "entity": "head office",
        "receipt": "none",
    }
    for field, rule in [*LESSON.findall(system), *CLAUSE.findall(said[-1])]:
        claim[field] = obey(rule, claim[field], facts)
    return claim


def facts_in(text: str) -> Facts:
    """What the request says."""
    day, month, other_month, other_day, year = DATE.findall(text)[0]
    kind = next(k for k in KINDS if k in text.lower())
    return Facts(
        cents=round(100 * float(re.findall(r"\d+\.\d\d", text)[0])),
        year=int(year),
        month=MONTHS.index((month or other_month)[:3]) // 3 + 1,
        day=int(day or other_day),
        cost_centre=int(re.findall(r"[Cc]ost centre (?:is )?(\d+)", text)[0]),
        kind=kind,
    )


def obey(rule: str, value: Any, facts: Facts) -> Any:
    """The value after one rule of the form `must …`."""
    words = rule.removeprefix("must ").strip()
    if words == "be in cents, not euros":
        return facts.cents
    if words == "be a negative number":
        return -facts.cents / 100
    if "<number>" in words:
        return words.removeprefix("be ").replace("<number>", str(facts.cost_centre))
    if limit := re.search(r"above (\d+) euros", words):
        return ATTACHED if facts.cents > 100 * int(limit[1]) else value
    wanted, _, kind = words.removeprefix("be ").partition(" for ")
    if kind and kind != facts.kind:
        return value
    return date_as(wanted, facts) if "YYYY" in wanted else wanted


def reflect(prompt: str) -> dict[str, Any]:
    """The reflector: each rule that a rejection states and no lesson has becomes a lesson."""
    sources: dict[tuple[str, str], list[str]] = {}
    for handle, text in EPISODE.findall(prompt):
        for field, rule in dict.fromkeys(CLAUSE.findall(text)):
            sources.setdefault((field, rule.strip()), []).append(handle)
    known = prompt.partition("<episode")[0]
    edits = [
        {
            "op": "add",
            "episodes": handles,
            "because": f"{field}: {rule}",
            "when": f"filling in the {field} of a claim",
            "do": rule,
        }
        for (field, rule), handles in sources.items()
        if rule not in known
    ]
    return {"edits": edits}
