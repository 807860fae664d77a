"""Provider classes convert the messages again when they build the request: what goes out holds the lessons once."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from tests.invariants.graphs import asked, chat

if TYPE_CHECKING:
    from reflect_middleware import Reflection


class Lifting(BaseChatModel):
    """As langchain_openai's codex model: takes the system text out of the messages, then builds the request from what
    is left, which converts once more."""

    sent: list[dict[str, Any]] = []  # noqa: RUF012 - a pydantic field

    @property
    def _llm_type(self) -> str:
        return "lifting"

    def _payload(self, value: Any) -> dict[str, Any]:
        return {"messages": [(m.type, m.content) for m in self._convert_input(value).to_messages()]}

    def _lifted(self, value: Any) -> dict[str, Any]:
        messages = self._convert_input(value).to_messages()
        system = [m.content for m in messages if isinstance(m, SystemMessage)]
        rest = [m for m in messages if not isinstance(m, SystemMessage)]
        return {"instructions": "\n".join(map(str, system)), **self._payload(rest)}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.sent.append(self._lifted(messages))
        return ChatResult(generations=[ChatGeneration(message=AIMessage("done"))])


async def test_a_class_that_lifts_system_text_out(shared: Reflection) -> None:
    model = Lifting()
    agent = shared.wrap(chat(model))
    agent.invoke(asked())
    await agent.ainvoke(asked())
    list(agent.stream(asked(), stream_mode="messages"))
    assert len(model.sent) == 3
    for payload in model.sent:
        assert payload["instructions"].count("<lessons>") == 1
        assert [kind for kind, _ in payload["messages"]] == ["human"]


OPENAI = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "done"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
RESPONSES = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "error": None,
    "output": [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "done", "annotations": []}]}],
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "incomplete_details": None, "instructions": None,
    "metadata": {}, "temperature": 1, "top_p": 1,
    "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "input_tokens_details": {"cached_tokens": 0},
              "output_tokens_details": {"reasoning_tokens": 0}},
}  # fmt: skip
ANTHROPIC = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "done"}],
    "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip


def sending(httpx: Any, answer: dict[str, Any], sent: list[dict[str, Any]]) -> tuple[Any, Any]:
    """HTTP clients that keep the requests and give one answer."""

    def handle(request: Any) -> Any:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    transport = httpx.MockTransport(handle)
    return httpx.Client(transport=transport), httpx.AsyncClient(transport=transport)


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_chat_openai(shared: Reflection, *, responses: bool) -> None:
    openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    sent: list[dict[str, Any]] = []
    httpx = pytest.importorskip("httpx")
    client, aclient = sending(httpx, RESPONSES if responses else OPENAI, sent)
    model = openai.ChatOpenAI(
        model="m", api_key="k", base_url="http://x", http_client=client, http_async_client=aclient,
        use_responses_api=responses, max_retries=0,
    )  # fmt: skip
    agent = shared.wrap(chat(model))
    given = {"messages": [("system", "You weigh."), ("user", "how heavy?")]}
    agent.invoke(given)
    await agent.ainvoke(given)
    await agent.ainvoke(asked())
    await aclient.aclose()
    assert len(sent) == 3
    for payload in sent:
        assert json.dumps(payload).count("<lessons>") == 1
        messages = payload["input" if responses else "messages"]
        assert [message["role"] for message in messages] == ["system", "user"]


async def test_chat_anthropic(shared: Reflection) -> None:
    anthropic = pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is not installed")
    import anthropic as sdk

    sent: list[dict[str, Any]] = []
    home = sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]  # httpx or httpx2
    client, aclient = sending(home, ANTHROPIC, sent)
    model = anthropic.ChatAnthropic(model="m", api_key="k", max_tokens=10, max_retries=0)
    model.__dict__["_client"] = sdk.Client(api_key="k", http_client=client)
    model.__dict__["_async_client"] = sdk.AsyncClient(api_key="k", http_client=aclient)
    agent = shared.wrap(chat(model))
    agent.invoke({"messages": [("system", "You weigh."), ("user", "how heavy?")]})
    await agent.ainvoke(asked())
    await aclient.aclose()
    assert [json.dumps(payload["system"]).count("<lessons>") for payload in sent] == [1, 1]
    assert [json.dumps(payload).count("<lessons>") for payload in sent] == [1, 1]
    assert all([message["role"] for message in payload["messages"]] == ["user"] for payload in sent)
