"""Beside the server's own routes: what users say about a run, and the lessons that came of it."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reflect_middleware.errors import EpisodeNotFoundError, RewardError

from .graph import reflection


async def feedback(request: Request) -> JSONResponse:
    """A reward for a run from the user whose run it was; the body has `run_id`, `score` and perhaps `comment`."""
    given: dict[str, Any] = await request.json()
    run_id, score, comment = str(given.get("run_id", "")), given.get("score"), str(given.get("comment", ""))
    try:
        episode = await reflection.episodes.aget(run_id)
        if episode.principal != request.user.identity:
            return JSONResponse({"error": "no such run"}, status_code=404)
        await reflection.afeedback(run_id, key="thumb", score=score, comment=comment)
    except EpisodeNotFoundError:
        return JSONResponse({"error": "no such run"}, status_code=404)
    except RewardError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"episode": episode.id, "thread": episode.thread_id})


async def lessons(request: Request) -> JSONResponse:
    """What was learned from this user's runs."""
    found = await reflection.lessons.alist(namespace=("refund-desk", request.user.identity))
    return JSONResponse([{"when": lesson.when, "do": lesson.do, "shown": lesson.shown} for lesson in found])


app = Starlette(routes=[Route("/feedback", feedback, methods=["POST"]), Route("/lessons", lessons)])
