"""What an agent is told anyway is noted with its episode, and its lessons are no part of it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, SystemMessage

from reflect_middleware import testing
from reflect_middleware.briefing import briefing
from reflect_middleware.record import Noted
from reflect_middleware.render import STEP_CHARS


def noted(*systems: str, tools: Any = None) -> Noted:
    given = [SystemMessage(system) for system in systems]
    step = Noted("model", "m", "n", "", "r", given, 0.0, 0.0)
    step.tools = tools
    return step


def weigh(item: str) -> str:
    """Weigh an item on the scale of the desk."""
    return f"{item}: 3 kg"


def test_system_text_and_tools_are_kept_and_lessons_are_not() -> None:
    model = testing.ScriptedChatModel(lambda _: AIMessage("done"))
    with testing.reflection(every=9) as reflection:
        reflection.lessons.add(when="weighing", do="use grams for it")
        agent = create_agent(model, [weigh], system_prompt="You weigh things.", middleware=[reflection.middleware()])
        agent.invoke({"messages": "how heavy is an apple"})
        reflection.flush()
        (episode,) = reflection.episodes.list()
    assert "use grams" in model.prompts[0]
    assert episode.instructions.startswith("You weigh things.")
    assert "grams" not in episode.model_dump_json().replace(episode.output, "")
    assert all("You weigh" not in step.input for step in episode.trajectory)


OPENAI = {
    "type": "function",
    "function": {
        "name": "weigh",
        "description": "Weighs.",
        "parameters": {"properties": {"item": {"description": "What."}}},
    },
}
ANTHROPIC = {
    "name": "weigh",
    "description": "Weighs.",
    "input_schema": {"properties": {"item": {"description": "What."}}},
}


@pytest.mark.parametrize("tool", [OPENAI, ANTHROPIC])
def test_tools_are_read_in_the_forms_of_the_providers(tool: dict[str, Any]) -> None:
    assert briefing([noted("Be kind.", tools=[tool])], "", str) == "Be kind.\nweigh: Weighs.\nitem: What."


@pytest.mark.parametrize("tools", [None, "x", [1, None], [{}], [{"name": "x", "parameters": 3}], [{"function": 7}],
                                   [{"name": "x", "parameters": {"properties": {"y": 1}}}]])  # fmt: skip
def test_tools_of_an_unknown_form_say_nothing(tools: Any) -> None:
    assert briefing([noted("Be kind.", tools=tools)], "", str) == "Be kind."


def test_each_piece_once_without_the_block_cleaned_and_bounded() -> None:
    steps = [noted("Be kind.\n\nBLOCK"), noted("Be kind."), noted("Also say please, Jane.")]
    assert briefing(steps, "BLOCK", lambda text: text.replace("Jane", "…")) == "Be kind.\nAlso say please, …."
    long = briefing([noted("x" * 99_999)], "", str)
    assert len(long) <= STEP_CHARS
    assert briefing([noted()], "", str) == ""
