"""Many runs at once, each with a namespace and a lesson of its own, so that any mix-up shows somewhere."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.tools import tool

from reflect_middleware import get_episode_id, get_lessons, testing
from reflect_middleware.testing import ScriptedChatModel
from tests.invariants.graphs import asked, calling, looping, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect_middleware import Episode, Reflection


class Crowd:
    """Users and agents, a lesson for each pair, and what their runs saw of lessons, episodes and rewards."""

    def __init__(self, users: int, agents: Sequence[str] = ("desk",), **settings: Any) -> None:
        self.users = [f"u{number:03}" for number in range(users)]
        self.agents = tuple(agents)
        self.reflection: Reflection = testing.reflection(
            namespace=("{agent}", "{user}"), **{"run": "background", **settings}
        )
        for agent in agents:
            for user in self.users:
                self.reflection.lessons.add(when="weighing", do=self.mark(agent, user), namespace=(agent, user))
        self.models: dict[str, ScriptedChatModel] = {agent: ScriptedChatModel(_answer) for agent in agents}
        self.seen: list[tuple[str, str, str]] = []
        """(user, episode id, lessons) as a tool of the run saw them."""
        self.runs: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def mark(self, agent: str, user: str) -> str:
        return f"belongs to {agent} {user}."

    def value(self, user: str) -> float:
        """The reward that this user gives."""
        return self.users.index(user) / len(self.users)

    def config(self, user: str, **more: Any) -> Any:
        return {"configurable": {"user": user, **more}}

    def given(self, user: str) -> Any:
        return asked(f"weigh for {user}")

    def agent(self, name: str = "desk", form: str = "wrap", extra: Sequence[Any] = (), **options: Any) -> Any:
        """An agent that learns: a hand-written loop that is wrapped, or one with the middleware, or both."""

        @tool
        def where(item: str) -> str:
            """Notes where it is called from."""
            with self._lock:
                self.seen.append((item, str(get_episode_id()), get_lessons()))
            return item

        if form == "wrap":
            return self.reflection.wrap(looping(self.models[name], [where, *extra], **options), name=name)
        ours = self.reflection.middleware(name=name)
        made: Any = create_agent(self.models[name], [where, *extra], middleware=[ours], **options)
        return self.reflection.wrap(made, name=name) if form == "both" else made

    def check(self, **expected: int) -> list[Episode]:
        """Every prompt, exposure and reward is the run's own, and no episode is lost. Gives them all."""
        self.reflection.flush()
        found: list[Episode] = []
        seen = {episode_id: (user, lessons) for user, episode_id, lessons in self.seen}
        for agent in self.agents:
            self._check_prompts(agent)
            for user in self.users:
                (lesson,) = self.reflection.lessons.list(namespace=(agent, user))
                episodes = self.reflection.episodes.list(namespace=(agent, user), limit=1000)
                assert len(episodes) == expected[agent], (agent, user)
                found += episodes
                for episode in episodes:
                    assert (episode.agent, episode.status) == (agent, "completed")
                    assert episode.task == f"weigh for {user}"
                    assert f"weigh for {user}" in episode.input
                    assert user in episode.output
                    assert [e.lesson_id for e in episode.exposures if e.shown] == [lesson.id]
                    assert {reward.value for reward in episode.rewards} <= {self.value(user)}
                    owner, lessons = seen[episode.id]
                    assert (owner, lessons.count("belongs to")) == (user, 1)
                    assert self.mark(agent, user) in lessons
                    assert self._foreign(episode, user) == []
        assert len({episode.id for episode in found}) == len(found) == len(seen)
        return found

    def rewarded(self, episodes: Sequence[Episode]) -> bool:
        """Whether each has its one reward."""
        return all(len(episode.rewards) == 1 for episode in episodes)

    def _check_prompts(self, agent: str) -> None:
        for system, *rest in self.models[agent].calls:
            text = " ".join(str(message.content) for message in rest)
            (user,) = {word for word in text.split() if word in self.users}
            assert str(system.content).count("belongs to") == 1
            assert self.mark(agent, user) in str(system.content)

    def _foreign(self, episode: Episode, user: str) -> list[str]:
        text = episode.model_dump_json()
        return [other for other in self.users if other != user and f"for {other}" in text]


def _answer(messages: list[BaseMessage]) -> Any:
    user = next(str(m.content).split()[-1] for m in messages if m.type == "human")
    return said(user) if isinstance(messages[-1], ToolMessage) else calling("where", item=user)
