"""A user's callable that a reflection or a run waits for may use the Reflection: nothing waits for itself."""

from __future__ import annotations

import threading
from typing import Any

from reflect_middleware import Reflection, ReflectionReport, testing
from reflect_middleware.batch import Batch
from tests.loop.conftest import agent

TASK = {"messages": [("user", "refund order 7")]}
SECONDS = 30.0


def ended(work: Any) -> list[Any]:
    """What work gives, on a thread of its own; empty if it does not end."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return found


def test_flush_waits_for_the_reflection_that_the_first_run_sets_off() -> None:
    told: list[ReflectionReport] = []
    with testing.reflection(every=1, run="background", reflector=lambda _: [], on_reflection=told.append) as reflection:
        reflection.wrap(agent()).invoke(TASK)
        assert reflection.flush(SECONDS)
        assert len(told) == 1


def test_what_is_told_of_a_reflection_may_flush_and_reflect() -> None:
    told: list[Any] = []

    def tell(report: ReflectionReport) -> None:
        told.extend([report, reflection.flush(), reflection.reflect().error])

    reflection = testing.reflection(every=1, run="background", reflector=lambda _: [], on_reflection=tell)
    reflection.wrap(agent()).invoke(TASK)
    assert ended(reflection.flush) == [True]
    assert told[1:] == [False, ""]
    reflection.close()


def test_a_reflector_may_close_its_reflection_without_waiting_for_itself() -> None:
    over = threading.Event()

    def reflector(_: Batch) -> list[Any]:
        reflection.close()
        over.set()
        return []

    reflection = testing.reflection(every=1, run="background", reflector=reflector, exit_timeout=2 * SECONDS)
    reflection.wrap(agent()).invoke(TASK)
    assert over.wait(SECONDS)


def test_a_run_inside_a_reflection_waits_for_no_other_reflection() -> None:
    """Inline: the reflection's own run would wait behind a run that waits for this very reflection."""
    inside, waits = threading.Event(), threading.Event()

    def reflector(_: Batch) -> list[Any]:
        if not inside.is_set():
            inside.set()
            assert waits.wait(SECONDS)
            helper.invoke(TASK)
        return []

    reflection = testing.reflection(every=100, run="inline", reflector=reflector)
    wrapped, helper = reflection.wrap(agent()), reflection.wrap(agent(), name="helper")
    wrapped.invoke(TASK)
    threading.Thread(target=lambda: inside.wait(SECONDS) and _run_and_tell(reflection, wrapped, waits)).start()
    assert [report.error for report in ended(reflection.reflect)] == [""]
    reflection.close()


def _run_and_tell(reflection: Reflection, wrapped: Any, waits: threading.Event) -> None:
    """Another run, and a word once the judge's lane waits for the reflection under way."""
    lane = reflection._core.parts.learner.lane
    submit = lane.submit

    def noted(job: Any) -> Any:
        done = submit(job)
        waits.set()
        return done

    lane.submit = noted  # type: ignore[method-assign]
    wrapped.invoke(TASK)
