"""Lessons reach each of the agent's own model calls once, in its one system message, and no other model call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware, dynamic_prompt
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from reflect_middleware import get_episode_id, get_lessons, no_lessons
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, asking, calling, chat, fanning, looping, nested, node, once, said, weigh

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

FENCE = "<lessons>"


def fences(model: ScriptedChatModel) -> list[int]:
    """How often the lessons stand in each call's one system message; -1 if they are elsewhere or it is not one."""
    return [_fences(call) for call in model.calls]


def _fences(messages: list[BaseMessage]) -> int:
    system = [message for message in messages if isinstance(message, SystemMessage)]
    others = [str(message.content) for message in messages if not isinstance(message, SystemMessage)]
    if len(system) > 1 or any(FENCE in text for text in others):
        return -1
    return str(system[0].content).count(FENCE) if system else 0


@pytest.fixture(params=["invoke", "ainvoke", "stream", "astream", "batch"])
def drive(request: pytest.FixtureRequest) -> Callable[..., Any]:
    async def run(graph: Any, given: Any, config: Any = None) -> None:
        match request.param:
            case "invoke":
                graph.invoke(given, config)
            case "ainvoke":
                await graph.ainvoke(given, config)
            case "stream":
                list(graph.stream(given, config, stream_mode=["messages", "values"], subgraphs=True))
            case "astream":
                [_ async for _ in graph.astream(given, config, stream_mode=["messages", "values"], subgraphs=True)]
            case _:
                graph.batch([given], config)

    return run


async def test_hand_written_loop(shared: Reflection, drive: Any) -> None:
    model = once()
    await drive(shared.wrap(looping(model)), asked())
    assert fences(model) == [1, 1]


async def test_subgraph_of_a_wrapped_graph(shared: Reflection, drive: Any) -> None:
    model = once()
    await drive(shared.wrap(nested(looping(model))), asked())
    assert fences(model) == [1, 1]


async def test_parallel_sends_without_messages_in_the_state(shared: Reflection, drive: Any) -> None:
    model = ScriptedChatModel(lambda _: "seen")
    await drive(shared.wrap(fanning(model)), {"numbers": [1, 2, 3], "seen": []})
    assert fences(model) == [1, 1, 1]


async def test_create_agent_and_create_react_agent(shared: Reflection, drive: Any) -> None:
    model = once()
    await drive(shared.wrap(create_agent(model, [weigh], system_prompt="You weigh.")), asked())
    assert fences(model) == [1, 1]
    assert str(model.calls[0][0].content).startswith("You weigh.\n\n<lessons>")


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
def test_create_react_agent(shared: Reflection) -> None:
    from langgraph.prebuilt import create_react_agent

    model = once()
    shared.wrap(create_react_agent(model, [weigh], prompt="You weigh.")).invoke(asked())
    assert fences(model) == [1, 1]


@pytest.mark.parametrize(
    ("system", "check"),
    [
        ("You weigh.", lambda content: content.startswith("You weigh.\n\n<lessons>")),
        ("", lambda content: content.startswith("<lessons>")),
        (
            [{"type": "text", "text": "You weigh.", "cache_control": {"type": "ephemeral"}}],
            lambda content: content[0]["cache_control"] and content[1]["type"] == "text" and len(content) == 2,
        ),
    ],
    ids=["text", "empty", "blocks"],
)
def test_system_content_keeps_its_form(shared: Reflection, system: Any, check: Callable[[Any], bool]) -> None:
    model = ScriptedChatModel(lambda _: "done")
    original = SystemMessage(system)
    shared.wrap(chat(model)).invoke({"messages": [original, HumanMessage("go")]})
    assert check(model.calls[0][0].content)
    assert original.content == system
    assert len(model.calls[0]) == 2


def test_sub_agent_in_a_tool_gets_them_a_model_in_a_tools_body_does_not(shared: Reflection) -> None:
    inner, direct, outer = once(), ScriptedChatModel(lambda _: "direct"), once(calling("ask", question="?"))
    helper = create_agent(inner, [weigh])

    @tool
    def ask(question: str) -> str:
        """Ask a helper."""
        direct.invoke(question)
        direct.invoke(question, {"callbacks": [], "tags": ["own"]})
        direct.invoke(question, {"callbacks": [BaseCallbackHandler()]})
        (ChatPromptTemplate.from_messages([("user", "{q}")]) | direct).invoke({"q": question})
        return str(helper.invoke(asked(question))["messages"][-1].text)

    shared.wrap(looping(outer, [ask])).invoke(asked())
    assert fences(outer) == [1, 1]
    assert fences(inner) == [1, 1]
    assert fences(direct) == [0] * 4


async def test_middleware_hooks_of_langchain_get_none(shared: Reflection, drive: Any) -> None:
    model, summary, guard = once(), ScriptedChatModel(lambda _: "a summary"), ScriptedChatModel(lambda _: "fine")

    class Guard(AgentMiddleware):
        def after_model(self, state: Any, runtime: Any) -> None:
            guard.invoke("is this fine?")

    hooks: list[Any] = [SummarizationMiddleware(summary, trigger=("messages", 2), keep=("messages", 1)), Guard()]
    agent = shared.wrap(create_agent(model, [weigh], middleware=hooks))
    await drive(agent, {"messages": [("user", "hi"), ("ai", "yes"), ("user", "how heavy is an apple")]})
    assert set(fences(model)) == {1}
    assert summary.calls
    assert set(fences(summary)) == {0}
    assert set(fences(guard)) == {0}


def test_chains_and_structured_output(shared: Reflection) -> None:
    model = ScriptedChatModel(lambda _: '{"kg": 3}', structured_output=True)
    prompt = ChatPromptTemplate.from_messages([("system", "You weigh."), ("user", "{q}")])
    calls: list[Callable[[Any], Any]] = [
        lambda text: (prompt | model).invoke({"q": text}),
        lambda text: model.with_structured_output(dict).invoke(text),
        lambda text: model.bind_tools([weigh]).invoke([("user", text)]),
        lambda text: model.with_retry().with_config(tags=["x"]).invoke(text),
        lambda text: model.with_fallbacks([model]).invoke([SystemMessage("You weigh."), HumanMessage(text)]),
        lambda text: (prompt | model).batch([{"q": text}, {"q": text}]),
    ]

    def work(state: MessagesState) -> Any:
        for call in calls:
            call("how heavy?")

    shared.wrap(StateGraph(MessagesState).add_node("work", work).add_edge(START, "work").compile()).invoke(asked())
    assert fences(model) == [1] * 7


def test_inject_no_lessons_get_lessons(reflection: Reflection) -> None:
    model, other = ScriptedChatModel(lambda _: "a"), ScriptedChatModel(lambda _: "b")
    seen: list[Any] = []

    def work(state: MessagesState) -> Any:
        seen.extend([get_lessons(), get_episode_id()])
        model.invoke("own")
        with no_lessons():
            model.invoke("exempt")
            seen.append(get_lessons())

    builder = StateGraph(MessagesState).add_node("work", work).add_node("other", node(other))
    graph = builder.add_edge(START, "work").add_edge("work", "other").compile()
    reflection.wrap(graph, inject=lambda metadata: metadata["langgraph_node"] == "other").invoke(asked())
    assert (fences(model), fences(other)) == ([0, 0], [1])
    reflection.wrap(graph).invoke(asked())
    assert (fences(model)[2:], fences(other)[1:]) == ([1, 0], [1])
    assert FENCE in seen[0]
    assert seen[2] == ""
    assert seen[4] == reflection.episodes.list()[0].id
    assert (get_lessons(), get_episode_id()) == ("", None)


@pytest.mark.parametrize("where", ["system", "human"])
def test_a_prompt_with_a_place_for_them(reflection: Reflection, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    model = ScriptedChatModel(lambda _: said())
    place = [("system", "You weigh.")] if where == "human" else []
    prompt = ChatPromptTemplate([*place, (where, "Remember: {lessons} That is all."), ("human", "{question}")])
    chain = prompt.partial(lessons=get_lessons) | model
    builder = StateGraph(MessagesState)
    builder.add_node("ask", lambda state: {"messages": [chain.invoke({"question": state["messages"][-1].text})]})
    graph = reflection.wrap(builder.add_edge(START, "ask").compile())
    graph.invoke(asked())
    monkeypatch.setenv("REFLECT", "off")
    graph.invoke(asked())
    with_lessons, without = ([str(message.content) for message in call] for call in model.calls)
    assert [text.count(FENCE) for text in with_lessons] == ([1, 0] if where == "system" else [0, 1, 0])
    assert any(text.startswith("Remember: <lessons>") and text.endswith("That is all.") for text in with_lessons)
    assert "Remember:  That is all." in without


def test_a_dynamic_prompt_with_a_place_for_them(reflection: Reflection) -> None:
    model = once()

    @dynamic_prompt
    def prompt(request: Any) -> str:
        return f"You weigh. {get_lessons()} Go."

    reflection.wrap(create_agent(model, [weigh], middleware=[prompt])).invoke(asked())
    assert fences(model) == [1, 1]
    assert all(str(call[0].content).endswith("</lessons> Go.") for call in model.calls)


def test_inject_that_raises_injects_nothing(reflection: Reflection) -> None:
    model = once()
    reflection.wrap(looping(model), inject=lambda metadata: metadata["no such key"]).invoke(asked())
    assert fences(model) == [0, 0]


def test_a_fresh_agent_behind_a_resumed_interrupt_gets_lessons(reflection: Reflection) -> None:
    model = once()
    builder = StateGraph(MessagesState)
    builder.add_node("gate", lambda _: {"messages": [("user", asking.__name__)]} if _gate() else {})
    builder.add_node("agent", reflection.wrap(looping(model)))
    builder.add_edge(START, "gate").add_edge("gate", "agent")
    graph, thread = builder.compile(checkpointer=InMemorySaver()), {"configurable": {"thread_id": "1"}}
    graph.invoke(asked(), thread)
    graph.invoke(Command(resume="go"), thread)
    assert fences(model) == [1, 1]
    assert [episode.status for episode in reflection.episodes.list()] == ["completed"]


def _gate() -> Any:
    from langgraph.types import interrupt

    return interrupt("may it start?")


def test_stable_within_a_thread(reflection: Reflection) -> None:
    model = ScriptedChatModel(lambda _: said())
    agent = reflection.wrap(chat(model, checkpointer=InMemorySaver()))
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke(asked("how heavy is an apple"), thread)
    reflection.lessons.add(when="weighing an elephant", do="use the large scale")
    agent.invoke(asked("weighing an elephant, how heavy?"), thread)
    first, second = (str(call[0].content).split("\n") for call in model.calls)
    assert second[: len(first) - 1] == first[:-1]
    assert "large scale" in second[len(first) - 1]
