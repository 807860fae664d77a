"""Chroma clients that are not a folder of ours: a server's, Chroma Cloud's, and the user's own, who keeps it."""

from __future__ import annotations

import copy
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reflect_adapters._chroma_collections import Collections, driver, wrapped
from reflect_middleware.errors import ConfigurationError, StoreError, StoreLockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from chromadb.api import AsyncClientAPI, ClientAPI
    from chromadb.config import Settings

    from reflect_middleware.types import Namespace

CLOUD_URL = "chroma://cloud"
CLOUD_HOST = "https://api.trychroma.com"
CLOUD_LIMIT = 300
"""Most entries that Chroma Cloud writes or gives in one call."""
TIMEOUT = 30.0
"""Seconds that a server has for an answer: Chroma's own clients wait for ever."""
OVER_HTTP = ("chromadb.api.fastapi.FastAPI", "chromadb.api.async_fastapi.AsyncFastAPI")
"""What a client's settings name if it talks to a server."""
TODO = "check that the server runs, can be reached, and lets you in."
_inherited: list[Any] = []
"""What came with a fork: kept, so that no garbage collection closes the parent's sockets."""


class Remote:
    """A server's client, opened by each process for itself.

    Args:
        make: Opens one.
        given: The user's own, used in this process and never closed; a forked child opens its own.
        most: See `Collections`.
        timeout: Seconds that the server has for an answer, of the clients opened here.
    """

    persistent = shared = True

    def __init__(
        self, make: Callable[[], ClientAPI], *, given: ClientAPI | None = None, most: int = 0, timeout: float = TIMEOUT
    ) -> None:
        self._make, self._given, self._most, self._timeout = make, given, most, timeout
        self._closed = False
        self._begin()

    @contextmanager
    def call(self, doing: str, namespace: Namespace | None = None) -> Iterator[Collections]:
        """This process's collections; what Chroma raises is wrapped."""
        if self._closed:
            raise StoreError("The chroma store is closed. Open a new one.")
        if self._pid != os.getpid():
            _inherited.append((self._given, self._collections))
            self._given = None
            self._begin()
        with self._collections.use(doing, TODO, namespace) as collections:
            yield collections

    def close(self) -> None:
        """Close this process's client, if we opened it."""
        closed, self._closed = self._closed, True
        if not closed and self._given is None and self._pid == os.getpid():
            with wrapped("closing it", TODO):
                _stop(self._collections.api)

    def _begin(self) -> None:
        with wrapped("connecting to its server", TODO):
            api = self._given
            if api is None:
                api = self._make()
                for session in _sessions(api):
                    session.timeout = self._timeout
            self._collections = Collections(api, most=self._most)
        self._pid = os.getpid()


class Given:
    """The user's own embedded client, which is never closed. It is of one process, and not of those forked from it."""

    shared = False

    def __init__(self, client: ClientAPI) -> None:
        self.persistent = bool(client.get_settings().is_persistent)
        self._pid = os.getpid()
        with wrapped("opening it", "check that your client is open."):
            self._collections = Collections(client)

    @contextmanager
    def call(self, doing: str, namespace: Namespace | None = None) -> Iterator[Collections]:
        """Its collections; what Chroma raises is wrapped."""
        if self._pid != os.getpid():
            raise StoreLockedError(
                f"The Chroma client was given to process {self._pid}, from which this one was forked, and hangs here. "
                "This one searches the ledger's vectors instead; for a store that many processes share, run a server."
            )
        with self._collections.use(doing, "check that your client is open.", namespace) as collections:
            yield collections

    def close(self) -> None:
        """It is not ours."""


def server(url: str, options: Mapping[str, Any]) -> Remote:
    """A server by `chroma://host:8000` (`chroma+https://host`), with `HttpClient`'s options.

    Raises:
        ConfigurationError: The URL is none of these, or an option is unknown.
        StoreError: The server cannot be reached, or refuses.
    """
    given = _allowed(options, ("ssl", "headers", "tenant", "database", "settings", "timeout"))
    timeout = float(given.pop("timeout", TIMEOUT))
    host, port, ssl = _address(url, given.pop("ssl", None))
    module, headers = driver(), dict(given.pop("headers", None) or {})

    def make() -> ClientAPI:
        _knock(f"http{'s' if ssl else ''}://{host}:{port}", timeout, headers)
        arguments = {**given, "settings": _settings(given.get("settings")), "headers": dict(headers)}
        made: ClientAPI = module.HttpClient(host=host, port=port, ssl=ssl, **arguments)
        return made

    return Remote(make, timeout=timeout)


def cloud(options: Mapping[str, Any], *, url: str = CLOUD_HOST) -> Remote:
    """Chroma Cloud, with `CloudClient`'s options.

    Args:
        options: `api_key`, `tenant`, `database`, `timeout`. Those that are missing come from the environment
            (`CHROMA_API_KEY`, `CHROMA_TENANT`, `CHROMA_DATABASE`).
        url: Where it is.

    Raises:
        ConfigurationError: There is no key, or an option is unknown.
        StoreError: It cannot be reached, or refuses.
    """
    given = _allowed(options, ("api_key", "tenant", "database", "timeout"))
    timeout = float(given.pop("timeout", TIMEOUT))
    if not (given.get("api_key") or os.environ.get("CHROMA_API_KEY")):
        todo = "Make a key in Chroma Cloud's settings."
        raise ConfigurationError("api_key", None, "store_options={'api_key': …}, or CHROMA_API_KEY", todo)
    module, where = driver(), urlsplit(url)
    ssl = where.scheme == "https"

    def make() -> ClientAPI:
        _knock(url, timeout, {})
        place: Any = {"cloud_host": where.hostname, "cloud_port": where.port or 443, "enable_ssl": ssl}
        made: ClientAPI = module.CloudClient(**given, settings=_settings(None), **place)
        return made

    return Remote(make, most=CLOUD_LIMIT, timeout=timeout)


def the_users(client: ClientAPI | AsyncClientAPI) -> Remote | Given:
    """A client of the user's. An async one lends us its settings: it would be bound to one event loop."""
    settings = client.get_settings()
    if settings.chroma_api_impl not in OVER_HTTP:
        return Given(client)  # type: ignore[arg-type]  # there is no async client without a server

    def make() -> ClientAPI:
        made: ClientAPI = driver().Client(
            settings=_settings(settings, impl=OVER_HTTP[0]), tenant=client.tenant, database=client.database
        )
        return made

    lent = settings.chroma_api_impl == OVER_HTTP[1]
    in_cloud = CLOUD_HOST.endswith(f"/{settings.chroma_server_host}")
    return Remote(make, given=None if lent else client, most=CLOUD_LIMIT if in_cloud else 0)  # type: ignore[arg-type]


def _allowed(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    if unknown := sorted(set(options) - set(names)):
        raise ConfigurationError("store_options", unknown, ", ".join(("client", *names)))
    return {name: value for name, value in options.items() if value is not None}


def _address(url: str, ssl: object) -> tuple[str, int, bool]:
    """Host, port, and whether it is https."""
    try:
        parts = urlsplit(url)
        port, plain = parts.port, bool(parts.hostname) and not (parts.path.strip("/") or parts.query or parts.fragment)
    except ValueError:
        port, plain = None, False
    else:
        plain = plain and parts.scheme in ("chroma", "chroma+https") and "@" not in parts.netloc
    if not plain:
        shown = "(not shown: it may have a password)" if "@" in url else url
        allowed = "chroma://host:8000, chroma+https://host, chroma://cloud, or store='chroma' for a folder"
        raise ConfigurationError("The chroma store's URL", shown, allowed, "Tokens go into store_options={'headers'}.")
    secure = parts.scheme == "chroma+https" if ssl is None else bool(ssl)
    host = parts.hostname or ""
    return (f"[{host}]" if ":" in host else host), port or (443 if secure else 8000), secure


def _settings(given: Settings | None, *, impl: str = "") -> Settings:
    """A client changes the settings it gets, so each gets its own."""
    if given is None:
        from chromadb.config import Settings

        return Settings(anonymized_telemetry=False)
    made = copy.deepcopy(given)
    if impl:
        made.chroma_api_impl = impl
    return made


def _knock(url: str, timeout: float, headers: Mapping[str, str]) -> None:
    """Fail in time where nothing answers: a client asks as it is made, before it can be told how long to wait."""
    import httpx

    httpx.get(f"{url}/api/v2/heartbeat", timeout=timeout, headers=dict(headers))


def _sessions(api: ClientAPI) -> list[Any]:
    """The client's HTTP sessions, its own and the one it looks up its database with; there is no public way to them."""
    parts = (api, getattr(api, "_admin_client", None))
    found = (getattr(getattr(part, "_server", None), "_session", None) for part in parts)
    return [session for session in found if session is not None]


def _stop(api: ClientAPI) -> None:
    """Close a client: the first releases of Chroma 1.x have no `close`, and the later ones' leaves sessions open."""
    sessions = _sessions(api)
    if hasattr(api, "close"):
        api.close()
    for session in sessions:
        session.close()
