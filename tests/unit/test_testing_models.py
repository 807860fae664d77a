from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, ValidationError

from reflect_middleware import testing
from reflect_middleware.testing import HashingEmbeddings, ScriptedChatModel

CALL = {"name": "refund", "args": {"order": 1182}, "id": "call-1", "type": "tool_call"}


@tool
def refund(order: int) -> str:
    """Refund an order."""
    return f"refunded {order}"


def invoke(model, text):
    return model.invoke(text)


def ainvoke(model, text):
    return asyncio.run(model.ainvoke(text))


def stream(model, text):
    return sum_of(model.stream(text))


def astream(model, text):
    async def collect():
        return [chunk async for chunk in model.astream(text)]

    return sum_of(asyncio.run(collect()))


def sum_of(chunks):
    first, *rest = chunks
    for chunk in rest:
        first = first + chunk
    return first


@pytest.fixture(params=[invoke, ainvoke, stream, astream])
def ask(request):
    return request.param


def test_answers_come_in_order_and_calls_are_kept(ask):
    model = ScriptedChatModel(["one  two ", AIMessage("three", id="mine"), lambda messages: messages[-1].text.upper()])
    assert [ask(model, text).text for text in ("first", "second", "third")] == ["one  two ", "three", "THIRD"]
    assert [[message.text for message in call] for call in model.calls] == [["first"], ["second"], ["third"]]
    assert model.prompts == ["first", "second", "third"]


def test_a_message_keeps_its_id_and_tool_calls(ask):
    model = ScriptedChatModel([AIMessage("looking", id="mine", tool_calls=[CALL])])
    answer = ask(model, "go")
    assert (answer.id, answer.text, answer.tool_calls) == ("mine", "looking", [CALL])


def test_usage_is_counted_in_words(ask):
    answer = ask(ScriptedChatModel(["four words come back"]), "two words")
    assert answer.usage_metadata == {"input_tokens": 2, "output_tokens": 4, "total_tokens": 6}


def test_usage_that_the_script_gives_is_kept(ask):
    usage = {"input_tokens": 9, "output_tokens": 1, "total_tokens": 10}
    assert ask(ScriptedChatModel([AIMessage("ok", usage_metadata=usage)]), "go").usage_metadata == usage


def test_errors_are_raised(ask):
    model = ScriptedChatModel([ConnectionError("down"), "up"])
    with pytest.raises(ConnectionError, match="down"):
        ask(model, "go")
    assert ask(model, "go").text == "up"


def test_one_function_answers_every_call(ask):
    model = ScriptedChatModel(lambda messages: f"{len(messages)} message")
    assert [ask(model, "go").text for _ in range(3)] == ["1 message"] * 3


def test_an_empty_script_says_so(ask):
    with pytest.raises(IndexError, match="called 1 times and has 0 answers"):
        ask(ScriptedChatModel(), "go")


def test_later_changes_of_a_message_do_not_change_the_record():
    model = ScriptedChatModel(["ok"])
    message = HumanMessage("before")
    model.invoke([message])
    message.content = "after"
    assert model.prompts == ["before"]


def test_a_scripted_message_is_not_changed():
    scripted = AIMessage("ok")
    ScriptedChatModel([scripted]).invoke("go")
    assert (scripted.id, scripted.usage_metadata) == (None, None)


def test_text_is_streamed_word_by_word():
    chunks = [chunk.text for chunk in ScriptedChatModel(["one two\nthree"]).stream("go")]
    assert chunks == ["one", " two", "\nthree", ""]


def test_content_blocks_are_streamed_whole(ask):
    blocks = [{"type": "text", "text": "hello there"}]
    assert ask(ScriptedChatModel([AIMessage(blocks)]), "go").text == "hello there"


def test_threads_use_up_one_script():
    model = ScriptedChatModel([str(number) for number in range(50)])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: model.invoke("go").text, range(50)))
    assert sorted(answers, key=int) == [str(number) for number in range(50)]
    assert len(model.calls) == 50


def test_bound_tools_are_kept_and_share_the_script():
    model = ScriptedChatModel([AIMessage("", tool_calls=[CALL]), "done"])
    bound = model.bind_tools([refund], tool_choice="any")
    answer = bound.invoke("go")
    assert ToolNode([refund]) is not None
    assert refund.invoke(answer.tool_calls[0]) == ToolMessage("refunded 1182", name="refund", tool_call_id="call-1")
    assert model.invoke("go").text == "done"
    assert model.options == [{"tools": [refund], "tool_choice": "any"}, {}]


class Verdict(BaseModel):
    good: bool


def test_structured_output_is_off_unless_asked_for():
    with pytest.raises(NotImplementedError, match="structured_output=True"):
        ScriptedChatModel(["{}"]).with_structured_output(Verdict)


def test_structured_output_reads_the_text_as_json():
    model = ScriptedChatModel(['{"good": true}', '{"good": true}', "no json", "{}"], structured_output=True)
    assert model.with_structured_output(Verdict).invoke("go") == Verdict(good=True)
    raw = model.with_structured_output({"type": "object"}, include_raw=True)
    assert raw.invoke("go")["parsed"] == {"good": True}
    failed = raw.invoke("go")
    assert (failed["raw"].text, failed["parsed"]) == ("no json", None)
    assert isinstance(failed["parsing_error"], ValueError)
    with pytest.raises(ValidationError):
        model.with_structured_output(Verdict).invoke("go")


def test_hashed_vectors_are_near_when_words_are_shared():
    task, near, far = HashingEmbeddings().embed_documents(
        ["refund the order", "The order: refund!", "an unrelated sentence"]
    )
    assert np.dot(task, near) == pytest.approx(1.0)
    assert np.dot(task, far) < 0.5


@pytest.mark.parametrize("ngrams", [0, 3])
@pytest.mark.parametrize("text", ["refund", "", "!?", "日本語", "\ud800", "a a a"])
def test_hashed_vectors_have_length_one(text, ngrams):
    vector = HashingEmbeddings(64, ngrams=ngrams).embed_query(text)
    assert len(vector) == 64
    assert np.linalg.norm(vector) == pytest.approx(1.0)


def test_ngrams_bring_word_forms_together():
    def cosine(embeddings):
        return np.dot(embeddings.embed_query("refunding"), embeddings.embed_query("refunded"))

    assert cosine(HashingEmbeddings()) < 0.2 < cosine(HashingEmbeddings(ngrams=3))


def test_hashed_vectors_are_the_same_in_every_process():
    vector = HashingEmbeddings().embed_query("refund the order")
    code = "from reflect_middleware.testing import HashingEmbeddings as H; print(H().embed_query('refund the order'))"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert other.strip() == str(vector)


def test_importing_the_package_imports_neither_pytest_nor_langchain_core():
    code = "import sys, reflect_middleware.testing; print([n for n in ('pytest', 'numpy') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="it has HashingEmbeddings, ScriptedChatModel"):
        testing.__getattr__("Nothing")
