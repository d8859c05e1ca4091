"""A web host on this machine that misbehaves as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler", bytes], None]
MODIFIED = "Mon, 01 Jan 2024 00:00:00 GMT"


@dataclass
class Host:
    """What the host serves, how it behaves, and what it was asked for.

    Args:
        address: Its address, without a slash at the end.
        files: Content by name.
        answers: How the next requests are answered; good behaviour when there are none left.
        headers: Sent with every good answer; the default tells versions apart.
        requests: Name and headers of every request so far.
        stop: Ends answers that hang.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"', "Last-Modified": MODIFIED})
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of every request so far."""
        return [headers.get("Range") for _, headers in self.requests]


class Handler(BaseHTTPRequestHandler):
    host: Host

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.host.requests.append((name, dict(self.headers.items())))
        answer = self.host.answers.pop(0) if self.host.answers else good
        content = self.host.files.get(name)
        try:
            if content is None:
                status(404)(self, b"")
            else:
                answer(self, content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def start(self, code: int, headers: Mapping[str, object]) -> None:
        self.send_response(code)
        for name, value in {**self.host.headers, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def asked_from(self, content: bytes) -> int:
        """Where the piece begins that a well-behaved host would send."""
        wanted = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if wanted is None or (condition is not None and condition not in self.host.headers.values()):
            return 0
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def begin(self, content: bytes, length: int | None = None) -> bytes:
        """Sends the head of a good answer; returns the body."""
        start = self.asked_from(content)
        body = content[start:]
        if start >= len(content):
            self.start(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            return b""
        headers: dict[str, object] = {"Content-Length": len(body) if length is None else length}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.start(206 if start else 200, headers)
        return body


def good(handler: Handler, content: bytes) -> None:
    handler.wfile.write(handler.begin(content))


def cut(after: int) -> Answer:
    """The connection ends after so many bytes."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.wfile.write(handler.begin(content)[:after])

    return answer


def hang(after: int) -> Answer:
    """Nothing comes after so many bytes."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.wfile.write(handler.begin(content)[:after])
        handler.wfile.flush()
        handler.host.stop.wait(20)

    return answer


def no_ranges(after: int | None = None) -> Answer:
    """The whole file, whatever was asked for."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.start(200, {"Content-Length": len(content)})
        handler.wfile.write(content[:after])

    return answer


def announced(length: int, *, ranges: bool = True) -> Answer:
    """The file under another length."""

    def answer(handler: Handler, content: bytes) -> None:
        if ranges:
            handler.wfile.write(handler.begin(content, length))
        else:
            handler.start(200, {"Content-Length": length})
            handler.wfile.write(content)

    return answer


def without_length(handler: Handler, content: bytes) -> None:
    start = handler.asked_from(content)
    piece = {"Content-Range": f"bytes {start}-{len(content) - 1}/*"} if start else {}
    handler.start(206 if start else 200, piece)
    handler.wfile.write(content[start:])


def other_piece(handler: Handler, content: bytes) -> None:
    """A piece from byte 1, whatever was asked for."""
    handler.start(206, {"Content-Length": len(content) - 1, "Content-Range": f"bytes 1-{len(content) - 1}/9999"})
    handler.wfile.write(content[1:])


def ignoring_if_range(handler: Handler, content: bytes) -> None:
    """The piece that was asked for, of whatever file is there now."""
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    handler.start(
        206,
        {
            "Content-Length": len(content) - start,
            "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
        },
    )
    handler.wfile.write(content[start:])


def chunked(after: int | None = None) -> Answer:
    """In chunks; broken off without the last one where ``after`` is given."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.start(200, {"Transfer-Encoding": "chunked", "Connection": "close"})
        body = content[:after]
        handler.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")
        if after is None:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler, _: bytes) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.start(code, {"Content-Length": 0, **named})

    return answer


def endless(length: str | None = None) -> Answer:
    """Bytes without end, under a length that is missing or no length."""

    def answer(handler: Handler, _: bytes) -> None:
        handler.start(200, {} if length is None else {"Content-Length": length})
        while not handler.host.stop.is_set():
            handler.wfile.write(bytes(1 << 20))

    return answer


def never_beginning(handler: Handler, _: bytes) -> None:
    """Says again and again that the answer is still to come."""
    while not handler.host.stop.is_set():
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def dripping(handler: Handler, content: bytes) -> None:
    """A byte now and then, so that it is never silent."""
    for byte in handler.begin(content):
        handler.wfile.write(bytes([byte]))
        if handler.host.stop.wait(0.05):
            return


def web_page(handler: Handler, _: bytes) -> None:
    page = b"<html>Please log in</html>"
    handler.start(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": len(page)})
    handler.wfile.write(page)


@contextmanager
def local_host() -> Iterator[Host]:
    """Starts a host, and stops it in the end."""
    host = Host()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"host": host}))
    server.daemon_threads = True
    host.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        host.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
