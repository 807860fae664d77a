"""Exact search in memory over the ledger's vectors: no files, no lock; the right store up to some 20,000 lessons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect_middleware.exact import ExactStore

if TYPE_CHECKING:
    from reflect_middleware.store import StoreContext


def open_store(context: StoreContext) -> ExactStore:
    """Entry point `exact`. Option `max_namespaces` (default 256): how many namespaces stay in memory."""
    return ExactStore(context.vectors, max_namespaces=int(context.options.get("max_namespaces", 256)))
