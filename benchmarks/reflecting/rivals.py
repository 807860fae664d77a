"""What learns from the same rollouts in other ways: LangMem's prompt optimizer, and an add-only playbook."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage

from benchmarks.reflecting.agent import Rollout, told
from benchmarks.reflecting.world import World

PLAYBOOK_BATCH = 4
"""Rollouts that the playbook's reflector reads at once; its paper has one, which costs four times as much."""
MOST_BULLETS = 8

REFLECTOR = (
    "You are the reflector of an AI agent. Read the agent's runs with their outcomes. Say what went wrong or well and"
    " why, and extract concrete insights that will help in future tasks."
)
CURATOR = (
    "You are the curator of an AI agent's playbook. From the reflector's insights write the bullets that are missing in"
    " the playbook. Only add; do not repeat or rewrite what stands. Each bullet is specific, complete and reusable."
)

UPDATE = (
    "The feedback says what was wrong with the agent's forms. Add to the prompt every requirement that the agent did"
    " not know, with its exact value and condition, so that its next forms are right. Keep what is right."
)
"""What LangMem's optimizer is to do; without any, the local model asks for it and changes nothing."""


class NotInstalledError(RuntimeError):
    """A rival's package is not there."""


def playbook(model: BaseChatModel, world: World, rollouts: Sequence[Rollout]) -> list[str]:
    """An ACE-style playbook: reflect on some runs, then add bullets, never rewriting what stands.

    After the description in "Agentic Context Engineering" (Zhang et al., 2025, arXiv 2510.04618): separate reflector
    and curator, deltas that are only added, and a merge that drops repeated bullets. Left out: counters of bullets
    that helped or harmed, several epochs, and comparing bullets by embeddings.
    """
    bullets: dict[str, str] = {}
    for start in range(0, len(rollouts), PLAYBOOK_BATCH):
        runs = "\n\n".join(map(told, rollouts[start : start + PLAYBOOK_BATCH]))
        standing = "\n".join(f"- {bullet}" for bullet in bullets.values()) or "(empty)"
        about = f"The agent's instructions: {world.about}\n\nThe playbook so far:\n{standing}"
        insights = _listed(model, REFLECTOR, f"{about}\n\nThe runs:\n{runs}", "insights")
        listed = "\n".join(f"- {insight}" for insight in insights)
        for bullet in _listed(model, CURATOR, f"{about}\n\nInsights:\n{listed}", "bullets"):
            bullets.setdefault(" ".join(bullet.lower().split()), bullet)
    return list(bullets.values())


def _listed(model: BaseChatModel, system: str, text: str, name: str) -> list[str]:
    """A list of texts, by JSON schema."""
    items = {"type": "array", "items": {"type": "string", "maxLength": 300}, "maxItems": MOST_BULLETS}
    schema: dict[str, Any] = {
        "title": name,
        "description": f"The {name}.",
        "type": "object",
        "properties": {name: items},
    }
    schema |= {"required": [name], "additionalProperties": False}
    how: dict[str, Any] = {"method": "json_schema"} if hasattr(model, "openai_api_base") else {}
    reply: Any = model.with_structured_output(schema, **how).invoke([SystemMessage(system), HumanMessage(text)])
    found = reply.get(name) if isinstance(reply, dict) else None
    return [str(text) for text in found] if isinstance(found, list) else []


def optimized(model: BaseChatModel, world: World, rollouts: Sequence[Rollout]) -> str:
    """The world's instructions after LangMem's prompt optimizer of kind `prompt_memory`.

    Its other kinds call tools, which the local model's template does not support; this one answers by JSON schema.

    Raises:
        NotInstalledError: The package is not installed.
    """
    try:
        from langmem import create_prompt_optimizer
    except ImportError as error:
        raise NotInstalledError(f"langmem is not installed ({error}); pip install langmem") from error
    optimizer: Any = create_prompt_optimizer(model, kind="prompt_memory")
    feedback = "score {:g}: {}"
    runs = [(list(rollout.messages), feedback.format(rollout.reward, rollout.answer)) for rollout in rollouts]
    prompt = {"name": world.name, "prompt": world.about, "update_instructions": UPDATE, "when_to_update": ""}
    return str(optimizer.invoke({"trajectories": runs, "prompt": prompt})).strip() or world.about


def sentences(text: str, known: str) -> list[str]:
    """The sentences and lines of a prompt that are not in another one: what was learned."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    return [part.strip(" -*") for part in parts if len(part.strip(" -*")) > 1 and part.strip() not in known]
