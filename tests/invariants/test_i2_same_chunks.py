"""I2: given the same model replies, a wrapped graph gives what the bare one gives, chunk for chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.invariants.graphs import asked, asking, calling, chat, fanning, looping, nested, once, same

if TYPE_CHECKING:
    from collections.abc import Callable

    from reflect_middleware import Reflection

MODES: list[Any] = [
    "values",
    "updates",
    "messages",
    "custom",
    "tasks",
    "debug",
    ["values", "updates", "messages", "custom", "tasks", "checkpoints"],
]
GRAPHS: dict[str, tuple[Callable[..., Any], Any]] = {
    "chat": (chat, asked()),
    "loop": (looping, asked()),
    "nested": (nested, asked()),
    "send": (fanning, {"numbers": [1], "seen": []}),
    "asks": (asking, {"question": "sure?"}),
}


def config(*, saved: bool) -> Any:
    return {"configurable": {"thread_id": "1"}} if saved else None


def make(kind: str, *, saved: bool) -> tuple[Any, Any]:
    build, given = GRAPHS[kind]
    return (lambda: build(checkpointer=InMemorySaver()) if saved else build()), given


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("subgraphs", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("kind", ["loop", "nested", "asks"])
async def test_stream_and_astream(shared: Reflection, kind: str, mode: Any, version: Any, *, subgraphs: bool) -> None:
    build, given = make(kind, saved=kind == "asks" or "checkpoints" in mode)
    options: Any = {"stream_mode": mode, "subgraphs": subgraphs, "version": version}
    for_run = config(saved=kind == "asks" or "checkpoints" in mode)
    bare, wrapped = [list(graph.stream(given, for_run, **options)) for graph in (build(), shared.wrap(build()))]
    assert same(bare) == same(wrapped)
    abare, awrapped = [
        [chunk async for chunk in graph.astream(given, for_run, **options)] for graph in (build(), shared.wrap(build()))
    ]
    assert same(abare) == same(awrapped)
    assert bare or kind != "nested"


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", list(GRAPHS))
async def test_invoke_ainvoke_batch_abatch(shared: Reflection, kind: str, *, saved: bool) -> None:
    build, given = make(kind, saved=saved or kind == "asks")
    for_run = config(saved=saved or kind == "asks")
    assert same(build().invoke(given, for_run)) == same(shared.wrap(build()).invoke(given, for_run))
    assert same(await build().ainvoke(given, for_run)) == same(await shared.wrap(build()).ainvoke(given, for_run))
    if not for_run:
        assert same(build().batch([given] * 3)) == same(shared.wrap(build()).batch([given] * 3))
        assert same(await build().abatch([given] * 3)) == same(await shared.wrap(build()).abatch([given] * 3))
    options: Any = {"version": "v2", "stream_mode": "values"}
    assert same(build().invoke(given, for_run, **options)) == same(
        shared.wrap(build()).invoke(given, for_run, **options)
    )


@pytest.mark.parametrize("kind", ["chat", "loop", "nested", "send"])
async def test_astream_events(empty: Reflection, kind: str) -> None:
    build, given = make(kind, saved=False)
    bare, wrapped = [
        [event async for event in graph.astream_events(given, version="v2")] for graph in (build(), empty.wrap(build()))
    ]
    assert same(bare) == same(wrapped)


async def test_astream_events_differ_by_nothing_but_what_the_model_really_got(shared: Reflection) -> None:
    bare, wrapped = [
        [event async for event in graph.astream_events(asked(), version="v2")]
        for graph in (looping(), shared.wrap(looping()))
    ]
    assert [event["event"] for event in bare] == [event["event"] for event in wrapped]
    differing = {b["event"] for b, w in zip(bare, wrapped, strict=True) if same(b) != same(w)}
    assert differing == {"on_chat_model_start", "on_chat_model_end"}  # both hold the model's own input


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
async def test_stream_events_v3(shared: Reflection) -> None:
    if not hasattr(chat(), "_pregel_stream_v3"):
        pytest.skip("this langgraph has no v3 events")
    assert same(nested().stream_events(asked(), version="v3").output) == same(
        shared.wrap(nested()).stream_events(asked(), version="v3").output
    )
    run = await shared.wrap(nested()).astream_events(asked(), version="v3")
    assert same(await run.output()) == same(await (await nested().astream_events(asked(), version="v3")).output())


async def test_as_a_node_of_a_bare_graph(shared: Reflection) -> None:
    def built(wrapper: Callable[[Any], Any]) -> Any:
        return nested(wrapper(looping()))

    for options in ({"stream_mode": MODES[-1], "subgraphs": True}, {"stream_mode": "messages"}):
        bare, wrapped = [list(built(w).stream(asked(), **options)) for w in (lambda g: g, shared.wrap)]
        assert same(bare) == same(wrapped)
        abare, awrapped = [[c async for c in built(w).astream(asked(), **options)] for w in (lambda g: g, shared.wrap)]
        assert same(abare) == same(awrapped)


def test_state_history_and_forks(shared: Reflection) -> None:
    def story(graph: Any) -> list[str]:
        thread: Any = {"configurable": {"thread_id": "1"}}
        seen = [graph.invoke(asked(), thread), graph.invoke(asked("and a pear"), thread)]
        graph.update_state(thread, {"messages": [("user", "by the way")]}, as_node="model")
        history = list(graph.get_state_history(thread))
        seen += [graph.get_state(thread), [(s.next, s.values, s.metadata) for s in history]]
        fork = next(s.config for s in history if s.next == ("tools",))
        return [same(part) for part in [*seen, graph.invoke(None, fork), len(list(graph.get_state_history(thread)))]]

    assert story(looping(checkpointer=InMemorySaver())) == story(shared.wrap(looping(checkpointer=InMemorySaver())))


def test_errors_and_tool_errors(shared: Reflection) -> None:
    def seen(graph: Any) -> Any:
        with pytest.raises(ValueError, match="no scale") as caught:
            graph.invoke(asked())
        return type(caught.value), caught.value.args

    from langgraph.prebuilt import ToolNode

    from tests.invariants.graphs import broken

    def strict() -> Any:
        graph = looping(once(calling("broken")), [broken])
        graph.builder.nodes["tools"].runnable = ToolNode([broken], handle_tool_errors=False)
        return graph.builder.compile()

    assert seen(strict()) == seen(shared.wrap(strict()))
    unknown = once(calling("nothing_like_it"))
    assert same(looping(unknown).invoke(asked())) == same(shared.wrap(looping(unknown)).invoke(asked()))
