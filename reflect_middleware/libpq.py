"""What a connection to PostgreSQL is told, whoever opens it: how long it waits for a server that is gone or slow."""

from __future__ import annotations

from typing import Any

LIBPQ: dict[str, Any] = {
    "application_name": "reflect-middleware",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A server that is gone without a word is given up after 5 s (connecting) or 25 s (waiting). The URL may differ."""
TIMEOUTS = "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
"""What the server ends for us. Options in the URL come after these, and win."""
