"""What one reflection reads: episodes and lessons under short handles that a model can repeat without error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect_middleware.store import Vector
    from reflect_middleware.types import EditOutcome, Episode, Lesson, Namespace, Reward


COUNTED = 100
"""How often a lesson was shown is counted up to here for a reflection, which so costs the same after a million runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The episodes of one reflection, named E1, E2, and the related lessons, named L1, L2 and so on."""

    namespace: Namespace
    episodes: tuple[Episode, ...]
    """The claimed episodes, in the order of their handles."""
    lessons: tuple[Lesson, ...] = ()
    """The existing lessons that these episodes may touch, in the order of their handles."""
    earlier: Mapping[str, Sequence[Reward]] = field(default_factory=dict)
    """By id, what is now said of the earlier episodes from which the lessons that need review were learned."""
    rejected: tuple[EditOutcome, ...] = ()
    """Edits refused earlier, so that they need not be proposed again."""
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    """By task, its vector where an embedder works: tasks that read alike stand side by side."""
    tokens_left: int | None = None
    """What is left of the day's tokens (`daily_tokens`); None without a limit."""
    released: Callable[[], bool] = field(default=lambda: False, compare=False)
    """True once the batch was given back, e.g. by `close()`: what is learned from it then has no effect."""

    @property
    def rewards(self) -> dict[str, Sequence[Reward]]:
        """All rewards that the reflector is told of, by the episode's id."""
        return {**self.earlier, **{episode.id: episode.rewards for episode in self.episodes}}

    def late(self, lesson: Lesson) -> list[Reward]:
        """The rewards that came after a lesson was learned, the oldest first."""
        known = [reward for source in lesson.sources for reward in self.earlier.get(source, ())]
        return sorted((r for r in known if r.at > lesson.updated_at), key=lambda r: r.at)

    @property
    def episode_handles(self) -> dict[str, Episode]:
        """Handle to episode, in order."""
        return {f"E{n}": episode for n, episode in enumerate(self.episodes, 1)}

    @property
    def lesson_handles(self) -> dict[str, Lesson]:
        """Handle to lesson, in order."""
        return {f"L{n}": lesson for n, lesson in enumerate(self.lessons, 1)}

    def handle(self, id: str) -> str:
        """The handle of an episode's or a lesson's id; the id itself where it has none."""
        lessons = {lesson.id: handle for handle, lesson in self.lesson_handles.items()}
        return lessons.get(id) or {e.id: handle for handle, e in self.episode_handles.items()}.get(id, id)
