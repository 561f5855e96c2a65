"""Kill the parts of a run at random moments, again and again, and see that every photo still gets its one row.

    python -m tests.tools.chaos --kills 100 --photos 4000 [--s3 [s3://BUCKET/PREFIX]] [--seed 0]

The victims: the driver, one of Ray's workers, a decoder's process, the raylet, the whole machine (every process of the
run), and, on S3, the server itself, which then stays away for a while; a third of the kills wait for the publishing.
When a run gets through in spite of it, the archive grows and the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from pipeline import storage
from pipeline.cluster.flow import ExecutorName
from pipeline.published.catalog import Catalog
from pipeline.run.verify import verify_output
from tests.conftest import REPOSITORY, fresh_bucket, ray_environment, write_tiny_checkpoint
from tests.support.photo_samples import china_image, encode
from tests.support.processes import processes_with

MARK = "GRATICULE_CHAOS"
LATEST_KILL_S = 20.0
_IN_OPEN = 0x20


@dataclass
class Tally:
    """What was done to one archive, and what came of it."""

    photos: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    reads: int = 0

    def __str__(self) -> str:
        killed = ", ".join(f"{victim} {count}" for victim, count in sorted(self.kills.items()))
        ended = ", ".join(f"{end} {count}" for end, count in sorted(self.ends.items()))
        share = f", {self.reads / self.photos - 1:.1%} read again" if self.reads else ""
        return f"{self.photos} photos, {sum(self.kills.values())} kills ({killed}); drivers ended: {ended}{share}"


class Chaos:
    """An archive, its output, and somebody who pulls plugs; `folder` is local, `root` may be on S3."""

    def __init__(
        self,
        root: str,
        folder: Path,
        model: Path,
        seed: int,
        cache_home: Path | None = None,
        executor: ExecutorName = "ray",
    ) -> None:
        self._executor = executor
        self.photos, self.output = f"{root}/photos", f"{root}/out"
        self.tally = Tally()
        self._folder, self._model = folder, model
        self._random = random.Random(seed)
        self._next_victims: list[str] = []
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._jpeg = encode(china_image().resize((320, 240)), "jpeg")
        temporary = tempfile.mkdtemp(prefix="chaos", dir="/tmp")  # the path of a Unix socket has at most 107 bytes
        self._ray_folder = Path(temporary)
        self._environment = os.environ | ray_environment(folder / "token") | {MARK: self._mark, "RAY_TMPDIR": temporary}
        self._environment["XDG_CACHE_HOME"] = str(cache_home or folder / "cache")
        self._environment.pop("RAY_ADDRESS", None)

    def grow(self, count: int) -> None:
        """Add photos to the archive, each with bytes of its own."""
        for index in range(self.tally.photos, self.tally.photos + count):
            storage.write_bytes(f"{self.photos}/{index // 1000:03d}/{index:07d}.jpg", self._jpeg + b"%d" % index)
        self.tally.photos += count

    def run(self, kills: int) -> None:
        """Run the job until so many kills have hit, then in peace; AssertionError if a photo is lost or doubled."""
        more = max(self.tally.photos // 4, 1)
        try:
            while sum(self.tally.kills.values()) < kills:
                if self._disturbed_run() == 0:
                    self.check()
                    self.grow(more)
            self._peaceful_run()
            self.check()
        finally:
            self._kill(self._processes())
            shutil.rmtree(self._ray_folder, ignore_errors=True)

    def check(self) -> None:
        """What is published has every photo once, for those who read it as they should and for those who just glob."""
        counts = "count(*), count(DISTINCT photo_id), count(*) FILTER (status <> 'failed')"
        assert Catalog(self.output).sql(f"SELECT {counts} FROM photos").fetchall() == [(self.tally.photos,) * 3]
        with duckdb.connect() as connection:
            storage.let_duckdb_read(connection, self.output)
            files = [e.uri for e in storage.list_files(f"{self.output}/photos") if e.uri.endswith(".parquet")]
            rows = connection.execute(f"SELECT {counts} FROM read_parquet($files)", {"files": files}).fetchall()
            assert rows == [(self.tally.photos,) * 3]
        assert not list(storage.list_files(f"{self.output}/staging"))
        problems = verify_output(self.output)
        assert not problems, "\n".join(map(str, problems))

    def _command(self) -> list[str]:
        options = f"--photos {self.photos} --output {self.output} --model {self._model} --lease.seconds 6"
        return [
            *(sys.executable, "-m", "jobs.geotag_archive", *options.split()),
            *("--cluster.rows-per-part", "64", "--max-failed-fraction", "0", "--executor", self._executor),
        ]

    def _peaceful_run(self) -> None:
        for _ in range(2):  # transient failures of the last storm are healed by the next run
            answer = subprocess.run(
                self._command(), cwd=REPOSITORY, env=self._environment, capture_output=True, text=True, check=False
            )
            if answer.returncode == 0:
                return
        raise AssertionError(f"in peace the run ends with {answer.returncode}: {answer.stderr[-3000:]}")

    def _disturbed_run(self) -> int:
        """Start the job and kill something at a random moment; return the driver's exit code."""
        log = self._folder / "driver.log"
        if not self._next_victims:
            self._next_victims = ["driver", "decoder", "machine"]
            if self._executor == "ray":
                self._next_victims += ["worker", "raylet"]
            if self.output.startswith("s3://") and self._gateway_pid():
                self._next_victims.append("store")
            self._random.shuffle(self._next_victims)
        victim, waits_for_publishing = self._next_victims[-1], self._random.random() < 1 / 3
        moment_s = self._random.uniform(0, 2 if waits_for_publishing else LATEST_KILL_S)
        with open(log, "wb") as sink:
            driver = subprocess.Popen(
                self._command(), cwd=REPOSITORY, env=self._environment, stdout=sink, stderr=sink, start_new_session=True
            )
        with driver:
            while waits_for_publishing and driver.poll() is None and b": publishing" not in log.read_bytes():
                time.sleep(0.05)
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(moment_s)
            if driver.poll() is None and self._strike(victim, driver.pid):
                self.tally.kills[victim + (" while publishing" if waits_for_publishing else "")] += 1
                self._next_victims.pop()
            try:
                code = driver.wait(300)
            except subprocess.TimeoutExpired:
                self._kill(self._processes())  # else leaving the block would wait for it
                raise
        self.tally.ends["killed" if code == -signal.SIGKILL else f"with {code}"] += 1
        text = log.read_text(errors="replace")
        assert code in (0, 1, 3, -signal.SIGKILL), f"the driver ended with {code}: {text[-3000:]}"
        assert "UnaccountedError" not in text, text[-3000:]
        return code

    def _strike(self, victim: str, driver_pid: int) -> bool:
        """Kill the victim; False where there is none (yet)."""
        processes = self._processes()
        if victim == "driver":
            return self._kill({driver_pid: ""})
        if victim == "machine":
            return self._kill(processes)
        if victim == "store":
            return self._restart_gateway()
        word = {"worker": "ray::", "decoder": "pipeline.read.isolation", "raylet": "/raylet"}[victim]
        found = {pid: title for pid, title in processes.items() if word in title}
        return bool(found) and self._kill(dict([self._random.choice(sorted(found.items()))]))

    def _processes(self) -> dict[int, str]:
        return processes_with(f"{MARK}={self._mark}")

    @staticmethod
    def _kill(processes: dict[int, str]) -> bool:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(processes)

    @staticmethod
    def _gateway_pid() -> int | None:
        """Return the S3 server's process, where it is one that we may kill and start again."""
        pid_file = Path(os.environ.get("S3_FOLDER", "/nowhere")) / "client.rgw.a.pid"
        return int(pid_file.read_text()) if pid_file.exists() else None

    def _restart_gateway(self) -> bool:
        pid = self._gateway_pid()
        assert pid is not None
        self._kill({pid: ""})
        time.sleep(self._random.uniform(0, 10))
        command = ["radosgw", "-c", f"{os.environ['S3_FOLDER']}/ceph.conf", "-n", "client.rgw.a"]
        subprocess.run(command, check=True, capture_output=True)
        return True


@contextlib.contextmanager
def opened_files(folders: Callable[[], list[Path]], tally: Tally) -> Iterator[None]:
    """Count into `tally.reads` how often files in the folders are opened (Linux's inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    finished, watched = threading.Event(), set[Path]()

    def watch() -> None:
        while not finished.wait(0.05):
            for folder in set(folders()) - watched:
                libc.inotify_add_watch(handle, os.fsencode(folder), _IN_OPEN)
                watched.add(folder)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(handle, 1 << 20):
                    while data:
                        _, mask, _, length = struct.unpack_from("iIII", data)
                        assert not mask & 0x4000, "more happened than could be counted"
                        tally.reads += bool(mask & _IN_OPEN) and b".jpg" in data[16 : 16 + length]
                        data = data[16 + length :]

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        os.close(handle)


def main() -> None:
    """Run the long version by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--s3", nargs="?", const="", help="a prefix, else a bucket of its own; the environment's server"
    )
    parser.add_argument("--model", type=Path, help="a checkpoint's folder; a tiny one with random weights if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as around:
        model = arguments.model or write_tiny_checkpoint(Path(folder) / "tiny")
        if arguments.s3 is None:
            root = folder
        else:
            root = arguments.s3 or f"s3://{around.enter_context(fresh_bucket())}/chaos"
        chaos = Chaos(root, Path(folder), model, arguments.seed)
        chaos.grow(arguments.photos)
        if arguments.s3 is None:
            around.enter_context(opened_files(lambda: list(Path(chaos.photos).glob("*/")), chaos.tally))
        chaos.run(arguments.kills)
        print(chaos.tally)  # noqa: T201


if __name__ == "__main__":
    main()
