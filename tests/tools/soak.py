"""Run what takes too long for every landing, part by part, and print at the end what came of each.

    make soak                              # everything, in hours, beside the shared S3 server where it is at hand
    make soak ONLY="tests chaos"           # some parts

A part that fails stops no other one; the exit status is 1 if any failed. Tests that are marked `soak` are the first
part; a tool that has a command line is a part of its own. Each has a short form, with a fixed seed, among the other
tests.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """One command: what a shell would be told after `python`."""

    name: str
    command: str
    needs_s3: bool = False
    told_lines: int = 1
    """How many of the last lines that it prints go into the summary."""


PARTS = (
    Part("tests", "-m pytest -m soak tests --durations=15"),
    Part("chaos", "-m tests.tools.chaos --kills 50 --photos 2000 --seed 0"),
    Part("chaos-s3", "-m tests.tools.chaos --kills 50 --photos 2000 --seed 1 --s3", needs_s3=True),
    Part("fuzz-decode", "-m tests.tools.fuzz decode --seconds 600 --seed 2", told_lines=4),
    Part("fuzz-exif", "-m tests.tools.fuzz exif --seconds 300 --seed 2", told_lines=4),
    Part("fuzz-manifest", "-m tests.tools.fuzz manifest --seconds 300 --seed 2", told_lines=4),
    Part("fuzz-metadata", "-m tests.tools.fuzz metadata --seconds 600 --seed 2", told_lines=4),
    Part("fuzz-members", "-m tests.tools.fuzz members --seconds 300 --seed 2", told_lines=4),
    Part("fuzz-sidecars", "-m tests.tools.fuzz sidecars --seconds 600 --seed 2", told_lines=4),
    Part("simulation", "-m tests.simulation --schedules 20000"),
    Part("mutants", "-m tests.tools.mutants --count 100", told_lines=12),
    Part("ablation", "-m jobs.synthetic_globe ablate", told_lines=24),
)
"""In the order in which they run; a new tool is one more line."""


def soak(parts: Sequence[Part]) -> int:
    """Run the parts, their output as it comes, then print the summary; return the exit status."""
    summary, failed, begun_s = list[str](), 0, time.monotonic()
    for part in parts:
        if part.needs_s3 and not os.environ.get("AWS_ENDPOINT_URL"):
            summary.append(f"{part.name}: left out, as AWS_ENDPOINT_URL names no S3 server")
            continue
        print(f"\n== {part.name}: python {part.command}", flush=True)  # noqa: T201
        status, took_s, told = _run(part)
        failed += status != 0
        outcome = f"FAILED with exit status {status}" if status else "passed"
        summary.append(f"{part.name}: {outcome} after {_duration(took_s)}")
        summary += [f"    {line}" for line in told]
    print(f"\n== soak: {_duration(time.monotonic() - begun_s)}, {failed} of {len(parts)} parts failed")  # noqa: T201
    print("\n".join(summary))  # noqa: T201
    return 1 if failed else 0


def _run(part: Part) -> tuple[int, float, list[str]]:
    begun_s, told = time.monotonic(), deque[str](maxlen=part.told_lines)
    with subprocess.Popen(
        [sys.executable, *shlex.split(part.command)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)  # noqa: T201
            if line.strip():
                told.append(line.rstrip())
    return process.returncode, time.monotonic() - begun_s, list(told)


def _duration(seconds: float) -> str:
    return str(dt.timedelta(seconds=round(seconds)))


def main() -> int:
    """Run the parts that the command line names, else all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts; all if left out")
    only = parser.parse_args().only
    return soak([part for part in PARTS if only is None or part.name in only])


if __name__ == "__main__":
    sys.exit(main())
