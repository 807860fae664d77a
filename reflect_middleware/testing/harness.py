"""A Reflection for tests: a temporary ledger, everything inline, nothing from the network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from reflect_middleware.reflection import Reflection
from reflect_middleware.testing.embeddings import HashingEmbeddings


class _Temporary(Reflection):
    """Removes its folder when it is closed."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str], model: Any, **settings: Any) -> None:
        self._folder = folder
        super().__init__(model, **settings)

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


def reflection(model: Any = None, **settings: Any) -> Reflection:
    """A Reflection whose ledger lives in a temporary folder until it is closed.

    Reflections run inline, the store is `exact`, the embedder hashes words, and there is no similarity floor, so that a
    lesson of any wording reaches the next run. Each of these gives way to a setting of yours.

    Args:
        model: The reflecting model, e.g. a `ScriptedChatModel`.
        settings: Any argument of `Reflection`.
    """
    folder = tempfile.TemporaryDirectory(prefix="reflect-", ignore_cleanup_errors=True)
    defaults: dict[str, Any] = {
        "path": str(Path(folder.name)),
        "store": "exact",
        "embeddings": HashingEmbeddings(),
        "min_similarity": -1.0,
        "run": "inline",
        "retrieve_timeout": 30.0,
    }
    return _Temporary(folder, model, **defaults | settings)
