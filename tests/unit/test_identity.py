"""Whose run it is: on a server the client writes `configurable` and `context`, the server writes who the user is."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from reflect_middleware import testing
from reflect_middleware.namespaces import VERIFIED, principal_of, rule
from tests.invariants.graphs import asking
from tests.loop.conftest import agent

HOSTILE = {"user_id": "victim", "agent": "victim", "principal": "victim", "reflect": {"principal": "victim"}}


def served(user: str | None, **client: Any) -> dict[str, Any]:
    """A config as the LangGraph server makes it: the client's configurable, then what the server knows."""
    known = {"run_id": "r", "thread_id": "t", "graph_id": "g", "assistant_id": "a", "langgraph_request_id": None}
    return {"configurable": HOSTILE | client | known | ({} if user is None else {VERIFIED: user})}


@pytest.mark.parametrize("context", [None, {VERIFIED: "victim"}, HOSTILE | {VERIFIED: "victim"}])
@pytest.mark.parametrize("field", [VERIFIED, "principal"])
def test_the_verified_user_wins_over_what_the_client_writes(field: str, context: Any) -> None:
    config = served("alice", **{VERIFIED: "victim"})
    principal = principal_of(config, overrides=True)
    found, _ = rule(("acme", f"{{{field}}}", "{agent}")).resolve(config, context, "desk", principal)
    assert found == ("acme", "alice", "desk")
    assert principal == "alice"


@pytest.mark.parametrize("user", [None, ""])
@pytest.mark.parametrize("context", [None, {VERIFIED: "victim"}])
def test_without_a_verified_user_there_is_no_namespace(user: str | None, context: Any) -> None:
    found, why = rule(("acme", f"{{{VERIFIED}}}")).resolve(served(user), context, "desk")
    assert (found, why) == (None, f"the run has no value for {VERIFIED}")


def test_run_context_wins_over_configurable() -> None:
    found, _ = rule(("acme", "{user_id}")).resolve(served("alice"), {"user_id": "alice"}, "desk")
    assert found == ("acme", "alice")


def test_the_principal_that_a_run_names_counts_only_where_runs_may_name_one() -> None:
    assert principal_of(served(None), overrides=True) == "victim"
    assert principal_of(served(None), overrides=False) == ""
    assert principal_of(served("alice"), overrides=True) == "alice"


def test_a_wrapped_node_of_a_served_graph_has_the_same_user() -> None:
    seen: list[str] = []
    model = testing.ScriptedChatModel(lambda messages: seen.append(messages[0].text) or "ok")
    with testing.reflection(namespace=("acme", f"{{{VERIFIED}}}")) as reflection:
        reflection.lessons.add(when="refund", do="as alice learned", namespace=("acme", "alice"))
        reflection.lessons.add(when="refund", do="as the victim learned", namespace=("acme", "victim"))
        builder = StateGraph(MessagesState, context_schema=dict)
        builder.add_node("agent", reflection.wrap(agent(model)))
        graph: Any = builder.add_edge(START, "agent").compile()
        graph.invoke({"messages": "refund"}, served("alice"), context={VERIFIED: "victim"})
        (episode,) = reflection.episodes.list(namespace=("acme", "alice"))
        assert (episode.principal, episode.namespace) == ("alice", ("acme", "alice"))
    assert "as alice learned" in seen[0]
    assert "victim" not in seen[0]


def test_a_run_that_another_user_resumes_stays_where_it_began() -> None:
    with testing.reflection(namespace=("acme", f"{{{VERIFIED}}}"), every=1) as reflection:
        graph = reflection.wrap(asking(checkpointer=InMemorySaver()))
        graph.invoke({"question": "sure?"}, {"configurable": {"thread_id": "1", VERIFIED: "alice"}})
        graph.invoke(Command(resume="yes"), {"configurable": {"thread_id": "1", VERIFIED: "manager"}})
        (episode,) = reflection.episodes.list(namespace=("acme", "alice"))
        assert (episode.status, episode.principal, len(episode.run_ids)) == ("completed", "alice", 2)
        assert reflection.episodes.list(namespace=("acme", "manager")) == ()
