"""A Reflection for tests: a temporary ledger, everything inline, nothing from the network."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

from reflect_middleware.reflection import Reflection
from reflect_middleware.testing.embeddings import HashingEmbeddings


class _Temporary(Reflection):
    """Removes its folder when it is closed, or forgotten."""

    def __init__(self, folder: str, model: Any, **settings: Any) -> None:
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        super().__init__(model, **settings)

    def close(self) -> None:
        super().close()
        self._remove()


def reflection(model: Any = None, **settings: Any) -> Reflection:
    """A Reflection whose ledger lives in a temporary folder until it is closed.

    Reflections run inline, the store is `exact`, the embedder hashes words, and there is no similarity floor, so that a
    lesson of any wording reaches the next run. Each of these gives way to a setting of yours.

    Args:
        model: The reflecting model, e.g. a `ScriptedChatModel`.
        settings: Any argument of `Reflection`.
    """
    folder = tempfile.mkdtemp(prefix="reflect-")
    defaults: dict[str, Any] = {
        "path": folder,
        "store": "exact",
        "embeddings": HashingEmbeddings(),
        "min_similarity": -1.0,
        "run": "inline",
        "retrieve_timeout": 30.0,
    }
    return _Temporary(folder, model, **defaults | settings)
