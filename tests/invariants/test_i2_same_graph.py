"""I2: the wrapped graph is the same graph to whoever looks at it, copies it or wraps it again."""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import MessagesState, StateGraph
from langgraph.pregel import Pregel

from reflect_middleware import testing
from reflect_middleware.boundary import active
from reflect_middleware.errors import WrapError
from reflect_middleware.wrap import LINK
from tests.invariants.graphs import asked, chat, looping, nested, same

if TYPE_CHECKING:
    from reflect_middleware import Reflection


def test_class_schemas_and_drawing(shared: Reflection) -> None:
    bare = nested()
    wrapped = shared.wrap(bare)
    assert wrapped is not bare
    assert isinstance(wrapped, type(bare))
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(wrapped), name) == getattr(type(bare), name)
    for name in ("get_input_jsonschema", "get_output_jsonschema", "get_context_jsonschema"):
        assert getattr(wrapped, name)() == getattr(bare, name)()
    assert wrapped.get_graph(xray=True).draw_mermaid() == bare.get_graph(xray=True).draw_mermaid()
    assert [name for name, _ in wrapped.get_subgraphs()] == [name for name, _ in bare.get_subgraphs()]
    assert wrapped.get_name() == bare.get_name()
    for name in ("stream", "astream", "copy", "invoke", "ainvoke"):
        assert inspect.signature(getattr(wrapped, name)) == inspect.signature(getattr(bare, name))
        assert getattr(wrapped, name).__doc__ == getattr(bare, name).__doc__
    assert inspect.isgeneratorfunction(wrapped.stream)
    assert inspect.isasyncgenfunction(wrapped.astream)


def test_the_bare_graph_stays_bare(reflection: Reflection) -> None:
    bare = chat()
    reflection.wrap(bare)
    bare.invoke(asked())
    assert reflection.episodes.list() == ()


def test_drawn_inside_another_graph(shared: Reflection) -> None:
    assert nested(shared.wrap(looping())).get_graph(xray=1).draw_mermaid() == nested().get_graph(xray=1).draw_mermaid()


@pytest.mark.parametrize(
    "derive",
    [
        copy.copy,
        lambda graph: graph.copy(),
        lambda graph: graph.with_config(tags=["a"]),
        lambda graph: graph.with_config({"callbacks": []}).copy({"name": "other"}),
        lambda graph: graph.with_retry(stop_after_attempt=1),
    ],
    ids=["copy", ".copy", "with_config", "both", "with_retry"],
)
def test_copies_still_learn(reflection: Reflection, derive: Any) -> None:
    derived = derive(reflection.wrap(chat()))
    assert derived.invoke(asked())["messages"][-1].text == "done"
    assert len(reflection.episodes.list()) == 1


def test_a_deep_copy_still_reports_to_the_same_reflection(reflection: Reflection) -> None:
    wrapped = reflection.wrap(chat())
    deep = copy.deepcopy(wrapped)  # langgraph's own deep copies do not run
    assert deep.__dict__[LINK] is wrapped.__dict__[LINK]


def test_a_copy_takes_a_checkpointer(reflection: Reflection) -> None:
    served = reflection.wrap(chat()).copy(update={"checkpointer": InMemorySaver()})
    served.invoke(asked(), {"configurable": {"thread_id": "1"}})
    assert served.get_state({"configurable": {"thread_id": "1"}}).values["messages"]
    assert reflection.episodes.list(thread_id="1")


def test_wrapped_twice_is_the_same_object(reflection: Reflection) -> None:
    wrapped = reflection.wrap(chat(), name="desk", namespace=("a",))
    assert reflection.wrap(wrapped) is wrapped
    assert reflection.wrap(wrapped, name="desk", namespace=("a",)) is wrapped


def test_wrapped_again_with_another_name_or_reflection_the_newer_counts(reflection: Reflection) -> None:
    first = reflection.wrap(chat())
    second = reflection.wrap(first, name="refunds")
    assert second is not first
    with testing.reflection() as other:
        third = other.wrap(second)
        third.invoke(asked())
        assert len(other.episodes.list()) == 1
    assert reflection.episodes.list() == ()
    second.invoke(asked())
    first.invoke(asked())
    assert sorted(episode.agent for episode in reflection.episodes.list()) == ["LangGraph", "refunds"]


@pytest.mark.parametrize(
    "given", [StateGraph(MessagesState), lambda x: x, None, "agent"], ids=["builder", "function", "None", "str"]
)
def test_what_is_no_graph_is_refused(shared: Reflection, given: Any) -> None:
    with pytest.raises(WrapError, match="compile"):
        shared.wrap(given)


async def test_functional_graphs(reflection: Reflection) -> None:
    model = testing.ScriptedChatModel(lambda _: "four")

    @task
    def look(text: str) -> str:
        return str(model.invoke(text).text)

    @entrypoint()
    def flow(text: str) -> str:
        return look(text).result()

    wrapped: Pregel[Any, Any, Any, Any] = reflection.wrap(flow)
    assert wrapped.invoke("two and two?") == "four"
    assert list(wrapped.stream("two and two?")) == list(flow.stream("two and two?"))
    reflection.flush()
    episode = reflection.episodes.list()[0]
    assert (episode.task, episode.output, episode.status) == ("two and two?", "four", "completed")
    assert [step.node for step in episode.trajectory] == ["look"]
    assert "unit" in model.prompts[0]


def test_nothing_of_ours_stays_in_state_checkpoint_or_config(reflection: Reflection) -> None:
    """I3 as well: lessons reach the model and nothing else."""
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

    model = testing.ScriptedChatModel(lambda _: "done")
    saver = InMemorySaver(serde=JsonPlusSerializer())
    agent = reflection.wrap(chat(model, checkpointer=saver))
    config: Any = {
        "configurable": {"thread_id": "1", "reflect": {"task_key": "k"}},
        "metadata": {"m": 1},
        "tags": ["t"],
    }
    before = copy.deepcopy(config)
    chat(checkpointer=InMemorySaver()).invoke(asked(), before)  # older langgraphs write into the metadata
    result = agent.invoke(asked(), config)
    chunks = list(agent.stream(asked(), config, stream_mode=["messages", "debug", "updates", "values"]))
    assert config == before
    assert active.get() is None
    assert "every weight" in model.prompts[0]
    kept = [list(saver.list(None)), saver.storage, saver.writes, saver.blobs, result, chunks, agent.get_state(config)]
    assert "every weight" not in repr(kept)
    episode = reflection.episodes.list()[0]
    assert "every weight" not in episode.model_dump_json()
    assert [exposure.shown for exposure in episode.exposures] == [True]
    bare = chat(model, checkpointer=InMemorySaver())
    bare.invoke(asked(), config)
    assert same(bare.get_state(config).metadata) == same(
        next(iter(agent.get_state_history(config, limit=1))).metadata
    ).replace("'step': 4", "'step': 1")
