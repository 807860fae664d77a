"""A wrong argument is refused when the Reflection is built, by an error that says what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, MessagesState, StateGraph

from reflect_middleware import ReflectError, Reflection, testing
from reflect_middleware.errors import ConfigurationError, TemplateError, UnknownStoreError, WrapError
from reflect_middleware.hints import RULES


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"every": 0}, r"every is 0; allowed: a whole number of episodes from 1 on"),
        ({"every": True}, r"every is True"),
        ({"every": 2.5}, r"every is 2.5"),
        ({"model": 7}, r"model is 7; allowed: a chat model, a name"),
        ({"top_k": -1}, r"top_k is -1; allowed: a whole number from 0 on"),
        ({"token_budget": "many"}, r"token_budget is 'many'"),
        ({"min_similarity": 2}, r"min_similarity is 2; allowed: a cosine"),
        ({"run": "later"}, r"run is 'later'; allowed: 'background' \| 'inline' \| 'external'"),
        ({"approval": "me"}, r"approval is 'me'; allowed: 'auto' \| 'human'"),
        ({"durability": "none"}, r"durability is 'none'"),
        ({"reward_wait": -1}, r"reward_wait is -1; allowed: seconds"),
        ({"retrieve_timeout": 0}, r"retrieve_timeout is 0; allowed: seconds, a number above 0"),
        ({"lease": float("nan")}, r"lease is nan"),
        ({"exit_timeout": float("inf")}, r"exit_timeout is inf"),
        ({"learn": "yes"}, r"learn is 'yes'; allowed: True or False"),
        ({"reward": 0.5}, r"reward is 0.5; allowed: a callable, 'self' or None"),
        ({"reward": "me"}, r"reward is 'me'; allowed: a callable, 'self' or None"),
        ({"reward": "self", "reflector": list}, r"model is None; allowed: a chat model with reward='self'"),
        (
            {"signals": "repair"},
            r"signals is 'repair'; allowed: True, False, or a tuple of names from failed, limit.*\('repair',\)",
        ),
        ({"signals": ("repair", "luck")}, r"signals is \('repair', 'luck'\)"),
        ({"signals": 1}, r"signals is 1"),
        ({"decision": "yes"}, r"decision is 'yes'; allowed: a callable or None"),
        ({"redact": "x"}, r"redact is 'x'; allowed: a callable or None"),
        ({"max_lessons": 0}, r"max_lessons is 0"),
        ({"consolidate_every": -1}, r"consolidate_every is -1; allowed: a whole number from 0 on"),
        ({"consolidate_every": True}, r"consolidate_every is True"),
        ({"seed": -1}, r"seed is -1; allowed: a whole number from 0 on"),
        ({"seed": "7"}, r"seed is .7."),
        ({"ledger": "sqlite:///x.db"}, r"namespace is None.*shared ledger"),
        ({"ledger": "x.db", "namespace": ("a",)}, r"ledger is 'x.db'; allowed: a SQLAlchemy URL"),
        ({"embeddings": 3}, r"embeddings is 3"),
        ({"store": 3}, r"store is 3|3"),
    ],
)
def test_wrong_values(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ReflectError, match=says) as caught:
        Reflection(**{"path": tmp_path, "model": None} | settings)
    assert isinstance(caught.value, (ValueError, LookupError))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("signals", "on"),
    [(True, tuple(RULES)), (False, ()), (("thanks", "error"), ("error", "thanks")), ([], ())],
)
def test_signals(tmp_path: Path, signals: Any, on: tuple[str, ...]) -> None:
    assert Reflection(path=tmp_path, signals=signals)._options.signals == on


def test_an_agent_of_its_own_cannot_judge_itself(tmp_path: Path) -> None:
    reflection = Reflection(path=tmp_path)
    graph = StateGraph(MessagesState).add_node("a", lambda _: {}).add_edge(START, "a").compile()
    with pytest.raises(ConfigurationError, match=r"reward is 'self'; allowed: a callable or None"):
        reflection.wrap(graph, reward="self")  # type: ignore[arg-type]


def test_unknown_store_names_the_installed_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownStoreError, match=r"(?s)'quadrant'.*chroma.*exact"):
        Reflection(path=tmp_path, store="quadrant")


@pytest.mark.parametrize("namespace", ["acme", (), ("a", ""), ("{", "b"), ("{0}",), ("{a.b}",), (1,)])
def test_bad_namespace_templates(tmp_path: Path, namespace: Any) -> None:
    with pytest.raises(TemplateError, match="allowed"):
        Reflection(path=tmp_path, namespace=namespace)


def test_a_template_is_no_namespace_to_list_lessons_of(tmp_path: Path) -> None:
    with Reflection(path=tmp_path, namespace=("acme", "{user_id}"), embeddings="hashing") as reflection:
        with pytest.raises(TemplateError, match=r"Pass namespace="):
            reflection.lessons.list()
        assert reflection.lessons.list(namespace=("acme", "ann")) == ()


def test_building_touches_nothing(tmp_path: Path) -> None:
    elsewhere = "postgresql+psycopg://nowhere/x"
    Reflection("openai:gpt-5-mini", path=tmp_path / "new", ledger=elsewhere, namespace=("a",)).close()
    assert not (tmp_path / "new").exists()


def test_path_is_made_absolute_once_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Reflection(path="here") as reflection:
        monkeypatch.chdir("/")
        assert reflection._options.path == tmp_path / "here"
    monkeypatch.setenv("REFLECT_PATH", str(tmp_path / "there"))
    with Reflection(path="here") as reflection:
        assert reflection._options.path == tmp_path / "there"


def builder() -> StateGraph[Any, Any, Any, Any]:
    """A graph that is not compiled."""
    made = StateGraph(MessagesState)
    made.add_node("a", lambda _: {})
    made.add_edge(START, "a")
    return made


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (builder(), r"StateGraph that is not compiled.*wrap\(builder.compile\(\)\)"),
        (testing.ScriptedChatModel(["a"]), r"ScriptedChatModel.*allowed: a compiled LangGraph graph"),
        (None, r"NoneType"),
    ],
)
def test_wrapping_something_else(given: Any, says: str) -> None:
    with testing.reflection() as reflection:
        with pytest.raises(WrapError, match=says) as caught:
            reflection.wrap(given)
        assert isinstance(caught.value, TypeError)


def test_a_missing_namespace_value_means_no_lessons_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = testing.ScriptedChatModel(lambda _: "ok")
    made = StateGraph(MessagesState)
    made.add_node("a", lambda state: {"messages": [model.invoke(state["messages"])]})
    made.add_edge(START, "a")
    with testing.reflection(namespace=("acme", "{user_id}")) as reflection:
        reflection.lessons.add(when="a", do="b", namespace=("acme", "ann"))
        graph = reflection.wrap(made.compile(name="desk"))
        for value in ({}, {"user_id": ""}, {}):
            graph.invoke({"messages": "hello"}, {"configurable": value})
        assert reflection.episodes.list() == ()
    lines = [r.getMessage() for r in caplog.records if "nothing learned" in r.getMessage()]
    assert lines == ["reflect: no lessons and nothing learned for 'desk': the run has no value for user_id"]


def test_errors_have_the_parent_that_fits() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(UnknownStoreError, LookupError)
    kinds = (ConfigurationError, UnknownStoreError, WrapError, TemplateError)
    assert all(issubclass(kind, ReflectError) for kind in kinds)
