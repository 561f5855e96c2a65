"""Machines that share nothing but a network: Linux network namespaces on a bridge, with Ray nodes in them.

Each has its own network, host name, processes, /tmp, shared memory and home, and can't write to the disk that holds the
code. Needs root and Linux; `Switch` says by a RuntimeError what is missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

REPOSITORY = Path(__file__).parents[2]
_NAMESPACES = ["unshare", "--net", "--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc"]
_BIN = Path(sys.executable).parent


class Switch:
    """The bridge between the hosts; this process is at `network`.1 as long as the `with` block lasts."""

    def __init__(self) -> None:
        self._bridge = f"gr{uuid.uuid4().hex[:8]}"
        self.network = ""
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise RuntimeError("namespaces need root")
        if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
            raise RuntimeError(f"{', '.join(missing)} is not installed (Debian: iproute2, util-linux)")
        try:
            _run([*_NAMESPACES, "mount", "-o", "remount,bind,ro", "/"])
            _run(["ip", "link", "add", self._bridge, "type", "bridge"])
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"no namespaces here: {error.stderr.strip()}") from error
        self._cleanup.callback(_run, ["ip", "link", "delete", self._bridge])
        # Two bridges with the same network, one of them another run's: its hosts would be looked for on the wrong one.
        taken = _run(["ip", "-4", "route"]) + _run(["ip", "-4", "address"])
        self.network = next(name for name in (f"10.213.{n}" for n in range(77, 256)) if f"{name}." not in taken)
        _run(["ip", "address", "add", f"{self.network}.1/24", "dev", self._bridge])
        _run(["ip", "link", "set", self._bridge, "up"])
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def host(
        self, number: int, folder: Path, environment: Mapping[str, str], instead: Mapping[Path, Path] | None = None
    ) -> Host:
        """Switch a host on; it keeps its /tmp below `folder`, and sees `instead`'s folders in place of its keys."""
        place = folder / f"host{number}"
        host = Host(
            f"{self.network}.{number}", f"{self._bridge}h{number}", self._bridge, place, environment, instead or {}
        )
        self._cleanup.callback(host.cut_off)
        return host

    def forward(self, port: int, target: tuple[str, int]) -> None:
        """Let the hosts reach a server of this machine's loopback at the same `port` of `network`.1."""
        server = _Forwarder((f"{self.network}.1", port), target)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._cleanup.callback(server.server_close)
        self._cleanup.callback(server.shutdown)


class Host:
    """A machine that is on until it is cut off."""

    def __init__(
        self,
        address: str,
        link: str,
        bridge: str,
        folder: Path,
        environment: Mapping[str, str],
        instead: Mapping[Path, Path],
    ) -> None:
        self.name, self.address, self._link = folder.name, address, link
        (folder / "tmp").mkdir(parents=True)
        # What the tests run may itself lie below /tmp, which is to be another folder here.
        kept = [path for path in (REPOSITORY, Path(sys.prefix).resolve()) if path.is_relative_to("/tmp")]

        def inside(path: Path) -> Path:
            return folder / "tmp" / path.relative_to("/tmp") if path.is_relative_to("/tmp") else path

        binds = {path: inside(path) for path in kept}
        for path in kept:
            binds[path].mkdir(parents=True, exist_ok=True)
        binds |= {replacement: inside(path) for path, replacement in instead.items()}
        script = ["set -e", f"hostname {self.name}"]
        script += [f"mount --bind '{path}' '{place}'" for path, place in binds.items()]
        script += [f"mount --rbind '{folder}/tmp' /tmp", "mount -t tmpfs tmpfs /dev/shm"]
        script += ["mount -o remount,bind,ro /", "ip link set lo up", "mkdir -p /tmp/home"]
        self._process = subprocess.Popen(
            [*_NAMESPACES, "sh", "-c", "\n".join([*script, "echo ready", "exec sleep infinity"])],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._first_pid = children[0]
        _run(["ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._first_pid])
        _run(["ip", "link", "set", self._link, "master", bridge, "up"])
        inside = ["nsenter", "--net", "--target", self._first_pid]
        _run([*inside, "ip", "address", "add", f"{self.address}/24", "dev", "eth0"])
        _run([*inside, "ip", "link", "set", "eth0", "up"])
        self.environment = dict(environment) | {"HOME": "/tmp/home", "XDG_CACHE_HOME": "/tmp/cache"}
        self._folder = folder

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command on this host, in the repository; its output goes to a pipe."""
        return subprocess.Popen(
            ["nsenter", "--all", "--target", self._first_pid, f"--wdns={REPOSITORY}", *command],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: list[str], timeout_s: float = 120) -> tuple[int, str]:
        """Run a command to its end; return its exit code and output."""
        with self.start(command) as process:
            try:
                out, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, out

    def processes(self, word: str) -> int:
        """Return how many processes of this host have `word` in their command line."""
        _, out = self.run(["ps", "-eo", "args"])
        return sum(word in line for line in out.splitlines())

    def cut_off(self) -> None:
        """Pull both plugs, the network's first: nobody hears of the end. Whatever runs there is killed."""
        if self._process.poll() is None:
            _run(["ip", "link", "delete", self._link])
            self._process.kill()  # takes the first process with it, and that one all others
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def start_head(host: Host) -> str:
    """Start a Ray head without work on a host; return its address as soon as its dashboard answers, also from here."""
    options = f"--head --num-cpus=0 --dashboard-host={host.address} --include-dashboard=true"
    _start_ray(host, options.split())
    assert_dashboard(host)
    return f"{host.address}:6379"


def assert_dashboard(head: Host) -> None:
    """Wait until a head's dashboard answers; AssertionError with what its log, its ports and the routes say if not."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://{head.address}:8265/api/healthz", timeout=10).close()
            return
        except urllib.error.HTTPError:
            return  # an answer, too
        except OSError as error:
            if time.monotonic() > deadline_s:
                told = f"{head.address}:8265 does not answer: {error}\n"
                look = "ss -ltnp; ps -eo args | grep -i dashboard; tail -n 60 /tmp/ray/session_latest/logs/dashboard.*"
                raise AssertionError(told + head.run(["sh", "-c", look])[1] + _run(["ip", "route"])) from error
        time.sleep(0.2)


def start_worker(host: Host, head: str) -> None:
    """Let a host join the cluster as a node of four processors."""
    _start_ray(host, [f"--address={head}", "--num-cpus=4"])


def _start_ray(host: Host, options: list[str]) -> None:
    command = [str(_BIN / "ray"), "start", f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
    code, out = host.run([*command, "--disable-usage-stats", *options])
    assert code == 0, out


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 240) -> None:
    """Return as soon as `condition` holds; AssertionError if it doesn't in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(0.1)


class _Forwarder(socketserver.ThreadingTCPServer):
    """Connections to one address go on to another."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], target: tuple[str, int]) -> None:
        self.target = target
        super().__init__(address, _Connection)


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Forwarder)
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, self.request), daemon=True)
            back.start()
            _copy(self.request, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
