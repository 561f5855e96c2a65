"""Hostile files by the thousand: seeded mutations of real ones, decoded in a child process that may die of them.

By hand: `python -m tests.tools.fuzz decode --seconds 600 [--seed 1] [--corpus FOLDER] [--findings FOLDER]`. Execution i
of a seed is the same bytes whenever it is made (with the same corpus), so a child needs no log: when it dies or
stalls, the parent makes that input again and saves it. Exit status 1: a property was violated, or an input took long.
A decoder that crashed is listed apart, as the product keeps decoders in processes of their own.
"""

# ruff: noqa: PT017 - assertions on a refusal belong where it is caught, these are no tests

from __future__ import annotations

import argparse
import collections
import functools
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.tools.fuzz_metadata import check_metadata
from tests.tools.fuzz_mutation import Seed, mutated, seeds_of
from tests.tools.fuzz_sidecars import check_sidecars

_ROOT = Path(__file__).parents[2]
_MEMORY_LIMIT_BYTES = 4 << 30
_STALL_S, _START_S = 60, 60
_ALIKE_SAVED = 2  # inputs that break at the same line; all are counted
_SLOW_S = 10.0  # of processor time: the machine may be busy
_GROWTH_LIMIT_BYTES = 1 << 30
_DECODER_MEMORY_BYTES = 64 << 20


@dataclass
class Report:
    """What a campaign saw: executions by outcome, and inputs that were saved because of what they did."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    violations: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """Return the report in words."""
        count = sum(self.outcomes.values())
        found = [
            f"{kind}: {what}" for kind in ("violations", "hangs", "crashes") for what in getattr(self, kind) or ["none"]
        ]
        by_code = ", ".join(f"{code} {n}" for code, n in self.outcomes.most_common())
        return [f"{count} executions, {count / max(self.seconds, 1e-9):.0f} a second: {by_code}", *found]


# --- targets: each takes an input and returns the name of its outcome; an exception is a violation


def check_decode(data: bytes) -> str:
    """A photo of the right shape, or a refusal from the closed set; what is told of it fits the output's columns."""
    from pipeline.decode.photo import DecodeFailure, DecodeLimits, DecodeTarget, decode_photo
    from pipeline.decode.pictures.raw import RAW_FORMATS
    from pipeline.decode.pictures.video import VIDEO_FORMATS

    facts: object
    try:
        photo = decode_photo(
            data, DecodeTarget(64, 72, video_frames=3), DecodeLimits(max_memory_bytes=_DECODER_MEMORY_BYTES)
        )
    except DecodeFailure as failure:
        assert failure.code in ("empty", "too_large", "unsupported_format", "truncated", "corrupt"), failure.code
        assert failure.message == "".join(c for c in failure.message if c.isprintable())
        assert 0 < len(failure.message) <= 300
        code, facts = str(failure.code), failure.facts
    else:
        assert photo.pixels_HWC.shape == (64, 64, 3)
        assert str(photo.pixels_HWC.dtype) == "uint8"
        code, facts = "ok", photo
    if facts is not None:
        known = {
            "jpeg",
            "png",
            "webp",
            "tiff",
            "gif",
            "bmp",
            "heic",
            "avif",
            "jxl",
            "jp2",
            *RAW_FORMATS,
            *VIDEO_FORMATS,
        }
        assert facts.format in known  # type: ignore[attr-defined]
        assert 0 < facts.width_px < 1 << 31, facts  # type: ignore[attr-defined]
        assert 0 < facts.height_px < 1 << 31, facts  # type: ignore[attr-defined]
        _check_exif_facts(facts.exif)  # type: ignore[attr-defined]
    return code


def check_exif(data: bytes) -> str:
    """Readers of structure never raise, and what they return is in range."""
    from pipeline.decode.codec_errors import is_cut
    from pipeline.decode.exif import read_exif, tiff_extent_bytes, tiff_number
    from pipeline.decode.photo import sniff_format
    from pipeline.schema import PhotoError

    facts = read_exif(data)
    _check_exif_facts(facts)
    assert tiff_extent_bytes(data) >= 0
    for tag in (254, 256, 258, 50706):
        number = tiff_number(data, tag)
        assert number is None or isinstance(number, int)
    for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "heic", "avif", "jxl", "jp2"):
        assert is_cut(name, data) in (True, False)
    try:
        sniff_format(data)
    except PhotoError as error:
        assert error.code == "unsupported_format"
    told = (facts.lat_deg is not None, facts.taken_at is not None, facts.orientation != 1)
    return " ".join(name for name, is_told in zip(("position", "time", "turn"), told, strict=True) if is_told) or "none"


def _check_exif_facts(facts: object) -> None:
    from pipeline.decode.exif import ExifFacts

    assert isinstance(facts, ExifFacts)
    assert (facts.lat_deg is None) == (facts.lon_deg is None)
    if facts.lat_deg is not None and facts.lon_deg is not None:
        assert math.isfinite(facts.lat_deg), facts
        assert -90 <= facts.lat_deg <= 90, facts
        assert math.isfinite(facts.lon_deg), facts
        assert -180 <= facts.lon_deg <= 180, facts
        assert (facts.lat_deg, facts.lon_deg) != (0, 0)
    assert facts.orientation in range(1, 9)
    assert facts.taken_at is None or (isinstance(facts.taken_at, datetime) and facts.taken_at.tzinfo is None)


def check_manifest(data: bytes) -> str:
    """Batches of the manifest's schema, every row with its photo's name; or a ValueError."""
    from pipeline import schema
    from pipeline.sources.manifest import read_manifest

    name = "manifest.parquet" if data[:4] == b"PAR1" else "manifest.csv"
    path = _scratch() / name
    path.write_bytes(data)
    rows = 0
    try:
        for batch in read_manifest(str(path)):
            assert batch.schema == schema.MANIFEST
            batch.validate(full=True)
            assert batch[schema.URI].null_count == batch[schema.PHOTO_ID].null_count == 0
            rows += batch.num_rows
    except ValueError:
        return "refused"
    return "rows" if rows else "no rows"


def check_members(data: bytes) -> str:
    """An archive's table of contents or a ValueError; of each member its bytes within the limit, or a typed refusal."""
    from pipeline import schema, storage
    from pipeline.read import archive_members
    from pipeline.sources import archives
    from pipeline.storage import local_files

    path = _scratch() / ("archive.zip" if data[:2] == b"PK" else "archive.tar")
    path.write_bytes(data)
    try:
        members = archives.list_members(storage.Entry(str(path), len(data), local_files.etag_of(path.stat()), 0))
    except ValueError as error:
        assert path.name in str(error), f"no file named: {error!r}"
        return "refused"
    assert members.schema == archives.MEMBERS
    members.validate(full=True)
    for row in members.slice(0, 20).to_pylist():
        limit_bytes = 1 << 20
        try:
            place = row[schema.OFFSET_BYTES], row[schema.STORED_BYTES]
            photo = archive_members.read_member(str(path), *place, container_etag=None, max_bytes=limit_bytes)
            assert len(photo) <= limit_bytes
        except schema.PhotoError as failure:
            assert failure.code in ("too_large", "truncated", "corrupt", "unsupported_format"), failure.code
    return "members" if members.num_rows else "no members"


@functools.cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="graticule-fuzz-"))


TARGETS: dict[str, Callable[[bytes], str]] = {
    "decode": check_decode,
    "exif": check_exif,
    "manifest": check_manifest,
    "members": check_members,
    "metadata": check_metadata,
    "sidecars": check_sidecars,
}


# --- the child


def input_of(target: str, seed: int, index: int, seeds: list[Seed]) -> bytes:
    """Return execution `index`'s bytes."""
    return mutated(random.Random(f"{target}/{seed}/{index}"), seeds)


def _run_child(target: str, seed: int, start: int, stop: int, corpus: Path | None) -> None:
    check, seeds = TARGETS[target], seeds_of(target, corpus)
    check(seeds[0].data)  # imports and tables are not the input's doing
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # the product runs with warnings shown; noise here
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(start, stop):
        data = input_of(target, seed, index, seeds)
        begun_s, problem, outcome = time.process_time(), "", "violation"
        try:
            outcome = check(data)
        except Exception as error:  # noqa: BLE001 - whatever escapes is the finding
            frame = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {error}"[:300]
        took_s = time.process_time() - begun_s
        if took_s > _SLOW_S:
            problem = problem or f"took {took_s:.1f} s of processor time"
        now_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if now_kib - peak_kib > _GROWTH_LIMIT_BYTES >> 10:
            problem = problem or f"took {(now_kib - peak_kib) >> 10} MiB more than anything before"
            peak_kib = now_kib
        os.write(1, (json.dumps([outcome, problem]) + "\n").encode())


# --- the parent


def campaign(
    target: str, seed: int, executions: int, seconds: float, findings: Path, corpus: Path | None = None
) -> Report:
    """Run up to `executions` inputs for up to `seconds`; inputs that do harm are saved in the folder `findings`."""
    report, begun_s, index = Report(), time.monotonic(), 0
    seeds: list[Seed] = []
    alike: collections.Counter[str] = collections.Counter()

    def save(at: int, kind: str, what: str) -> str:
        if not seeds:
            seeds.extend(seeds_of(target, corpus))
        findings.mkdir(parents=True, exist_ok=True)
        path = findings / f"{target}-{kind}-{seed}-{at}.bin"
        path.write_bytes(input_of(target, seed, at, seeds))
        return f"{path} (seed {seed}, execution {at}): {what}"

    while index < executions and time.monotonic() - begun_s < seconds:
        command = [
            sys.executable,
            "-m",
            "tests.tools.fuzz",
            target,
            "--child",
            f"{index}:{executions}",
            f"--seed={seed}",
        ]
        command += [f"--corpus={corpus}"] if corpus else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=_ROOT, env=environment) as child,
        ):
            assert child.stdout is not None
            is_stalled = threading.Event()
            last_s = [time.monotonic() + _START_S]
            threading.Thread(target=_watch, args=(child, last_s, is_stalled), daemon=True).start()
            for line in child.stdout:
                last_s[0] = time.monotonic()
                outcome, problem = json.loads(line)
                report.outcomes[outcome] += 1
                if problem:
                    alike[problem.split(": ")[0]] += 1
                    if alike[problem.split(": ")[0]] <= _ALIKE_SAVED:
                        report.violations.append(save(index, "violation", problem))
                index += 1
                if last_s[0] - begun_s >= seconds:
                    child.kill()
                    break
            is_cut_short = time.monotonic() - begun_s >= seconds
            status = child.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        if index == executions or (is_cut_short and not is_stalled.is_set()):
            break
        if status == 1:  # not the input's doing: the harness itself failed
            raise RuntimeError(f"the fuzzing child failed:\n{said[-4000:]}")
        if is_stalled.is_set():
            report.outcomes["hang"] += 1
            report.hangs.append(save(index, "hang", f"no answer in {_STALL_S} s"))
        else:
            report.outcomes["crash"] += 1
            where = next((text for text in said.splitlines() if text.startswith("  File")), "").strip()
            report.crashes.append(save(index, "crash", f"exit status {status}; {where}"))
        index += 1
    report.seconds = time.monotonic() - begun_s
    return report


def _watch(child: subprocess.Popen[bytes], last_s: list[float], is_stalled: threading.Event) -> None:
    while child.poll() is None:
        if time.monotonic() - last_s[0] > _STALL_S:
            is_stalled.set()
            child.kill()
        time.sleep(0.5)


def main() -> int:
    """Run a campaign as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--executions", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder of more files to mutate")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "graticule-fuzz")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        start, stop = map(int, options.child.split(":"))
        _run_child(options.target, options.seed, start, stop, options.corpus)
        return 0
    report = campaign(
        options.target, options.seed, options.executions, options.seconds, options.findings, options.corpus
    )
    print("\n".join(report.lines()))  # noqa: T201
    return 1 if report.violations or report.hangs else 0


if __name__ == "__main__":
    sys.exit(main())
