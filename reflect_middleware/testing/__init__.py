"""What your own tests need: a scripted model, a hashing embedder, a ready-made Reflection, the store contract.

Everything is imported on first use, so that pytest is needed only for `StoreContract`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reflect_middleware.testing.embeddings import HashingEmbeddings
    from reflect_middleware.testing.harness import reflection
    from reflect_middleware.testing.models import ScriptedChatModel
    from reflect_middleware.testing.store_contract import StoreContract

__all__ = ["HashingEmbeddings", "ScriptedChatModel", "StoreContract", "reflection"]

_HOMES = {
    "HashingEmbeddings": "embeddings",
    "ScriptedChatModel": "models",
    "StoreContract": "store_contract",
    "reflection": "harness",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
