"""A real HTTP server on loopback that runs real graphs and speaks the part of LangGraph's API that RemoteGraph uses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from langgraph.types import Command


@contextmanager
def serving(**graphs: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serves compiled graphs by assistant id; gives the address and the list of run requests so far."""
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # the end of the stream is the end of the connection

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = self.path.strip("/").split("/")
            thread_id = parts[1] if parts[0] == "threads" else str(uuid4())
            if "state" in parts:
                self.state(thread_id)
                return
            run_id = str(uuid4())
            requests.append(body | {"run_id": run_id})
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Location", f"/threads/{thread_id}/runs/{run_id}")
            self.end_headers()
            with suppress(ConnectionError):  # the client has left
                for event, data in events(graphs[body["assistant_id"]], body, thread_id):
                    self.wfile.write(f"event: {event}\ndata: {json.dumps(data, default=plain)}\n\n".encode())

        def do_GET(self) -> None:
            self.state(self.path.strip("/").split("/")[1])

        def state(self, thread_id: str) -> None:
            (graph,) = {id(graph): graph for graph in graphs.values() if graph.checkpointer}.values()
            state = graph.get_state({"configurable": {"thread_id": thread_id}})
            checkpoint = {"checkpoint_ns": "", **state.config["configurable"]}
            found = {"values": state.values, "next": state.next, "tasks": [], "checkpoint": checkpoint}
            found |= {"metadata": state.metadata, "created_at": state.created_at, "parent_checkpoint": None}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found, default=plain).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def events(graph: Any, body: dict[str, Any], thread_id: str) -> Iterator[tuple[str, Any]]:
    """What a run streams, as named events; a failure is the last one."""
    given = body.get("input")
    if command := body.get("command"):
        given = Command(**{key: value for key, value in command.items() if value})
    configurable = {**(body.get("config") or {}).get("configurable", {}), "thread_id": thread_id}
    modes = ["messages" if mode == "messages-tuple" else mode for mode in body["stream_mode"]]
    subgraphs = bool(body.get("stream_subgraphs"))
    try:
        for chunk in graph.stream(given, {"configurable": configurable}, stream_mode=modes, subgraphs=subgraphs):
            ns, mode, data = chunk if subgraphs else ((), *chunk)
            yield "|".join((mode, *ns)), data
    except Exception as error:  # noqa: BLE001 - a server answers with it
        yield "error", {"error": type(error).__name__, "message": str(error)}


def plain(value: Any) -> Any:
    """Messages and interrupts as JSON."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    return {"value": value.value, "id": value.id} if hasattr(value, "value") else str(value)
