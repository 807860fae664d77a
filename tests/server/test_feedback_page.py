"""The chat page with thumbs: the example served by uvicorn, used over HTTP and, where there is one, in a browser."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from blockbuster import blockbuster_ctx

from reflect_middleware import Reflection
from tests.server.browser import Browser
from tests.server.processes import free_port, wait_until_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect_middleware import Episode

pytest.importorskip("fastapi", reason="the page runs on fastapi, which is in the extra [dev]")

EXAMPLE = Path(__file__).parents[2] / "examples" / "feedback_page" / "app.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
RULE = "ask a manager above 200 EUR"


class Page:
    """The served page and its ledger."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def episodes(self) -> tuple[Episode, ...]:
        with Reflection(path=self.folder, store="exact") as reader:
            return reader.episodes.list()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLE), "--port", str(port)],
            env=os.environ | {"REFLECT_PATH": str(tmp_path), "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/lessons", process, tmp_path / "log")
        yield Page(f"http://127.0.0.1:{port}", tmp_path)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    log_text = (tmp_path / "log").read_text()
    assert "Traceback" not in log_text.partition("KeyboardInterrupt")[0]
    assert "reflect: " not in log_text


def asked(http: httpx.Client, text: str) -> list[dict[str, str]]:
    """The lines of the streamed answer."""
    with http.stream("POST", "/chat", json={"thread": "1", "text": text}) as answer:
        assert answer.status_code == 200
        return [json.loads(line) for line in answer.iter_lines()]


def learned(http: httpx.Client) -> list[str]:
    for _ in range(300):
        if lessons := http.get("/lessons").json():
            return lessons
        time.sleep(0.1)  # the reflection runs in the background of another process
    return []


@pytest.mark.process
def test_thumbs_over_http(page: Page) -> None:
    with httpx.Client(base_url=page.url, timeout=30) as http:
        assert "Chat with thumbs" in http.get("/").text
        first = asked(http, "Refund order 1182, 340 EUR")
        assert len(first) > 1
        assert "".join(line["text"] for line in first) == "Sure, I have refunded it."
        (message_id,) = {line["message_id"] for line in first}
        down = {"message_id": message_id, "up": False, "comment": RULE}
        assert http.post("/feedback", json=down).status_code == 204
        assert learned(http) == [f"When refund an order: {RULE}"]
        second = asked(http, "Refund order 2001, 990 EUR")
        assert "".join(line["text"] for line in second) == f"I will {RULE}, and then refund it."
        for wrong in ({}, {"message_id": "", "up": True}, {"message_id": "m", "up": "sideways"}):
            assert http.post("/feedback", json=wrong).status_code == 422
        assert http.post("/feedback", json={"message_id": "never-seen", "up": True}).status_code == 204
        assert http.post("/feedback", json={"message_id": second[0]["message_id"], "up": True}).status_code == 204
    newest, oldest = page.episodes()
    assert [(r.value, r.source, r.key, r.comment) for r in oldest.rewards] == [(0.0, "user", "thumb", RULE)]
    assert [(r.value, r.source, r.key) for r in newest.rewards] == [(1.0, "user", "thumb")]
    assert (oldest.thread_id, newest.thread_id) == ("1", "1")


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_thumbs_in_a_browser(page: Page, tmp_path: Path) -> None:
    with Browser(str(CHROMIUM), page.url, tmp_path / "profile") as browser:
        browser.run("document.querySelector('#ask input').value = 'Refund order 1182, 340 EUR'")
        browser.run("document.querySelector('#ask button').click()")
        browser.wait("!!document.querySelector('[value=down]')")
        assert browser.run("document.querySelector('.agent').textContent") == "Sure, I have refunded it."
        browser.run(f"document.querySelector('[name=comment]').value = '{RULE}'")
        browser.run("document.querySelector('[value=down]').click()")
        browser.wait("document.querySelector('#lessons').textContent.includes('manager')")
        assert browser.run("document.querySelector('[data-given]').dataset.given") == "down"
        browser.run("document.querySelector('#ask input').value = 'Refund order 2001'")
        browser.run("document.querySelector('#ask button').click()")
        browser.wait("document.querySelectorAll('[value=up]').length == 2")
        browser.run("document.querySelectorAll('[value=up]')[1].click()")
        browser.wait("document.querySelectorAll('[data-given=up]').length == 1")
        assert RULE in browser.run("document.querySelectorAll('.agent')[1].textContent")
        browser.screenshot(tmp_path / "page.png")
    assert [[(r.value, r.comment) for r in e.rewards] for e in page.episodes()] == [[(1.0, "")], [(0.0, RULE)]]


async def test_the_app_blocks_no_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feedback_page.app import build_app

    monkeypatch.setenv("REFLECT_PATH", str(tmp_path))
    app = build_app()
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://page") as http:
        with blockbuster_ctx():
            answer = await http.post("/chat", json={"thread": "1", "text": "Refund order 1"})
            message_id: Any = json.loads(answer.text.splitlines()[0])["message_id"]
            await http.post("/feedback", json={"message_id": message_id, "up": False, "comment": RULE})
            for _ in range(300):
                if (await http.get("/lessons")).json():
                    break
                await asyncio.sleep(0.1)
            answer = await http.post("/chat", json={"thread": "1", "text": "Refund order 2"})
    assert RULE in "".join(json.loads(line)["text"] for line in answer.text.splitlines())
