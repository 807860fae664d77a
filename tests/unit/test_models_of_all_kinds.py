"""Chat models of every kind as reflectors. Those named Simulated behave as a kind of model does; the rest are real."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from reflect_middleware.asking import Asking, begun_in, seeded, ways
from reflect_middleware.batch import Batch
from reflect_middleware.reflect import ModelReflector, UnusableAnswerError
from reflect_middleware.types import Edit, Episode

AT = datetime(2026, 1, 2, tzinfo=UTC)
BATCH = Batch(
    namespace=("n",),
    episodes=(Episode(id="e", namespace=("n",), task="Refund it", status="completed", started_at=AT),),
)
ADD = {"op": "add", "episodes": ["E1"], "because": "needs a manager", "when": "a refund", "do": "ask a manager"}
GOOD = json.dumps({"edits": [ADD]})
EDIT = Edit(**ADD)
CALL = {"name": "lesson_edits", "args": {"edits": [ADD]}, "id": "c1"}


class RefusedError(Exception):
    """What a provider's client raises."""

    def __init__(self, status: int, said: str = "not supported") -> None:
        super().__init__(f"Error code: {status} - {said}")
        self.status_code = status


class Simulated(BaseChatModel):
    """A chat model that answers by what it was asked for, and notes it: tools, a response_format, or nothing."""

    reply: Any = GOOD
    """A text, a message, an error, or a function of the call's arguments that gives one."""
    calls: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "simulated"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.calls.append({"messages": messages, **kwargs})
        reply = self.reply({"messages": messages, **kwargs}) if callable(self.reply) else self.reply
        if isinstance(reply, Exception):
            raise reply
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply) if isinstance(reply, str) else reply)])

    @property
    def asked(self) -> list[str]:
        """How each call asked."""
        return [_kind(call) for call in self.calls]


def _kind(call: dict[str, Any]) -> str:
    if "tools" in call:
        return "tools"
    if form := call.get("response_format"):
        return str(form["type"])
    return "text" if len(call["messages"]) > 1 else "one message"


class SimulatedWithTools(Simulated):
    """Has tool calls, and langchain's default structured output made of them."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools)


class SimulatedWithMethods(Simulated):
    """Lets one choose the method, as the packages of OpenAI, Mistral, Ollama and Groq do."""

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Literal["function_calling", "json_mode", "json_schema"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Any:
        asked = (
            self.bind(tools=[schema]) if method == "function_calling" else self.bind(response_format={"type": method})
        )
        return asked | RunnableLambda(lambda message: {"raw": message, "parsed": None, "parsing_error": None})


def only(*kinds: str, reply: Any = GOOD, status: int = 400) -> Any:
    """Answers what is asked in these ways and refuses all others."""
    return lambda call: reply if _kind(call) in kinds else RefusedError(status)


def blocks(*content: Any, **fields: Any) -> AIMessage:
    return AIMessage(list(content), **fields)


THOUGHT = {"type": "thinking", "thinking": 'maybe {"edits": []}', "signature": "x"}
ANSWERS = {
    "plain text": GOOD,
    "markdown fences": f"Here you are:\n```json\n{GOOD}\n```\nI hope it helps.",
    "think tags": f'<think>maybe {{"edits": []}} or so</think>\n{GOOD}',
    "thoughts whose beginning is in the prompt": f'maybe {{"edits": []}}\n</think>\n\n{GOOD}',
    "Magistral's thoughts": f'[THINK]maybe {{"edits": []}}[/THINK]{GOOD}',
    "harmony channels": f'<|channel|>analysis<|message|>{{"edits": []}}<|end|><|channel|>final<|message|>{GOOD}',
    "a list that is text again": json.dumps({"edits": json.dumps([ADD])}),
    "half JSON": GOOD[:-2],
    "single quotes and a comma": GOOD.replace('"', "'")[:-2] + ",]}",
    "Anthropic's thinking and text": blocks(THOUGHT, {"type": "text", "text": GOOD}),
    "Anthropic's text and call": blocks(
        {"type": "text", "text": "I will note that down."},
        {"type": "tool_use", "id": "c1", "name": "lesson_edits", "input": {"edits": [ADD]}},
        tool_calls=[CALL],
    ),
    "Gemini's parts": blocks({"type": "thinking", "thinking": "hm"}, GOOD[:20], GOOD[20:]),
    "OpenAI's reasoning items": blocks(
        {"type": "reasoning", "id": "r", "summary": []}, {"type": "text", "text": GOOD, "annotations": []}
    ),
    "a call and no words": AIMessage("", tool_calls=[CALL]),
    "a call and words": AIMessage("Noted.", tool_calls=[CALL]),
    "an empty call and the answer in words": AIMessage(GOOD, tool_calls=[{**CALL, "args": {}}]),
    "a call whose arguments are no JSON": AIMessage(
        "", invalid_tool_calls=[{"name": "lesson_edits", "args": GOOD[:-1], "id": "c", "error": "no JSON"}]
    ),
    "a call of the list alone": AIMessage("", tool_calls=[{**CALL, "args": {"edits": json.dumps([ADD])}}]),
    "reasoning apart": AIMessage(GOOD, additional_kwargs={"reasoning_content": 'maybe {"edits": []}'}),
}
UNUSABLE = {
    "nothing": "",
    "no content at all": AIMessage([]),
    "only thoughts": blocks(THOUGHT),
    "thoughts that were cut off": AIMessage(
        f"<think>maybe {GOOD} but then", response_metadata={"finish_reason": "length"}
    ),
    "a refusal": "I'm sorry, but I can't help with that.",
    "OpenAI's refusal": AIMessage("", additional_kwargs={"refusal": "I can't help with that."}),
    "a refusal block": blocks({"type": "refusal", "refusal": "I can't help with that."}),
    "an empty call": AIMessage("", tool_calls=[{**CALL, "args": {}}]),
    "other JSON": '{"answer": 42}',
}


@pytest.mark.parametrize("kind", [Simulated, SimulatedWithTools, SimulatedWithMethods])
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_answer_is_read_in_whatever_shape_it_comes(kind: type[Simulated], answer: Any) -> None:
    model = kind(reply=answer)
    made = ModelReflector(model)(BATCH)
    assert made.edits == (EDIT,)
    assert len(model.calls) == 1
    assert GOOD[:20] in made.raw or "edits" in made.raw


@pytest.mark.parametrize("kind", [Simulated, SimulatedWithTools, SimulatedWithMethods])
@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_answer_is_asked_once_more_in_plain_words(kind: type[Simulated], answer: Any) -> None:
    model = kind(reply=answer)
    with pytest.raises(UnusableAnswerError, match="no usable answer"):
        ModelReflector(model)(BATCH)
    assert model.asked[1:] == ["text"]
    mended = kind(reply=lambda call: GOOD if len(call["messages"]) > 4 else answer)
    assert ModelReflector(mended)(BATCH).edits == (EDIT,)


def test_a_refusal_in_words_of_its_own_can_be_read_back() -> None:
    with pytest.raises(UnusableAnswerError) as caught:
        ModelReflector(Simulated(reply=UNUSABLE["OpenAI's refusal"]))(BATCH)
    assert "I can't help with that." in caught.value.answer.raw


@pytest.mark.parametrize("said", [{"finish_reason": "length"}, {"stop_reason": "max_tokens"},
                                  {"finish_reason": "MAX_TOKENS"}, {"done_reason": "length"},
                                  {"incomplete_details": {"reason": "max_output_tokens"}}])  # fmt: skip
def test_an_answer_that_was_cut_off_keeps_its_whole_edits_or_is_asked_to_be_shorter(said: dict[str, Any]) -> None:
    whole = json.dumps({"edits": [ADD, {**ADD, "do": "call the bank"}]})
    made = ModelReflector(Simulated(reply=AIMessage(whole[:-30], response_metadata=said)))(BATCH)
    assert made.edits == (EDIT,)
    assert "cut off at the limit of tokens" in made.note
    model = Simulated(
        reply=lambda call: GOOD if len(call["messages"]) > 4 else AIMessage("Well", response_metadata=said)
    )
    assert ModelReflector(model)(BATCH).edits == (EDIT,)
    assert "answer with fewer edits" in str(model.calls[1]["messages"][-1].content)


# How a model is asked, and that this is found out once.


WAYS = {"tools": "function_calling"}


@pytest.mark.parametrize(
    ("works", "order"),
    [
        ("json_schema", ["json_schema"]),
        ("tools", ["json_schema", "tools"]),
        ("json_mode", ["json_schema", "tools", "json_mode"]),
        ("text", ["json_schema", "tools", "json_mode", "text"]),
        ("one message", ["json_schema", "tools", "json_mode", "text", "one message"]),
    ],
)
def test_what_works_is_found_in_order_and_remembered(works: str, order: list[str]) -> None:
    model = SimulatedWithMethods(reply=only(works))
    reflector = ModelReflector(model)
    assert [reflector(BATCH).way for _ in range(3)] == [WAYS.get(works, works)] * 3
    assert model.asked == [*order, works, works]


@pytest.mark.parametrize(
    ("kind", "works", "way"),
    [(Simulated, "text", "text"), (SimulatedWithTools, "tools", "tools"), (SimulatedWithTools, "text", "text")],
)
def test_a_class_that_lets_one_choose_no_method_has_tool_calls_or_none(
    kind: type[Simulated], works: str, way: str
) -> None:
    model = kind(reply=only(works))
    reflector = ModelReflector(model)
    assert [reflector(BATCH).way for _ in range(2)] == [way] * 2
    assert model.asked[-2:] == [works, works]
    assert len(model.asked) <= 3


def test_without_roles_all_is_said_in_one_message() -> None:
    model = Simulated(reply=only("one message"))
    reflector = ModelReflector(model)
    assert reflector(BATCH).edits == (EDIT,)
    (message,) = model.calls[-1]["messages"]
    assert message.type == "human"
    for part in ("You review finished runs", "Answer with JSON only", "Refund it"):
        assert part in message.content
    model.reply = lambda call: "no" if len(model.calls) == 3 else GOOD  # the retry, too
    assert reflector(BATCH).edits == (EDIT,)
    assert model.asked[-2:] == ["one message", "one message"]
    assert "could not be used" in model.calls[-1]["messages"][0].content


@pytest.mark.parametrize(
    "error",
    [
        RefusedError(429, "slow down"),
        RefusedError(401, "no such key"),
        RefusedError(503, "overloaded"),
        ConnectionError("refused"),
        RefusedError(400, "This model's maximum context length is 8192 tokens"),
        type("ContentFilterFinishReasonError", (Exception,), {})("filtered"),
    ],
)
def test_what_no_other_way_would_change_is_asked_once_and_forgets_nothing(error: Exception) -> None:
    model = SimulatedWithMethods(reply=error)
    reflector = ModelReflector(model)
    with pytest.raises(UnusableAnswerError, match="its model raised"):
        reflector(BATCH)
    assert model.asked == ["json_schema"]
    model.reply = GOOD
    assert reflector(BATCH).way == "json_schema"


def test_an_error_of_the_server_is_tried_in_another_way_but_not_remembered() -> None:
    model = SimulatedWithMethods(reply=only("text", status=500))
    reflector = ModelReflector(model)
    assert reflector(BATCH).way == "text"
    model.reply = GOOD
    assert reflector(BATCH).way == "json_schema"


def test_where_nothing_works_the_last_error_is_told_and_nothing_is_remembered_as_working() -> None:
    model = SimulatedWithMethods(reply=RefusedError(400, "no"))
    with pytest.raises(UnusableAnswerError, match="400 - no"):
        ModelReflector(model)(BATCH)
    assert len(model.calls) == 5


def test_a_structured_way_that_gives_nothing_twice_gives_way_to_the_next() -> None:
    model = SimulatedWithMethods(reply=lambda call: GOOD if _kind(call) in ("tools", "text") else "{}")
    reflector = ModelReflector(model)
    assert [reflector(BATCH).way for _ in range(4)] == ["text", "text", "function_calling", "function_calling"]
    assert model.asked == ["json_schema", "text", "json_schema", "text", "tools", "tools"]


def test_one_bad_answer_in_between_changes_nothing() -> None:
    replies = iter(["{}", GOOD, GOOD, "{}", GOOD, GOOD])
    model = SimulatedWithMethods(reply=lambda call: next(replies))
    reflector = ModelReflector(model)
    assert [reflector(BATCH).way for _ in range(4)] == ["text", "json_schema", "text", "json_schema"]


def test_a_chain_of_models_is_asked_too() -> None:
    first, second = SimulatedWithTools(reply=ConnectionError("away")), SimulatedWithTools(reply=GOOD)
    model: Any = first.with_fallbacks([second])
    assert ModelReflector(model)(BATCH).edits == (EDIT,)
    with_options: Any = Simulated(reply=GOOD).bind(stop=["x"])
    assert ModelReflector(with_options)(BATCH).edits == (EDIT,)


def test_an_answer_that_a_client_raises_because_it_was_cut_is_read() -> None:
    class Said:
        content = GOOD[:-2]

    class Choice:
        message = Said()

    class Usage:
        prompt_tokens, completion_tokens = 5, 7

    class Completion:
        choices, usage = (Choice(),), Usage()

    class LengthFinishReasonError(Exception):
        completion = Completion()

    model = SimulatedWithMethods(reply=LengthFinishReasonError("length"))
    made = ModelReflector(model)(BATCH)
    assert (made.edits, made.input_tokens, made.output_tokens, len(model.calls)) == ((EDIT,), 5, 7, 1)
    Said.content = ""
    assert begun_in(LengthFinishReasonError("length")) is None


# Seeds.


class SimulatedWithSeed(SimulatedWithTools):
    """Has a field for a seed, as most packages have, and one for the temperature."""

    seed: int | None = None
    temperature: float | None = None
    takes_it: bool = True
    seen: list[Any] = Field(default_factory=list)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.seen.append((self.seed, self.temperature))
        if self.seed is not None and not self.takes_it:
            raise RefusedError(400, "Unsupported parameter: 'seed'")
        return super()._generate(messages, *args, **kwargs)


def test_a_seed_is_given_to_a_model_that_takes_one_and_the_temperature_left_alone() -> None:
    model = SimulatedWithSeed()
    ModelReflector(model, seed=7)(BATCH)
    ModelReflector(model)(BATCH)
    warm = SimulatedWithSeed(seed=1, temperature=0.9)
    ModelReflector(warm, seed=7)(BATCH)
    assert [*model.seen, *warm.seen] == [(7, None), (None, None), (1, 0.9)]
    assert model.seed is None
    assert ModelReflector(Simulated(), seed=7)(BATCH).edits == (EDIT,)


def test_a_server_that_takes_no_seed_is_asked_without_from_then_on() -> None:
    model = SimulatedWithSeed(takes_it=False)
    reflector = ModelReflector(model, seed=7)
    assert [reflector(BATCH).way for _ in range(2)] == ["tools", "tools"]
    assert [seed for seed, _ in model.seen] == [7, None, None]


# The classes of the providers' packages, against a server that is played.

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def completion(**message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None, **message}}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}


def tool_call(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "lesson_edits", "arguments": arguments}}


def played(module: Any, answer: Any, sent: list[dict[str, Any]]) -> Any:
    def handle(request: Any) -> Any:
        sent.append(json.loads(request.content))
        status, body = answer(sent[-1])
        return module.Response(status, json=body)

    return module.Client(transport=module.MockTransport(handle))


def openai_model(answer: Any, sent: list[dict[str, Any]], **settings: Any) -> Any:
    openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    client = played(pytest.importorskip("httpx"), answer, sent)
    known = {"model": "m", "api_key": "k", "base_url": "http://x", "http_client": client, "max_retries": 0}
    return openai.ChatOpenAI(**known, **settings)


REFUSED = {"error": {"message": "response_format is not supported by this model", "type": "invalid_request_error"}}


def test_chat_openai_by_its_schema_with_a_seed() -> None:
    sent: list[dict[str, Any]] = []
    reflector = ModelReflector(openai_model(lambda _: (200, completion(content=GOOD)), sent), seed=7)
    made = reflector(BATCH)
    assert (made.edits, made.way, made.input_tokens, made.output_tokens) == ((EDIT,), "json_schema", 11, 7)
    assert sent[0]["response_format"]["type"] == "json_schema"
    assert sent[0]["seed"] == 7
    assert "temperature" not in sent[0]


def test_chat_openai_on_a_server_that_refuses_response_format() -> None:
    def answer(request: dict[str, Any]) -> Any:
        if "response_format" in request:
            return 400, REFUSED
        return 200, completion(tool_calls=[tool_call(GOOD)]) if "tools" in request else completion(content="?")

    sent: list[dict[str, Any]] = []
    reflector = ModelReflector(openai_model(answer, sent))
    assert [reflector(BATCH).way for _ in range(2)] == ["function_calling"] * 2
    assert ["response_format" in request for request in sent] == [True, False, False]


def test_chat_openai_on_a_server_with_plain_text_only() -> None:
    def answer(request: dict[str, Any]) -> Any:
        structured = "response_format" in request or "tools" in request
        return (400, REFUSED) if structured else (200, completion(content=f"Sure:\n```json\n{GOOD}\n```"))

    sent: list[dict[str, Any]] = []
    reflector = ModelReflector(openai_model(answer, sent))
    assert [reflector(BATCH).way for _ in range(2)] == ["text"] * 2
    assert len(sent) == 5


def test_chat_openai_whose_structured_answer_is_cut_off() -> None:
    whole = json.dumps({"edits": [ADD, {**ADD, "do": "call the bank"}]})
    cut = completion(content=whole[:-30])
    cut["choices"][0]["finish_reason"] = "length"
    made = ModelReflector(openai_model(lambda _: (200, cut), []))(BATCH)
    assert made.edits == (EDIT,)
    assert "cut off" in made.note
    assert made.output_tokens == 7


def test_chat_openai_that_refuses_the_content() -> None:
    with pytest.raises(UnusableAnswerError) as caught:
        ModelReflector(openai_model(lambda _: (200, completion(refusal="I can't help with that.")), []))(BATCH)
    assert "I can't help with that." in caught.value.answer.raw


def test_chat_openai_by_the_responses_api() -> None:
    answer = {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "error": None,
        "output": [{"type": "reasoning", "id": "rs_1", "summary": []},
                   {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                    "content": [{"type": "output_text", "text": GOOD, "annotations": []}]}],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "incomplete_details": None,
        "instructions": None, "metadata": {}, "temperature": 1, "top_p": 1,
        "usage": {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18,
                  "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    }  # fmt: skip
    for seed in (None, 7):
        model = openai_model(lambda _: (200, answer), [], use_responses_api=True)
        assert ModelReflector(model, seed=seed)(BATCH).edits == (EDIT,)


def test_chat_anthropic_with_thoughts_and_a_call() -> None:
    anthropic = pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is not installed")
    import anthropic as sdk

    said = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use",
        "stop_sequence": None, "usage": {"input_tokens": 11, "output_tokens": 7},
        "content": [{"type": "thinking", "thinking": 'maybe {"edits": []}', "signature": "x"},
                    {"type": "text", "text": "Noted."},
                    {"type": "tool_use", "id": "c", "name": "lesson_edits", "input": {"edits": [ADD]}}],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []
    home = sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]  # httpx or httpx2
    model = anthropic.ChatAnthropic(model="m", api_key="k", max_tokens=10, max_retries=0)
    model.__dict__["_client"] = sdk.Client(api_key="k", http_client=played(home, lambda _: (200, said), sent))
    made = ModelReflector(model, seed=7)(BATCH)
    assert (made.edits, made.way, made.input_tokens) == ((EDIT,), "function_calling", 11)
    assert sent[0]["tools"][0]["name"] == "lesson_edits"
    assert "seed" not in sent[0]


def test_ways_and_seeds_of_what_is_no_chat_model() -> None:
    bare: Any = RunnableLambda(lambda _: AIMessage(GOOD))
    assert ways(bare) == ("text", "one message")
    assert seeded(bare, 7) is bare
    assert Asking(bare).ask([AIMessage("x")], {})[1] == "text"
