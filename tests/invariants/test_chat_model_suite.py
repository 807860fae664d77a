"""LangChain's own tests of chat models, passed by models whose every call gets lessons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from reflect_middleware.boundary import active
from reflect_middleware.wrap import LINK
from tests.invariants.conftest import LESSON
from tests.invariants.graphs import USAGE, asked, chat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Reflection

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests.chat_models import ChatModelTests
from langchain_tests.unit_tests import ChatModelUnitTests

CALLS = (
    "test_invoke", "test_ainvoke", "test_stream", "test_astream", "test_batch", "test_abatch", "test_conversation",
    "test_double_messages_conversation", "test_usage_metadata", "test_stop_sequence", "test_message_with_name",
)  # fmt: skip
BUILT = ("test_init", "test_init_streaming", "test_bind_tool_pydantic", "test_standard_params")
seen: list[list[BaseMessage]] = []
"""What the small model was given, call by call."""


class Small(BaseChatModel):
    """As small as a provider's class can be: no method but what it must have."""

    model: str = "small"

    @property
    def _llm_type(self) -> str:
        return "small"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        seen.append(messages)
        told = AIMessage("done", usage_metadata=USAGE, response_metadata={"model_name": self.model})
        return ChatResult(generations=[ChatGeneration(message=told)])

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        seen.append(messages)
        yield ChatGenerationChunk(message=AIMessageChunk("do"))
        yield ChatGenerationChunk(message=AIMessageChunk("ne", chunk_position="last"))

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)


@pytest.fixture(autouse=True)
def session(shared: Reflection) -> Iterator[None]:
    """As inside a node of a wrapped graph, for the whole test."""
    agent = shared.wrap(chat())
    running = agent.__dict__[LINK].begin(agent, asked(), None, None)
    running.prepare()
    assert LESSON in running.block
    token = active.set(running)
    yield
    active.reset(token)


class TestSmall(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Small

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {}


def some(home: type[Any], *names: str) -> dict[str, Any]:
    """Some of a standard class's tests, for a class of our own; the guard against leaving any out goes."""
    return {name: getattr(home, name) for name in names} | {"test_no_overrides_DO_NOT_OVERRIDE": None}


class TestProvider(ChatModelTests):
    """A provider's class, as far as it needs neither a network nor a key of its own."""

    @pytest.fixture(autouse=True, params=[("langchain_openai", "ChatOpenAI"), ("langchain_anthropic", "ChatAnthropic")])
    def _provider(self, request: pytest.FixtureRequest) -> None:
        package, name = request.param
        self.given = getattr(pytest.importorskip(package), name)

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return self.given

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "m", "api_key": "k"}

    locals().update(some(ChatModelUnitTests, *BUILT))


class TestCalls(ChatModelTests):
    """The tests of a provider's integration that a model without a network can pass."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return Small

    @pytest.fixture(autouse=True)
    def _lessons(self) -> Iterator[None]:
        seen.clear()
        yield
        assert seen
        for messages in seen:
            assert [str(message.content).count("<lessons>") for message in messages] == [1] + [0] * (len(messages) - 1)

    locals().update(some(ChatModelIntegrationTests, *CALLS))
