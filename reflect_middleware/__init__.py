"""Make any LangGraph agent learn from its own runs: find lessons, record episodes, reflect after every K of them."""

from reflect_middleware.boundary import get_episode_id, get_lessons, no_lessons
from reflect_middleware.cadence import AfterSeconds, Backlog, Cadence, EveryEpisodes, OnClose, OnFailures
from reflect_middleware.errors import ReflectError
from reflect_middleware.history import LessonChange, LessonDiff
from reflect_middleware.incoming import ImportReport
from reflect_middleware.reflection import Reflection
from reflect_middleware.retention import Retention
from reflect_middleware.types import (
    AuditEntry,
    Edit,
    EditOutcome,
    Episode,
    Exposure,
    Lesson,
    Preview,
    ReflectionRecord,
    ReflectionReport,
    Reward,
    Step,
    Task,
)

__version__ = "0.1.0"

__all__ = [
    "AfterSeconds",
    "AuditEntry",
    "Backlog",
    "Cadence",
    "Edit",
    "EditOutcome",
    "Episode",
    "EveryEpisodes",
    "Exposure",
    "ImportReport",
    "Lesson",
    "LessonChange",
    "LessonDiff",
    "OnClose",
    "OnFailures",
    "Preview",
    "ReflectError",
    "Reflection",
    "ReflectionRecord",
    "ReflectionReport",
    "Retention",
    "Reward",
    "Step",
    "Task",
    "get_episode_id",
    "get_lessons",
    "no_lessons",
]
