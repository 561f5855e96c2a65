"""Photos on web servers, which only a manifest can name: read over http(s), from public addresses and nothing else.

A manifest may come from anybody, and must not make the cluster read what only the cluster can reach. So a name is
resolved once, its address is checked, and that address is connected to, whatever the name resolves to by then; each
redirect passes the same gate. No proxy, cookie or password is taken from the environment.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pipeline import storage
from pipeline.storage.clients import RefusedError, answered
from pipeline.storage.store import taken_in

_MAX_REDIRECTS = 5
_CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 1 << 20
_HEADERS = {"User-Agent": "graticule/0.1 (photo archive)", "Accept": "image/*, */*;q=0.5"}
_PORTS = {"http": 80, "https": 443}
_UNRESERVED = "/%:@!$&'()*+,;=~?[]"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PUBLIC_BY_NUMBER_ONLY = (ipaddress.IPv4Address("168.63.129.16"),)
"""Azure's service for its own machines."""


class BusyError(OSError):
    """The server asks to be left alone for `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def is_web(uri: str) -> bool:
    """Whether `uri` is an http or https one."""
    return uri.lower().startswith(("http://", "https://"))


def check_allowed(uri: str, allow_http: bool) -> None:
    """Raise ValueError, saying what to type, where a manifest names a web server and that is not asked for."""
    if is_web(uri) and not allow_http:
        raise ValueError(f"{uri} is on a web server: give --fetch.allow-http to fetch photos from any")


def is_public(address: Address, port: int) -> bool:
    """Whether anybody on the Internet can reach `address`, also where IPv6 wraps an IPv4 one, at a port of the web."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded, port)
    is_special = address.is_multicast or address.is_reserved or address in _PUBLIC_BY_NUMBER_ONLY
    return address.is_global and not is_special and port in _PORTS.values()


class Web:
    """Reads from web servers; `may_connect` says which addresses and ports. Any thread may call it."""

    def __init__(self, may_connect: Callable[[Address, int], bool] = is_public) -> None:
        self._may_connect = may_connect
        self._tls = ssl.create_default_context()

    def read(
        self, uri: str, max_bytes: int, timeout_s: float, deadline_s: float, intake: storage.Intake | None = None
    ) -> storage.Blob:
        """Return what is at `uri`, at most five redirects away, with its ETag, "" where it has none; one attempt.

        Raises as `storage.read` within `storage.one_attempt`, PermissionError for an address that isn't public, and
        BusyError.
        """
        first = uri
        for _ in range(_MAX_REDIRECTS + 1):
            with self._opened(uri, timeout_s, deadline_s) as response:
                location = response.getheader("Location")
                if response.status not in (301, 302, 303, 307, 308) or not location:
                    return _blob(uri, response, max_bytes, intake)
            try:
                target = urljoin(uri, location.encode("latin-1").decode("utf-8", "replace"))
            except ValueError as error:
                raise RefusedError(f"{uri} redirects to what is no address") from error
            if not is_web(target) or (uri.lower().startswith("https:") and not target.lower().startswith("https:")):
                raise PermissionError(f"{uri} redirects to {target}, which is less safe")
            uri = target
        raise RefusedError(f"more than {_MAX_REDIRECTS} redirects: {first}")

    @contextlib.contextmanager
    def _opened(self, uri: str, timeout_s: float, deadline_s: float) -> Iterator[http.client.HTTPResponse]:
        url = _parsed(uri)
        connection = _PinnedConnection(url, self._addresses(url), timeout_s, self._tls)
        # Each byte that comes restarts the socket's own time-out: a server could go on for days, in its headers even.
        watchdog = threading.Timer(max(deadline_s - time.monotonic(), 0), connection.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            target = quote(url.path or "/", safe=_UNRESERVED)
            if url.query:
                target += "?" + quote(url.query, safe=_UNRESERVED)
            connection.request("GET", target, headers=_HEADERS)
            yield connection.getresponse()
        except http.client.InvalidURL as error:
            raise FileNotFoundError(f"no server can have this name: {uri}") from error
        except (http.client.HTTPException, OSError) as error:
            if time.monotonic() >= deadline_s:
                raise TimeoutError(f"still coming at the deadline: {uri}") from error
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"no answer in time: {uri}") from error
            if isinstance(error, ssl.SSLCertVerificationError):
                raise RefusedError(f"{error.verify_message}: {uri}") from error
            if isinstance(error, OSError):
                raise
            raise OSError(f"the answer breaks off or makes no sense ({type(error).__name__}): {uri}") from error
        finally:
            watchdog.cancel()
            connection.close()

    def _addresses(self, url: SplitResult) -> list[tuple[Address, int]]:
        port = url.port or _PORTS[url.scheme]
        try:
            found = socket.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            message = f"{url.hostname} has no address: {error.strerror}"
            raise (RefusedError if error.errno == socket.EAI_NONAME else OSError)(message) from error
        except ValueError as error:  # too long a label, a zero byte
            raise FileNotFoundError(f"no server can have this name: {url.hostname}") from error
        addresses = [ipaddress.ip_address(socket_address[0]) for *_, socket_address in found]
        allowed = [(address, port) for address in addresses if self._may_connect(address, port)]
        if not allowed:
            raise PermissionError(f"{url.hostname} port {port} is not a public web server ({addresses[0]})")
        return allowed


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to one of the given addresses, whatever the host's name resolves to by now."""

    def __init__(
        self, url: SplitResult, addresses: list[tuple[Address, int]], timeout_s: float, tls: ssl.SSLContext
    ) -> None:
        assert url.hostname
        self.default_port = _PORTS[url.scheme]
        super().__init__(url.hostname, url.port, timeout=timeout_s)
        self._addresses, self._timeout_s = addresses, timeout_s
        self._tls = tls if url.scheme == "https" else None

    def connect(self) -> None:
        """Connect to the first address that answers."""
        for number, (address, port) in enumerate(self._addresses, 1):
            try:
                self.sock = socket.create_connection((str(address), port), min(_CONNECT_TIMEOUT_S, self._timeout_s))
                break
            except OSError:
                if number == len(self._addresses):
                    raise
        self.sock.settimeout(self._timeout_s)
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def abort(self) -> None:
        """End it from another thread: whoever reads from it finds its end."""
        if self.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _parsed(uri: str) -> SplitResult:
    try:
        url = urlsplit(uri)
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise FileNotFoundError(f"no server can have this name: {uri}: {error}") from error
    if not host:
        raise FileNotFoundError(f"names no server: {uri}")
    if url.username is not None:
        raise PermissionError(f"a name or password in an address is not sent: give one without: {host}")
    return url


def _blob(uri: str, response: http.client.HTTPResponse, max_bytes: int, intake: storage.Intake | None) -> storage.Blob:
    status, message = response.status, f"{response.status} {response.reason}: {uri}"
    if status in (404, 410):
        raise FileNotFoundError(message)
    if status in (401, 403, 407, 451):
        raise PermissionError(message)
    if status in (429, 503) and (retry_after_s := _retry_after_s(response.getheader("Retry-After"))):
        raise BusyError(message, retry_after_s)
    if status >= 400:
        raise answered(status, message)
    if status != 200:
        raise RefusedError(message)
    expected_bytes = response.length  # None where it comes in chunks, or ends when the server closes
    too_large = storage.TooLargeError(f"more than the limit of {max_bytes} bytes: {uri}")
    if (expected_bytes or 0) > max_bytes:
        raise too_large

    def chunks() -> Iterator[bytes]:
        size_bytes = 0
        while chunk := response.read1(_CHUNK_BYTES):
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                raise too_large
            yield chunk

    data = taken_in(chunks(), expected_bytes, intake)
    if expected_bytes is not None and len(data) != expected_bytes:
        raise OSError(f"{len(data)} bytes came instead of {expected_bytes}: {uri}")
    return storage.Blob(data, (response.getheader("ETag") or "").removeprefix("W/").strip('"'))


def _retry_after_s(text: str | None) -> float:
    """Return how long a server asks to wait, 0 where it doesn't say or makes no sense."""
    if text and text.strip().isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(text or "").timestamp() - time.time(), 0)
    return 0
