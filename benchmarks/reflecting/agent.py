"""The agent that acts in a world: a LangGraph graph that fills in a form by JSON, and may use a tool before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from benchmarks.reflecting.world import ACCEPTED, Task, Value, World
from reflect_middleware.asking import begun_in

TAKEN = "The form was taken in."
SUBMIT = "submit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One finished run: what was asked and done, and why it failed."""

    task: Task
    messages: Sequence[AnyMessage]
    form: Mapping[str, Any]
    causes: tuple[str, ...]
    """The rules that the form breaks; empty for a success."""
    fields: tuple[int, int]
    """Ruled fields that are right, of how many in this task."""
    answer: str
    """What the environment said, whether the agent was told or not."""

    @property
    def reward(self) -> float:
        """1 where the form was accepted, else 0."""
        return 0.0 if self.causes else 1.0


def build_agent(
    model: BaseChatModel, world: World, tasks: Mapping[str, Task], *, system: str = "", habit: Mapping[str, Value]
) -> CompiledStateGraph[Any]:
    """Compile the agent.

    Args:
        model: Fills in the form.
        world: The environment.
        tasks: By thread, the task of a run.
        system: Instructions instead of the world's own.
        habit: Values that the form's fields are fixed to.
    """
    schema = world.schema_with(habit)
    how: dict[str, Any] = {"method": "json_schema"} if hasattr(model, "openai_api_base") else {}
    fill_in = model.with_structured_output(schema, include_raw=True, **how)
    instructions = SystemMessage(system or world.about)

    def fill(state: MessagesState) -> dict[str, list[AnyMessage]]:
        reply = asked(fill_in, [instructions, *state["messages"]])
        form = reply["parsed"] if isinstance(reply, dict) and isinstance(reply["parsed"], dict) else {}
        used = any(isinstance(message, ToolMessage) for message in state["messages"])
        name = world.tool if world.tool and form.get("tool") == world.tool and not used else SUBMIT
        call = {"name": name, "args": form, "id": f"call-{len(state['messages'])}", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    def act(state: MessagesState, config: RunnableConfig) -> dict[str, list[AnyMessage]]:
        call = last_call(state["messages"])
        task = tasks[str(config["configurable"]["thread_id"])]
        said = world.use(task.facts) if call["name"] == world.tool else answer_to(world, task, call["args"])[0]
        return {"messages": [ToolMessage(said, tool_call_id=call["id"], name=call["name"])]}

    def after(state: MessagesState) -> Literal["fill", "__end__"]:
        return "fill" if state["messages"][-1].name == world.tool and world.tool else "__end__"

    builder = StateGraph(MessagesState)
    builder.add_node("fill", fill)
    builder.add_node("act", act)
    builder.add_edge(START, "fill")
    builder.add_edge("fill", "act")
    builder.add_conditional_edges("act", after)
    return builder.compile(checkpointer=InMemorySaver(), name=world.name)


def asked(model: Runnable[Any, Any], messages: Sequence[AnyMessage]) -> Any:
    """The model's reply; none where it found no end, which openai's client raises."""
    try:
        return model.invoke(list(messages))
    except Exception as error:
        if begun_in(error) is None:
            raise
        return None


def answer_to(world: World, task: Task, form: Mapping[str, Any]) -> tuple[str, str]:
    """What the agent is told of its form, and what is known of it."""
    answer = world.answer(world.broken(task.facts, form))
    return (answer if world.told == "result" or answer == ACCEPTED else TAKEN), answer


def last_call(messages: Sequence[AnyMessage]) -> Any:
    """The last tool call."""
    return next(m.tool_calls[-1] for m in reversed(messages) if isinstance(m, AIMessage) and m.tool_calls)


def run_task(
    agent: CompiledStateGraph[Any], world: World, task: Task, thread: str, switches: Any
) -> tuple[Any, Rollout]:
    """Run the agent on one task; gives the run's result, and the run with its judgement."""
    config: Any = {"configurable": {"thread_id": thread, "reflect": switches}}
    result = agent.invoke({"messages": [HumanMessage(task.text)]}, config)
    form = last_call(result["messages"])["args"]
    right, broken = world.right(task.facts), world.broken(task.facts, form)
    rollout = Rollout(
        task=task,
        messages=result["messages"],
        form=form,
        causes=tuple(rule.name for rule in broken),
        fields=(len(right) - len(broken), len(right)),
        answer=answer_to(world, task, form)[1],
    )
    return result, rollout


def told(rollout: Rollout) -> str:
    """A run as text, for reflectors that are not ours: task, steps, results and the judgement."""
    lines = [f"task: {rollout.task.text}"]
    for message in rollout.messages[1:]:
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        lines += [f"call {call['name']} {json.dumps(call['args'])}" for call in calls]
        lines += [f"result: {message.text}"] if isinstance(message, ToolMessage) else []
    return "\n".join([*lines, f"reward: {rollout.reward:g} ({rollout.answer})"])
