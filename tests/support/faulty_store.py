"""A proxy before an S3 server that spoils answers at random, as a network and a busy store do.

With `FaultyStore(endpoint, "/bucket/photos/") as proxy`, clients that have `proxy.endpoint` as AWS_ENDPOINT_URL meet
its faults; `proxy.tally` counts them. Which answers it spoils depends on the seed and on each object's count of
requests, not on the threads' order.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import http.client
import random
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_PER_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "content-length")


class Fault(enum.StrEnum):
    """What can happen to an answer."""

    BUSY = "busy"
    """503 SlowDown, also for the requests that follow."""
    STALL = "stall"
    """Nothing more comes, before the answer or in the middle of its body, for longer than anyone waits."""
    RESET = "reset"
    """The connection is torn down in the middle of the body."""
    TRUNCATED = "truncated"
    """The connection is closed in the middle of the body, in good order."""
    WRONG_LENGTH = "wrong_length"
    """Content-Length says less or more than there is; what it says is sent, or the connection closed."""


class FaultyStore(ThreadingHTTPServer):
    """The proxy, on a port of its own, as long as the `with` block lasts.

    `shares`: of each fault, among GETs of objects below `path`; `others`: among all other requests. A busy store is so
    for `burst` requests more. Set `is_healthy` to let everything pass.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        upstream: str,
        path: str,
        shares: Mapping[Fault, float] = dict.fromkeys(Fault, 0.1),
        *,
        others: Mapping[Fault, float] | None = None,
        seed: int = 0,
        burst: int = 3,
        stall_s: float = 60.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urllib.parse.urlsplit(upstream)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.path, self.shares, self.others = path, shares, others or {}
        self.tally: collections.Counter[str] = collections.Counter()
        self.is_healthy = False
        self.stall_s = stall_s
        self.closing = threading.Event()
        self._seed, self._burst = seed, burst
        self._busy_left = 0
        self._requests: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def fault(self, command: str, target: str) -> tuple[Fault | None, random.Random]:
        """Return what is to happen to this request's answer, and the randomness for its details."""
        is_photo = command == "GET" and urllib.parse.unquote(target.split("?")[0]).startswith(self.path)
        shares = self.shares if is_photo else self.others
        with self._lock:
            name = f"{command} {target.split('/', 2)[-1]}"  # a bucket's name is a test's own
            self._requests[name] += 1
            dice = random.Random(f"{self._seed} {name} {self._requests[name]}")
            self.tally["photo requests" if is_photo else command] += 1
            if self.is_healthy or not shares:
                return None, dice
            kinds = [*shares, None]
            (fault,) = dice.choices(kinds, [*shares.values(), 1 - sum(shares.values())])
            if fault is Fault.BUSY:
                self._busy_left = self._burst
            elif self._busy_left and Fault.BUSY in shares:
                self._busy_left -= 1
                fault = Fault.BUSY
            if fault:
                self.tally[fault if is_photo else f"{command} {fault}"] += 1
            return fault, dice

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that give up on us are what this is about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault, dice = self.server.fault(self.command, self.path)
        if fault is Fault.BUSY:
            self._answer(503, {"Content-Type": "application/xml"}.items(), _SLOW_DOWN)
            return
        if fault is Fault.STALL and dice.random() < 0.5:
            self._hold()
            return
        with contextlib.closing(self._upstream(body)) as connection:
            answer = connection.getresponse()
            data = answer.read()
        headers = [item for item in answer.getheaders() if item[0].lower() not in _PER_CONNECTION]
        length = len(data) if self.command != "HEAD" else int(answer.getheader("Content-Length") or 0)
        if not data and fault is Fault.RESET:  # done, but nobody is told
            self._reset()
            return
        if not data and fault is Fault.STALL:
            self._hold()
            return
        if fault is None or not data:
            self._answer(answer.status, headers, data, length)
            return
        self.close_connection = True
        cut = dice.randrange(len(data))
        if fault is Fault.WRONG_LENGTH:
            length = cut if dice.random() < 0.5 else length + 1000
            self._answer(answer.status, headers, data, length)
            return
        self._answer(answer.status, headers, data[:cut], length)
        if fault is Fault.STALL:
            self._hold()
        elif fault is Fault.RESET:
            self._reset()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _upstream(self, body: bytes) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.server.upstream.netloc, timeout=120)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # Host too, as it came: the signature is over it
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body or None)
        return connection

    def _answer(
        self, status: int, headers: Iterator[tuple[str, str]] | object, body: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in dict(headers).items():  # type: ignore[call-overload]
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")
        self.wfile.flush()

    def _hold(self) -> None:
        self.close_connection = True
        self.server.closing.wait(self.server.stall_s)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
