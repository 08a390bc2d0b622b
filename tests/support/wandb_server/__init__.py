"""A W&B server for tests: GraphQL, file streams, files, artifacts and sweeps, on the loopback interface.

Written with the standard library (and PyYAML, because sweeps are YAML) for the real clients of wandb 0.31:
`wandb sweep`, `wandb agent`, wandb-core and wandb.Api(). Nothing of the client is replaced.

    with WandbServer() as server:
        subprocess.run(["wandb", "sweep", "sweep.yaml"], env=server.environment(folder))
        server.state.runs
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .engine import Engine
from .graphql import GraphQLError, execute
from .schema import Schema
from .state import Run, State

API_KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as W&B's are
CLIENT_VARIABLES = ("WANDB", "WANDB_")

__all__ = ["API_KEY", "Run", "WandbServer"]


class WandbServer:
    """Serves from `start` to `stop`; `vanish` makes it unreachable without forgetting anything."""

    def __init__(self, port: int = 0):
        self.state = State()
        self.engine = Engine(self.state)
        self.requests: list[str] = []  # operation names and paths, in order
        self.unknown: list[str] = []  # what could not be answered
        self.on_file_stream: Callable[[Run, dict[str, Any]], None] | None = None
        self._port = port
        self._http: ThreadingHTTPServer | None = None

    def start(self) -> WandbServer:
        self._http = _Quiet(("127.0.0.1", self._port), self._handler())
        self._port = self._http.server_address[1]
        self.schema = Schema(self.state, self.engine, lambda key: f"{self.url}/storage/{key}")
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def vanish(self) -> None:
        assert self._http is not None
        self._http.shutdown()
        self._http.server_close()
        self._http.hang_up()

    stop = vanish

    def __enter__(self) -> WandbServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.vanish()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, folder: Path, **extra: str) -> dict[str, str]:
        """This process's environment with every W&B setting replaced, for clients that live in `folder`."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(CLIENT_VARIABLES)}
        return {**clean, "WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "WANDB_ERROR_REPORTING": "false",
                "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", "WANDB_CACHE_DIR": str(folder / "cache"),
                "WANDB_DATA_DIR": str(folder / "data"), "WANDB_CONFIG_DIR": str(folder / "config"),
                "HOME": str(folder), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **extra}

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["query"]
        self.requests.append(body.get("operationName") or text.split("(")[0].split("{")[0].split()[-1])
        with self.state.lock:
            return {"data": execute(text, body.get("variables") or {}, self.schema.roots)}

    def file_stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.requests.append("file_stream")
        with self.state.lock:
            run = self.state.run(name)
            if run is None:
                raise GraphQLError(f"no run {name}", 404)
            answer = self.state.file_stream(run, body)
            if body.get("complete"):
                self.engine.settle(run)
        if self.on_file_stream:
            self.on_file_stream(run, body)
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            wandb = server

        return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Cut the connections that clients keep alive."""
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that end drop their connections: not worth a traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wandb: WandbServer

    def do_POST(self) -> None:
        body = self._body()
        if not self._authorized():
            return self._answer(401, {"errors": [{"message": "API key verification failed"}]})
        try:
            content = json.loads(body or b"{}")
            if self.path == "/graphql":
                return self._answer(200, self.wandb.graphql(content))
            parts = self.path.strip("/").split("/")
            if parts[0] == "files" and parts[-1] == "file_stream":
                return self._answer(200, self.wandb.file_stream(parts[3], content))
            raise GraphQLError(f"no such path {self.path}", 404)
        except GraphQLError as error:
            self.wandb.unknown.append(str(error))
            self._answer(error.status, {"errors": [{"message": str(error)}]})

    def do_PUT(self) -> None:
        self.wandb.state.blobs[self.path.rsplit("/", 1)[-1]] = self._body()
        self._answer(200, {})

    def do_GET(self) -> None:
        blob = self.wandb.state.blobs.get(self.path.rsplit("/", 1)[-1])
        if blob is None:
            return self._answer(404, {})
        self._send(200, blob, "application/octet-stream")

    def _authorized(self) -> bool:
        expected = base64.b64encode(f"api:{API_KEY}".encode()).decode()
        return self.headers.get("Authorization", "") == f"Basic {expected}"

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, payload: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Quiet: tests read `requests` and `unknown`."""
