"""Whatever a lesson says, its line says the same again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_middleware import lesson_pages
from reflect_middleware.errors import LessonFileError
from reflect_middleware.lesson_file import WORDS, decoded, parse, to_jsonl
from reflect_middleware.types import Lesson

SPACE = ("acme", "ü")
AT = datetime(2026, 11, 22, tzinfo=UTC)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


def texts(least: int, most: int) -> st.SearchStrategy[str]:
    return st.text(characters, min_size=least, max_size=most).filter(lambda text: len(text.strip()) >= least)


ids = st.lists(texts(1, 20), max_size=3).map(tuple)
lessons = st.lists(
    st.builds(
        Lesson,
        id=texts(1, 40),
        namespace=st.just(SPACE),
        when=texts(1, 60),
        do=texts(1, 60),
        because=texts(0, 60),
        task=texts(0, 60),
        status=st.sampled_from(["active", "candidate", "retired"]),
        version=st.integers(1, 1_000),
        sources=ids,
        replaces=ids,
        pinned=st.booleans(),
        supported=st.booleans(),
        created_at=st.integers(0, 3).map(lambda seconds: AT + timedelta(seconds=seconds)),
    ),
    max_size=6,
    unique_by=lambda lesson: lesson.id,
)


@settings(max_examples=30, deadline=None)
@given(found=lessons, details=st.booleans())
def test_round_trip(found: list[Lesson], *, details: bool) -> None:
    text = to_jsonl(found, details=details)
    lines = parse(decoded(text.encode(), "it"), "it")
    assert len(text.split("\n")) == len(found) + 1
    assert text == to_jsonl(found[::-1], details=details)
    order = sorted(found, key=lambda lesson: lesson.place)
    assert [line.id for line in lines] == [lesson.id for lesson in order]
    for line, lesson in zip(lines, order, strict=True):
        said = [name for name in WORDS if name != "task" or lesson.task]
        assert line.words() == {name: getattr(lesson, name) for name in said}
        assert (line.version, line.namespace) == (lesson.version, lesson.namespace)
    read = [line.lesson(SPACE, AT) for line in lines]
    assert to_jsonl(read) == to_jsonl(found)
    bare = parse(to_jsonl(found, tasks=False), "it")
    assert [line.lesson(SPACE, AT) for line in bare] == [x.model_copy(update={"task": ""}) for x in read]
    assert lesson_pages.to_prompt(read) == lesson_pages.to_prompt(found)


@settings(max_examples=30, deadline=None)
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_read_or_refused_with_its_lines(given: str | bytes) -> None:
    said = "allowed: anything"
    try:
        parse(decoded(given, "it") if isinstance(given, bytes) else given, "it")
    except LessonFileError as error:
        said = str(error)
    assert "allowed: " in said


@settings(max_examples=20, deadline=None)
@given(lessons, st.text(st.characters(exclude_categories=["Cs"]), max_size=100), st.sampled_from(["\n", "\r\n"]))
def test_the_section_is_replaced_in_place(found: list[Lesson], page: str, line: str) -> None:
    page = f"# Mine{line}{page.replace(chr(10), line)}"
    first = lesson_pages.placed(lesson_pages.to_section([], SPACE), SPACE, page)
    assert first.startswith(page)
    section = lesson_pages.to_section(found, SPACE)
    second = lesson_pages.placed(section, SPACE, f"{first}behind")
    assert second.startswith(page)
    assert second.endswith("behind")
    assert lesson_pages.placed(section, SPACE, second) == second
    assert lesson_pages.placed(lesson_pages.to_section([], SPACE), SPACE, second) == f"{first}behind"
