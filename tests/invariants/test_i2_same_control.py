"""I2: exceptions, consumers that throw or leave, context variables and callbacks are as with the bare graph."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware.boundary import active
from tests.invariants.graphs import asked, chat, looping, nested, once, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

VAR: ContextVar[str] = ContextVar("users", default="unset")


def failing(error: BaseException) -> Any:
    def fail(state: MessagesState) -> Any:
        raise error

    return StateGraph(MessagesState).add_node("fail", fail).add_edge(START, "fail").compile()


def two_steps(seen: list[str]) -> Any:
    def look(state: MessagesState) -> Any:
        seen.append(VAR.get())
        return {}

    builder = StateGraph(MessagesState).add_node("one", look).add_node("two", look)
    return builder.add_edge(START, "one").add_edge("one", "two").compile()


async def test_the_same_exception_object(shared: Reflection) -> None:
    error = RuntimeError("the user's own")
    with pytest.raises(RuntimeError) as caught:
        shared.wrap(failing(error)).invoke(asked())
    assert caught.value is error
    with pytest.raises(RuntimeError) as caught:
        await shared.wrap(failing(error)).ainvoke(asked())
    assert caught.value is error


@pytest.mark.parametrize("wrapped", [False, True])
def test_context_set_between_chunks_is_seen_by_nodes(shared: Reflection, *, wrapped: bool) -> None:
    def consume() -> list[str]:
        seen: list[str] = []
        graph = shared.wrap(two_steps(seen)) if wrapped else two_steps(seen)
        VAR.set("before")
        for _ in graph.stream(asked(), stream_mode="updates"):
            assert active.get() is None
            VAR.set("between")
        return seen

    assert copy_context().run(consume) == ["before", "between"]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_context_set_between_chunks_is_seen_by_nodes_async(shared: Reflection, *, wrapped: bool) -> None:
    seen: list[str] = []
    graph = shared.wrap(two_steps(seen)) if wrapped else two_steps(seen)
    VAR.set("before")
    async for _ in graph.astream(asked(), stream_mode="updates"):
        assert active.get() is None
        VAR.set("between")
    assert seen == ["before", "between"]
    assert active.get() is None


def test_throw_and_close(shared: Reflection) -> None:
    ends = []
    for graph in (two_steps([]), shared.wrap(two_steps([]))):
        chunks = graph.stream(asked(), stream_mode="updates")
        next(chunks)
        error = KeyError("thrown in")
        with pytest.raises(KeyError) as caught:
            chunks.throw(error)
        assert caught.value is error
        closed = graph.stream(asked(), stream_mode="updates")
        next(closed)
        closed.close()
        ends.append((list(chunks), list(closed), next(closed, "over")))
    assert ends[0] == ends[1]
    assert active.get() is None


async def test_athrow_and_aclose(shared: Reflection) -> None:
    for graph in (two_steps([]), shared.wrap(two_steps([]))):
        chunks = graph.astream(asked(), stream_mode="updates")
        await anext(chunks)
        error = KeyError("thrown in")
        with pytest.raises(KeyError) as caught:
            await chunks.athrow(error)
        assert caught.value is error
        closed = graph.astream(asked(), stream_mode="updates")
        await anext(closed)
        await closed.aclose()
        assert [c async for c in closed] == []


def test_steps_from_different_tasks_and_a_loop_that_ends_with_open_streams(
    shared: Reflection, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Any:
        chunks = shared.wrap(two_steps([])).astream(asked(), stream_mode="updates")
        await asyncio.create_task(anext(chunks))
        assert active.get() is None
        return chunks

    with ThreadPoolExecutor(1) as pool:  # closing the loop closes our generator and langgraph's, both at once
        kept = pool.submit(asyncio.run, main()).result()
    assert kept is not None
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_failed_run_keeps_nothing_alive(shared: Reflection) -> None:
    class Big:
        pass

    def alive(graph_of: Callable[[Any], Any]) -> bool:
        big = Big()
        ref = weakref.ref(big)

        def fail(state: MessagesState, held: Any = big) -> Any:
            raise ValueError("no")

        graph = graph_of(StateGraph(MessagesState).add_node("fail", fail).add_edge(START, "fail").compile())
        with pytest.raises(ValueError, match="no"):
            graph.invoke(asked())
        shared.flush()
        del graph, big, fail
        gc.collect()
        return ref() is not None

    assert not alive(lambda graph: graph)
    assert not alive(shared.wrap)


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.seen.append(f"start {kwargs.get('name')} {kwargs.get('tags')}")

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.seen.append("end")

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append("model")


@pytest.mark.parametrize("as_manager", [False, True], ids=["list", "manager"])
@pytest.mark.parametrize("bound", [False, True], ids=["run", "graph"])
async def test_callbacks_of_the_run_and_of_the_graph_are_all_heard(
    shared: Reflection, *, as_manager: bool, bound: bool
) -> None:
    def heard(wrapper: Callable[[Any], Any], *, run: bool) -> tuple[list[str], list[str], int]:
        mine, graphs = Heard(), Heard()
        given: Any = CallbackManager([mine], inheritable_handlers=[mine]) if as_manager else [mine]
        graph = looping().with_config(callbacks=[graphs]) if bound else looping()
        config = {"callbacks": given} if run else {}
        wrapper(graph).invoke(asked(), config)
        return mine.seen, graphs.seen, len(given.handlers if as_manager else given)

    for run in (False, True):
        assert heard(lambda g: g, run=run) == heard(shared.wrap, run=run)


async def test_ambient_callbacks_reach_a_nested_wrapped_graph(shared: Reflection) -> None:
    def outer(inner: Any) -> Any:
        def call(state: MessagesState) -> Any:
            return inner.invoke(state)

        async def acall(state: MessagesState) -> Any:
            return await inner.ainvoke(state, {"tags": ["inner"]})

        from langchain_core.runnables import RunnableLambda

        return StateGraph(MessagesState).add_node("call", RunnableLambda(call, acall)).add_edge(START, "call").compile()

    seen = []
    for wrapper in (lambda g: g, shared.wrap):
        mine, amine = Heard(), Heard()
        outer(wrapper(looping())).invoke(asked(), {"callbacks": [mine]})
        await outer(wrapper(looping())).ainvoke(asked(), {"callbacks": [amine]})
        seen.append((mine.seen, amine.seen))
    assert seen[0] == seen[1]
    assert seen[0][0].count("model") == 2


def test_a_config_that_langgraph_refuses_is_refused_in_its_words(shared: Reflection) -> None:
    for config in ({"callbacks": "loud"}, {"recursion_limit": 0}, {"configurable": 3}, {"metadata": 7}):
        errors = []
        for graph in (chat(), shared.wrap(chat())):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever langgraph says
                graph.invoke(asked(), config)
            errors.append((type(caught.value), same(caught.value.args)))
        assert errors[0] == errors[1], config


def test_a_wrapped_graph_as_a_node_streams_tokens_to_the_outer_consumer(shared: Reflection) -> None:
    graph = nested(shared.wrap(looping(once(text="three kilos"))))
    tokens = [chunk.text for chunk, _ in graph.stream(asked(), stream_mode="messages", subgraphs=False)]
    deeper = [part[1][0].text for part in graph.stream(asked(), stream_mode="messages", subgraphs=True)]
    assert "".join(deeper).endswith("three kilos")
    assert tokens == [
        c.text for c, _ in nested(looping(once(text="three kilos"))).stream(asked(), stream_mode="messages")
    ]
