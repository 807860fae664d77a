"""Who is asking. The demo's tokens stand here for what your identity provider would check."""

from __future__ import annotations

from typing import Any

from langgraph_sdk import Auth

TOKENS = {"alices-token": "alice", "bobs-token": "bob"}

auth = Auth()


@auth.authenticate
async def authenticate(authorization: str | None) -> Auth.types.MinimalUserDict:
    """The user of a bearer token. The server gives the identity to the graph as `langgraph_auth_user_id`."""
    user = TOKENS.get((authorization or "").removeprefix("Bearer "))
    if user is None:
        raise Auth.exceptions.HTTPException(status_code=401, detail="Unknown token.")
    return {"identity": user, "is_authenticated": True}


@auth.on.threads
async def own(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, str]:
    """Threads and their runs belong to the user who made them."""
    value.setdefault("metadata", {})["owner"] = ctx.user.identity
    return {"owner": ctx.user.identity}
