"""Which model plays: the demo's local one, a server's that speaks the OpenAI protocol, or a scripted one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import LLMResult

from benchmarks.reflecting.remembered import Answers

AGENT_TOKENS, REFLECTOR_TOKENS = 250, 1_400
"""Most tokens of one answer."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Meter(BaseCallbackHandler):
    """Adds up the tokens of a model, read and written, remembered answers included."""

    run_inline = True

    def __init__(self) -> None:
        self.tokens = 0

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Count one call."""
        for generations in response.generations:
            usage = getattr(getattr(generations[0], "message", None), "usage_metadata", None) or {}
            self.tokens += int(usage.get("input_tokens") or 0) + int(usage.get("output_tokens") or 0)


@dataclass(frozen=True, kw_only=True)
class Players:
    """Who acts and who reflects: one model, with two limits on its answers."""

    label: str
    agent: BaseChatModel
    reflector: BaseChatModel
    """Its tokens are counted by `meter`."""
    meter: Meter
    answers: Answers | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of each `Reflection`; empty is the product as installed."""

    def apart(self) -> Players:
        """The same players with a meter of their own, for one of several that play at once."""
        meter = Meter()
        return replace(self, meter=meter, reflector=self.reflector.model_copy(update={"callbacks": [meter]}))


@contextlib.contextmanager
def served(base_url: str, model: str, key: str, cache: Path, *, fresh: bool, at_once: int = 1) -> Iterator[Players]:
    """A model behind an address of the OpenAI protocol; without an address the demo's local one."""
    label = model
    with contextlib.ExitStack() as stack:
        if not base_url:
            base_url, label, model = *stack.enter_context(_local(at_once)), "local"
        answers = Answers(cache, label, fresh=fresh)
        meter = Meter()
        yield Players(
            label=label,
            agent=_limited(base_url, model, key, AGENT_TOKENS, answers=answers),
            reflector=_limited(base_url, model, key, REFLECTOR_TOKENS, answers=answers, meter=meter),
            meter=meter,
            answers=answers,
        )


def _limited(
    base: str, model: str, key: str, tokens: int, *, answers: Answers, meter: Meter | None = None
) -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=model,
        base_url=base,
        api_key=key or "none",
        temperature=0,
        seed=1,
        max_tokens=tokens,
        timeout=1_800,
        max_retries=0,
        cache=answers,
        callbacks=[meter] if meter else None,
    )


@contextlib.contextmanager
def _local(at_once: int) -> Iterator[tuple[str, str]]:
    """The address and the name of the demo's model, downloaded once and served while the block runs."""
    sys.path.insert(0, str(EXAMPLES))
    from expense_desk.local_model import NAME, ensure_model
    from expense_desk.local_server import serving

    with serving(ensure_model(print, lambda *_: None), at_once) as base:
        yield base, NAME
