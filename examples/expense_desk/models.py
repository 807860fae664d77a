"""Which model plays: the one named, a provider's whose key is set, the local one, or the scripted one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from rich.console import Console
from rich.progress import Progress

from expense_desk.errors import ProviderError
from expense_desk.local_model import NAME, ensure_model
from expense_desk.local_server import serving
from expense_desk.scripted import BANNER, ScriptedModel

PROVIDERS = {"OPENAI_API_KEY": "openai:gpt-5-mini", "ANTHROPIC_API_KEY": "anthropic:claude-haiku-4-5"}
"""A key in the environment names this model."""
AGENT_TOKENS = 250
"""Most tokens of a claim by the local model."""
REFLECTOR_TOKENS = 1_400
"""Most tokens of its lessons."""
ANSWER_SECONDS = 600.0
"""How long one answer of the local model may take."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """Who fills in forms and who reflects: one model, with two limits on its answers."""

    agent: BaseChatModel
    reflector: BaseChatModel
    label: str
    embeddings: str = "local"
    banner: str = ""
    """What every screen must say about it; empty for a real model."""


@contextlib.contextmanager
def chosen(name: str | None, *, scripted: bool, console: Console) -> Iterator[Models]:
    """The models of a run; a local server ends with the block.

    Raises:
        DemoError: The model cannot be had; the message says what to do.
    """
    named = name or next((model for key, model in PROVIDERS.items() if os.environ.get(key)), None)
    if scripted:
        model = ScriptedModel()
        yield Models(agent=model, reflector=model, label="scripted model", embeddings="hashing", banner=BANNER)
    elif named:
        console.print(f"Model: {named}, by its provider. Claims and rejections of an invented office go there.")
        hosted = provider(named)
        yield Models(agent=hosted, reflector=hosted, label=named)
    else:
        with local(console) as models:
            yield models


def provider(name: str) -> BaseChatModel:
    """A provider's model by its name, such as `openai:gpt-5-mini`."""
    from langchain.chat_models import init_chat_model

    try:
        model: BaseChatModel = init_chat_model(name)
    except Exception as exc:
        said = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
        raise ProviderError(
            f"The model {name!r} cannot be used ({said}). Name one as provider:model, such as"
            " 'openai:gpt-5-mini', with its package installed and its key in the environment."
        ) from exc
    return model


@contextlib.contextmanager
def local(console: Console) -> Iterator[Models]:
    """The small local model, downloaded once, served while the block runs."""
    from langchain_openai import ChatOpenAI

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("model parts", visible=False)
        file = ensure_model(
            lambda text: console.print(text, highlight=False),
            lambda have, of: progress.update(bar, completed=have, total=of, visible=True),
        )
    console.print(f"Starting {NAME} on this machine …", highlight=False)
    with serving(file) as base:

        def limited(tokens: int) -> BaseChatModel:
            return ChatOpenAI(
                model="local",
                base_url=base,
                api_key="none",
                temperature=0,
                seed=1,
                max_tokens=tokens,
                timeout=ANSWER_SECONDS,
                max_retries=0,
            )

        yield Models(agent=limited(AGENT_TOKENS), reflector=limited(REFLECTOR_TOKENS), label=NAME)
