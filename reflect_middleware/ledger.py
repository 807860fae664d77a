"""The ledger: the SQL database that is the truth."""

from __future__ import annotations

from reflect_middleware.audit_table import AuditTable
from reflect_middleware.database import Database
from reflect_middleware.embedders_table import EmbedderTable
from reflect_middleware.episodes_table import EpisodeTable
from reflect_middleware.forget_table import ForgetTable
from reflect_middleware.health_table import HealthTable
from reflect_middleware.lessons_table import LessonTable
from reflect_middleware.moves_table import MoveTable
from reflect_middleware.practice_table import PracticeTable
from reflect_middleware.reflections_table import ReflectionTable
from reflect_middleware.retention_table import RetentionTable
from reflect_middleware.work_table import WorkTable


class Ledger:
    """Episodes, lessons and reflections over one database.

    Args:
        url: A SQLAlchemy URL.
        fsync: See `Database`.
        erases: See `Database`.
    """

    def __init__(self, url: str, *, fsync: bool = False, erases: bool = False) -> None:
        self.database = Database(url, fsync=fsync, erases=erases)
        self.episodes = EpisodeTable(self.database)
        self.lessons = LessonTable(self.database)
        self.reflections = ReflectionTable(self.database, self.lessons)
        self.practice = PracticeTable(self.database)
        self.retention = RetentionTable(self.database)
        self.forget = ForgetTable(self.database, self.lessons)
        self.audit = AuditTable(self.database, self.lessons)
        self.work = WorkTable(self.database)
        self.health = HealthTable(self.database)
        self.embedders = EmbedderTable(self.database)
        self.moves = MoveTable(self.database)

    def close(self) -> None:
        """Close this process's connections for good."""
        self.database.close()
