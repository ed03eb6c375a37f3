"""A server of files on the loopback address that fails where a test says so."""

from __future__ import annotations

import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """What the server is to do, and what it did.

    Attributes:
        address: `http://127.0.0.1:PORT`.
        faults: path -> what the next requests of it meet, in order: a status, "reset", "truncated", "slow" (0.2
            seconds), or "endless" (half of the content, then `while_endless` is called; its size is sent as usual). The
            last one is repeated if it is followed by "always".
        requests: methods and paths, in order.
        files: paths of files that exist.
        lists: whether folders are listed.
    """

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.requests: list[tuple[str, str]] = []
        self.files: set[str] = set()
        self.lists = True
        self.while_endless: Callable[[], object] = lambda: None
        self.closed = threading.Event()

    def downloads(self) -> list[str]:
        """Returns the paths of files that were sent, sorted, and forgets them."""
        paths = sorted(path for method, path in self.requests if method == "GET" and path in self.files)
        self.requests.clear()
        return paths

    def fault(self, path: str) -> int | str | None:
        """Returns what this request meets."""
        faults = self.faults[path]
        return faults[0] if faults[1:] == ["always"] else faults.pop(0) if faults else None


class _Handler(SimpleHTTPRequestHandler):
    server_state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(super().do_HEAD)

    def do_GET(self) -> None:
        self._answer(super().do_GET)

    def list_directory(self, path: str) -> None:  # type: ignore[override]
        if self.server_state.lists:
            return super().list_directory(path)  # type: ignore[return-value]
        return self.send_error(403)

    def _answer(self, answer: object) -> None:
        state = self.server_state
        state.requests.append((self.command, self.path))
        if Path(self.translate_path(self.path)).is_file():
            state.files.add(self.path)
        fault = state.fault(self.path)
        if fault == "endless" and self.command == "HEAD":
            fault = None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault in ("truncated", "endless") and self.command == "GET":
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            if fault == "endless":
                state.while_endless()
                state.closed.wait()
        else:
            if fault == "slow":
                time.sleep(0.2)
            answer()  # type: ignore[operator]


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a connection that was reset


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serves the files of `folder`."""
    handler = type("Handler", (_Handler,), {})
    with _Quiet(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        handler.server_state = Server(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield handler.server_state
        finally:
            handler.server_state.closed.set()
            server.shutdown()
            thread.join()
