"""What an operator does with a Reflection: pause it, look after it, back it up, move its store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect_middleware.errors import ClosedError
from reflect_middleware.types import AuditEntry
from reflect_middleware.viewing import twin

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings

    from reflect_middleware.backup import RestoreReport
    from reflect_middleware.core import Core
    from reflect_middleware.doctor import Finding
    from reflect_middleware.reindex import Progress, ReindexReport


class Operating:
    """The operator's part of a Reflection."""

    _core: Core

    def pause(self) -> None:
        """Stop lessons and reflections in every process on this ledger; episodes are still recorded."""
        self._open().parts.ledger.lessons.pause(value=True)

    def resume(self) -> None:
        """The end of `pause`."""
        self._open().parts.ledger.lessons.pause(value=False)

    def reindex(
        self,
        store: Any = None,
        *,
        store_options: Mapping[str, Any] | None = None,
        embeddings: Embeddings | str | None = None,
        progress: Callable[[Progress], Any] | None = None,
    ) -> ReindexReport:
        """Build a store from the ledger while agents go on with theirs, compare it, and switch to it.

        After a kill the same call goes on where it was. Where it does not switch, the report says why.

        Args:
            store: As in `Reflection`; None for the present one. Every process whose code names none follows.
            store_options: As in `Reflection`.
            embeddings: As in `Reflection`; None for the present ones. New vectors are kept beside the former ones.
            progress: callable(Progress), told of each portion.

        Raises:
            ReflectError: If an argument is not allowed, or the embedder or the ledger fails.
        """
        from reflect_middleware.reindex import reindex

        return reindex(self._open(), store, store_options, embeddings, progress)

    def doctor(self, *, mend: bool = False) -> tuple[Finding, ...]:
        """Check everything that needs no chat model: what works, what waits, what failed, and what to do about it.

        Args:
            mend: First make the store what the ledger says.
        """
        from reflect_middleware.doctor import examine

        return examine(self._open(), mend=mend)

    def backup(self, file: str | os.PathLike[str] | None = None, *, keep: int | None = None) -> Path:
        """Copy the SQLite ledger as it is at one moment, while agents run, and check the copy.

        Args:
            file: A new file; by default one in `backups` below `path`, named by the time in UTC.
            keep: With the default file: how many of the newest to keep; None for all.

        Raises:
            ConfigurationError: If the ledger is no file (PostgreSQL has its own tools), or `file` exists.
            LedgerError: If it cannot be read, or the copy not be written.
        """
        from reflect_middleware.backup import backup

        self._core.drain(None)
        return backup(self._open(), None if file is None else Path(file), keep)

    def restore(self, file: str | os.PathLike[str] | None = None, *, force: bool = False) -> RestoreReport:
        """Put a backup in the place of a SQLite ledger that is damaged, missing or wrong; the former one is kept.

        Other processes may go on where the former one is sound: they see the restored one at their next run. All
        stores are built anew from it. What was recorded since the backup is lost; the report says how much.

        Args:
            file: A backup; by default the newest in `backups` below `path` that is sound.
            force: Also while another process has a damaged ledger open; restart that process afterwards.

        Raises:
            ConfigurationError: If the ledger is no file.
            LedgerError: If there is no sound backup, or another process is in the way.
        """
        from reflect_middleware.backup import restore

        return restore(self._open(), None if file is None else Path(file), force=force)

    def audit(self, limit: int | None = 100) -> tuple[AuditEntry, ...]:
        """What was purged, dropped by retention and restored, the newest first: when and how much, no content."""
        return self._open().parts.ledger.audit.entries(limit)

    # Async twins.

    apause, aresume, areindex, adoctor = twin(pause), twin(resume), twin(reindex), twin(doctor)
    abackup, arestore, aaudit = twin(backup), twin(restore), twin(audit)

    # Inside.

    def _open(self) -> Core:
        if self._core.closed:
            raise ClosedError("This Reflection is closed; build a new one.")
        return self._core
