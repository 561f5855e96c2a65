"""Bytes come whole or not at all, whatever the store and the network do, and manifests reach no private address."""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import http.server
import ipaddress
import os
import re
import socket
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline import schema, storage
from pipeline.read.fetch import Fetcher, FetchSettings, shares
from pipeline.schema import PhotoError
from pipeline.sources import archives
from pipeline.storage import local_files, web
from tests.conftest import forget_s3_clients
from tests.support.faulty_store import Fault, FaultyStore

HASTY = FetchSettings(budget_s=3, attempt_timeout_s=0.5)
PHOTO = os.urandom(300_000)


def listed(uri: str, **columns: object) -> dict[str, Any]:
    return dict.fromkeys(schema.MANIFEST.names) | {schema.URI: uri} | columns


def as_listed(entry: storage.Entry) -> dict[str, Any]:
    return listed(entry.uri, etag=entry.etag, size_bytes=entry.size_bytes)


def failure(fetch: Fetcher, row: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(PhotoError) as caught:
        fetch(row)
    return str(caught.value.code), caught.value.message


# ---- object stores


@pytest.fixture(scope="module")
def archive(s3_bucket: str) -> list[storage.Entry]:
    """Sixteen photos, half of them under names that need the second client."""
    client = boto3.Session().client("s3", region_name="us-east-1")
    for index in range(16):
        name = f"fetch/{index}" if index % 2 else f"fetch//{index}"
        client.put_object(Bucket=s3_bucket, Key=name, Body=PHOTO + b"%d" % index)
    return list(storage.list_files(f"s3://{s3_bucket}/fetch"))


@contextlib.contextmanager
def faulty(bucket: str, *arguments: Any, folder: str = "fetch", **options: Any) -> Iterator[FaultyStore]:
    """A store before the S3 server that this process asks meanwhile, and that fails below a folder."""
    upstream = os.environ["AWS_ENDPOINT_URL"]
    with (
        FaultyStore(upstream, f"/{bucket}/{folder}/", *arguments, **options) as proxy,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_s3_clients()
        yield proxy
    forget_s3_clients()


def make_clients(proxy: FaultyStore, entries: list[storage.Entry], settings: FetchSettings) -> None:
    """Let what takes a second on a busy machine be done before a short budget runs."""
    proxy.is_healthy = True
    for entry in entries:
        Fetcher(settings, 1 << 20)(as_listed(entry))
    proxy.is_healthy = False
    proxy.tally.clear()


@pytest.mark.s3
def test_every_photo_comes_whole_through_every_fault(s3_bucket: str, archive: list[storage.Entry]) -> None:
    fetch = Fetcher(FetchSettings(budget_s=60, attempt_timeout_s=0.3), 1 << 20)
    with faulty(s3_bucket, seed=5, burst=0) as proxy, ThreadPoolExecutor(16) as pool:
        blobs = list(pool.map(fetch, map(as_listed, archive)))
    for entry, blob in zip(archive, blobs, strict=True):
        assert blob == storage.Blob(PHOTO + entry.uri.rsplit("/", 1)[1].encode(), entry.etag)
    assert all(proxy.tally[fault] for fault in Fault), proxy.tally


@pytest.mark.s3
@pytest.mark.parametrize("fault", Fault)
def test_a_budget_that_is_spent_says_on_what(s3_bucket: str, archive: list[storage.Entry], fault: Fault) -> None:
    with faulty(s3_bucket, {fault: 1.0}) as proxy, ThreadPoolExecutor(4) as pool:
        make_clients(proxy, archive[6:10], HASTY)
        start_s = time.monotonic()
        failures = list(pool.map(lambda entry: failure(Fetcher(HASTY, 1 << 20), as_listed(entry)), archive[6:10]))
        assert time.monotonic() - start_s < HASTY.budget_s + HASTY.attempt_timeout_s + 1
    attempts = 0
    for code, message in failures:
        # A last attempt may begin just before the deadline.
        timed_out = fault is Fault.STALL or "still coming at the deadline" in message
        assert code == ("fetch_timeout" if timed_out else "fetch_failed"), message
        assert re.search(r"\d attempts? in ", message)
        assert "503" in message or timed_out or fault is not Fault.BUSY
        attempts += int(message.split()[0])
    assert attempts == proxy.tally["photo requests"] >= 4  # the clients' own retries don't multiply ours


@pytest.mark.s3
def test_what_no_attempt_will_change_is_asked_once(s3_bucket: str, archive: list[storage.Entry]) -> None:
    fetch = Fetcher(HASTY, 1000)
    with faulty(s3_bucket, {}) as proxy:
        for name in ("missing", "/missing"):
            assert failure(fetch, listed(f"s3://{s3_bucket}/fetch/{name}"))[0] == "not_found"
        for entry in archive[7:9]:
            code, message = failure(fetch, listed(entry.uri))
            assert (code, message.split()[0]) == ("too_large", str(entry.size_bytes))
            assert failure(fetch, as_listed(entry))[0] == "too_large"  # not even asked for
        assert proxy.tally["photo requests"] == 4


@pytest.mark.s3
def test_a_photo_that_changed_since_is_taken_as_it_is(s3_bucket: str, archive: list[storage.Entry]) -> None:
    row = as_listed(archive[0]) | {schema.ETAG: "older", schema.SIZE_BYTES: 5}
    assert Fetcher(HASTY, 1 << 20)(row).etag == archive[0].etag


@pytest.mark.s3
def test_puts_get_through_a_busy_store_and_lost_answers(s3_bucket: str, archive: list[storage.Entry]) -> None:
    root, large = f"s3://{s3_bucket}/puts", bytes(9 << 20)  # in parts
    with faulty(s3_bucket, {}, others={Fault.BUSY: 0.15, Fault.RESET: 0.25}, burst=0, seed=3) as proxy:
        for index in range(4):
            storage.write_bytes(f"{root}/{index}", b"%d" % index)
            version = storage.create_bytes(f"{root}/lease {index}", b"first %d" % index)
            storage.replace_bytes(f"{root}/lease {index}", b"second %d" % index, version)
            storage.write_bytes(f"{root}/gone", b"")
            storage.delete(f"{root}/gone")
        storage.write_bytes(f"{root}/large", large)
    assert storage.read_bytes(f"{root}/large") == large
    assert not storage.exists(f"{root}/gone")
    for index in range(4):
        assert storage.read_bytes(f"{root}/{index}") == b"%d" % index
        assert storage.read_bytes(f"{root}/lease {index}") == b"second %d" % index
    assert all(proxy.tally[what] for what in ("PUT busy", "PUT reset", "POST reset")), proxy.tally


# ---- local files and members of archives


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_file_system_that_fails_for_the_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "a").write_bytes(PHOTO)
    open_file, errors = local_files.open_file, iter([OSError(number, "of the moment")] * 2)

    def failing(uri: str) -> Any:
        for error in errors:
            raise error
        return open_file(uri)

    monkeypatch.setattr(local_files, "open_file", failing)
    assert Fetcher(FetchSettings(budget_s=10), 1 << 20)(listed(f"{tmp_path}/a")).data == PHOTO
    with pytest.raises(StopIteration):
        next(errors)


def test_a_file_that_is_cut_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(PHOTO)
    open_file, handed_out = local_files.open_file, []

    class Growing:
        """What a reader sees of a file whose writer is not done: its end, then a larger size."""

        def __init__(self, file: Any) -> None:
            self._file, self.fileno, self.seek = file, file.fileno, file.seek

        def __enter__(self) -> Growing:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def read(self, size_bytes: int) -> bytes:
            return bytes(self._file.read(min(size_bytes, 1000)))

    def opened(uri: str) -> Any:
        handed_out.append(open_file(uri))
        return Growing(handed_out[-1]) if len(handed_out) == 1 else handed_out[-1]

    monkeypatch.setattr(local_files, "open_file", opened)
    assert Fetcher(FetchSettings(budget_s=10), 1 << 20)(listed(f"{tmp_path}/a")).data == PHOTO
    assert len(handed_out) == 2


def test_a_member_comes_from_the_archive_that_was_listed(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(PHOTO)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photo", "photo")
    container = storage.head(f"{tmp_path}/a.tar")
    (member,) = archives.list_members(container).to_pylist()
    del member[archives.MEMBER]
    row = listed(f"{container.uri}#photo", container_uri=container.uri, container_etag=container.etag, **member)
    fetch = Fetcher(HASTY, 1 << 20)
    assert fetch(row) == storage.Blob(PHOTO, member[schema.ETAG])
    os.utime(tmp_path / "a.tar", (1, 1))
    code, message = failure(fetch, row)
    assert (code, "changed meanwhile" in message) == ("fetch_failed", True)
    assert failure(fetch, row | {schema.CONTAINER_URI: f"{tmp_path}/gone.tar"})[0] == "not_found"


# ---- web servers


class _Site(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[str]
    """One list a server: what it was asked for."""

    def do_GET(self) -> None:
        self.seen.append(f"{self.headers['Host']}{self.path}")
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "to":
            self._answer(302, Location=rest)
        elif kind == "busy" and len(self.seen) == 1:
            self._answer(429, **{"Retry-After": rest})
        elif kind.isdecimal():
            self._answer(int(kind))
        elif kind == "endless":
            self._head(200, **{"Transfer-Encoding": "chunked"})
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        elif kind in ("drip", "stall", "headers"):
            self._head(200, **{"Content-Length": "1000"}) if kind != "headers" else None
            with contextlib.suppress(OSError):
                for _ in range(40):
                    self.wfile.write(b"" if kind == "stall" else b"H")
                    time.sleep(0.1)
        elif kind == "cut":
            self._head(200, **{"Content-Length": "1000"})
            self.wfile.write(b"x")
        else:
            self._answer(200, PHOTO, ETag='W/"v1"')
        self.close_connection = True

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self._head(status, **headers, **{"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _head(self, status: int, **headers: str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """A web server on an address of this machine."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[str] = []
        handler = type("Handler", (_Site,), {"seen": self.seen})
        self._server = http.server.ThreadingHTTPServer((address, 0), handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://{address}:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def open_site() -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def start(*arguments: Any) -> Site:
        sites.append(Site(*arguments))
        return sites[-1]

    yield start
    for site in sites:
        site.close()


def first_only(address: web.Address, port: int) -> bool:
    """A gate as `web.is_public`, but open to one address of this machine."""
    return address == ipaddress.ip_address("127.0.0.1")


def web_fetcher(**settings: Any) -> Fetcher:
    return Fetcher(
        FetchSettings(**({"budget_s": 1.0, "attempt_timeout_s": 0.3, "allow_http": True} | settings)),
        1 << 20,
        first_only,
    )


def test_the_web_is_read_where_that_is_asked_for(open_site: Callable[..., Site]) -> None:
    site = open_site("127.0.0.1")
    assert web_fetcher()(listed(f"{site.url}/ü b.jpg?q=ü&%20#part")) == storage.Blob(PHOTO, "v1")
    assert web_fetcher()(listed(f"{site.url}/to//moved")).data == PHOTO
    assert site.seen == [
        f"127.0.0.1:{site.port}{path}" for path in ("/%C3%BC%20b.jpg?q=%C3%BC&%20", "/to//moved", "/moved")
    ]
    web.check_allowed("/http:/a", False)
    with pytest.raises(ValueError, match=r"--fetch\.allow-http"):
        web.check_allowed("HTTP://a/b", False)
    assert failure(Fetcher(HASTY, 10), listed(f"{site.url}/a"))[0] == "forbidden"


@pytest.mark.parametrize(
    ("path", "code", "requests"),
    [
        ("404", "not_found", 1),
        ("410", "not_found", 1),
        ("403", "forbidden", 1),
        ("400", "fetch_failed", 1),
        ("204", "fetch_failed", 1),
        ("busy/999", "fetch_failed", 1),
        ("to//to//to//to//to//to//a", "fetch_failed", 6),
        ("to/file:///etc/passwd", "forbidden", 1),
        ("to/http://[", "fetch_failed", 1),
        ("to/http://a b/", "fetch_failed", 1),
        ("endless", "too_large", 1),
        ("500", "fetch_failed", None),
        ("cut", "fetch_failed", None),
        ("stall", "fetch_timeout", None),
        ("drip", "fetch_timeout", None),
        ("headers", "fetch_timeout", None),
    ],
)
def test_what_web_servers_answer(open_site: Callable[..., Site], path: str, code: str, requests: int | None) -> None:
    site, start_s = open_site("127.0.0.1"), time.monotonic()
    assert failure(web_fetcher(), listed(f"{site.url}/{path}"))[0] == code
    assert time.monotonic() - start_s < 2
    assert len(site.seen) == requests or requests is None


def test_a_busy_web_server_is_left_alone_as_long_as_it_asks(open_site: Callable[..., Site]) -> None:
    site, start_s = open_site("127.0.0.1"), time.monotonic()
    assert web_fetcher(budget_s=5)(listed(f"{site.url}/busy/1")).data == PHOTO
    assert time.monotonic() - start_s >= 1


def test_no_redirect_leads_to_an_address_that_is_not_allowed(open_site: Callable[..., Site]) -> None:
    site, inner = open_site("127.0.0.1"), open_site("127.0.0.2")
    for url in (f"{inner.url}/a", f"{site.url}/to/{inner.url}/a", f"{site.url}/to/http://2130706434:{inner.port}/a"):
        code, message = failure(web_fetcher(), listed(url))
        assert (code, "not a public web server" in message) == ("forbidden", True)
    assert inner.seen == []


def test_a_name_that_resolves_anew_leads_nowhere_else(
    open_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name's owner answers the check with one address and the next question with another."""
    site, real, questions = open_site("127.0.0.1"), socket.getaddrinfo, []

    def rebinding(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "photos.example":
            questions.append(host)
            host = "127.0.0.1" if len(questions) == 1 else "127.0.0.2"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert web_fetcher()(listed(f"http://photos.example:{site.port}/a")).data == PHOTO
    assert questions == ["photos.example"]
    assert site.seen == [f"photos.example:{site.port}/a"]


def test_https_holds_the_name_against_the_certificate(
    open_site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: real("127.0.0.1" if host.endswith(".example") else host, *a, **o)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate_of("photos.example", tmp_path / "site.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "site.pem"))
    site = open_site("127.0.0.1", tls)
    assert web_fetcher()(listed(f"https://photos.example:{site.port}/a")).data == PHOTO
    code, message = failure(web_fetcher(), listed(f"https://other.example:{site.port}/a"))
    assert (code, message.split(":")[0]) == (
        "fetch_failed",
        "Hostname mismatch, certificate is not valid for 'other.example'.",
    )
    code, message = failure(web_fetcher(), listed(f"https://photos.example:{site.port}/to/http://photos.example/"))
    assert (code, "less safe" in message) == ("forbidden", True)
    assert len(site.seen) == 2


def certificate_of(name: str, path: Path) -> Path:
    """Write a key and its certificate, signed by itself."""
    key, subject = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
    )
    now = dt.datetime.now(dt.UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(1))
    certificate = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False).sign(
        key, hashes.SHA256()
    )
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(encoding))
    return path


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of the first
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.100.100.200", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%1", False),
        ("fd00:ec2::254", False),
        ("ff0e::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::a00:1", False),
        ("2002:a00:1::1", False),
        ("2001::1", False),
    ],
)
def test_only_public_addresses_pass(address: str, expected: bool) -> None:
    assert web.is_public(ipaddress.ip_address(address), 443) == expected
    assert not web.is_public(ipaddress.ip_address(address), 22)


# ---- settings


@pytest.mark.parametrize(
    ("concurrent", "readers", "expected"),
    [(None, 8, (8, 16)), (1000, 8, (8, 16)), (20, 8, (8, 2)), (5, 8, (5, 1)), (1, 1, (1, 1))],
)
def test_the_limit_is_shared_out(concurrent: int | None, readers: int, expected: tuple[int, int]) -> None:
    assert shares(concurrent, readers) == expected


@pytest.mark.parametrize("wrong", [{"budget_s": 0}, {"attempt_timeout_s": -1}, {"concurrent": 0}, {"budget_bytes": 0}])
def test_settings_that_can_not_be_say_what_to_type(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--fetch.{next(iter(wrong)).replace('_', '-')} "):
        FetchSettings(**wrong)
