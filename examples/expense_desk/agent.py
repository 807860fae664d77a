"""The agent: a LangGraph graph that fills in a claim, submits it by a tool, and may correct it after a rejection."""

from __future__ import annotations

from typing import Any, Literal
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, ConfigDict, ValidationError

from expense_desk.desk import ACCEPTED, Desk

PROMPT = """\
You file expense claims with the expense desk of an office.
Read the request and fill in the form: amount, date, cost_centre, account, entity, receipt.
The desk has house rules of its own for every field. If it rejects a claim, correct it."""
LONGEST = 40
"""Most characters of a text in the form."""


class Form(BaseModel):
    """The desk's claim form."""

    model_config = ConfigDict(extra="forbid", title="claim")

    amount: float
    date: str
    cost_centre: str
    account: str
    entity: str
    receipt: Literal["none", "attached"]


def submission(desk: Desk) -> BaseTool:
    """The desk as the agent's tool. The receipt is looked up by the run's thread."""

    @tool(args_schema=Form)
    def submit_claim(config: RunnableConfig, **claim: Any) -> str:
        """Submit a claim to the expense desk."""
        return desk.submit(str(config["configurable"]["thread_id"]), claim)

    return submit_claim


def build_agent(model: BaseChatModel, desk: Desk, *, submissions: int = 2, notes: str = "") -> CompiledStateGraph[Any]:
    """Compile the agent.

    Args:
        model: Fills in the form, by structured output.
        desk: Where claims go.
        submissions: How often one claim may be submitted, at least 1.
        notes: Text after the fixed prompt, for the arm that pastes raw rejections.
    """
    fill_in = form_filler(model)
    system = SystemMessage(f"{PROMPT}\n\n{notes}" if notes else PROMPT)

    def fill(state: MessagesState) -> dict[str, list[AnyMessage]]:
        reply = fill_in.invoke([system, *state["messages"]])
        call = {"name": "submit_claim", "args": claim_in(reply), "id": uuid4().hex, "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    def after(state: MessagesState) -> Literal["fill", "__end__"]:
        answers = [m for m in state["messages"] if isinstance(m, ToolMessage)]
        done = answers[-1].content == ACCEPTED or len(answers) >= submissions
        return "__end__" if done else "fill"

    builder = StateGraph(MessagesState)
    builder.add_node("fill", fill)
    builder.add_node("submit", ToolNode([submission(desk)]))
    builder.add_edge(START, "fill")
    builder.add_edge("fill", "submit")
    builder.add_conditional_edges("submit", after)
    return builder.compile(checkpointer=InMemorySaver(), name="expense-desk")


def form_filler(model: BaseChatModel) -> Runnable[Any, Any]:
    """The model, its answer bound to the form; by JSON schema where it speaks the OpenAI protocol."""
    if hasattr(model, "openai_api_base"):
        return model.with_structured_output(bounded_schema(), method="json_schema", include_raw=True)
    return model.with_structured_output(Form, include_raw=True)


def bounded_schema() -> dict[str, Any]:
    """The form's JSON schema; its texts have an end, which a small model may not find by itself."""
    schema = Form.model_json_schema()
    for field in schema["properties"].values():
        if field["type"] == "string" and "enum" not in field:
            field["maxLength"] = LONGEST
    return schema


def claim_in(reply: dict[str, Any]) -> dict[str, Any]:
    """The claim as the model wrote it; an empty one where it wrote none."""
    parsed = reply["parsed"]
    claim: dict[str, Any] = parsed.model_dump() if isinstance(parsed, Form) else parsed
    try:
        Form.model_validate(claim)
    except ValidationError:
        return Form(amount=0, date="", cost_centre="", account="", entity="", receipt="none").model_dump()
    return claim
