"""Log lines as text and as JSON, of a driver and of its workers, whatever is in the messages."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import REPOSITORY

_NAME = "a\nERROR faked: line\x1b[2J.jpg"


def told(script: str) -> list[str]:
    """What a fresh process writes to standard error; logging is set up once in each."""
    code = f"import logging\nfrom pipeline.cluster import logs\nNAME = {_NAME!r}\n{script}"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return answer.stderr.splitlines()


def test_a_driver_logs_text() -> None:
    (line,) = told("logs.configure(); logging.getLogger('pipeline.x').info('read %s', NAME)")
    assert line.endswith(r"INFO pipeline.x: read a\nERROR faked: line\x1b[2J.jpg")


def test_a_driver_logs_json_of_its_run() -> None:
    lines = told(
        "logs.configure(); logs.use_format('json'); log = logging.getLogger('jobs')\n"
        "log.info('listing'); logs.name_run('r1')\n"
        "try: 1 / 0\nexcept ZeroDivisionError: log.exception('%s', NAME)"
    )
    listing, failure = map(json.loads, lines)
    assert (listing["message"], listing["run_id"], listing["stage"], listing["level"]) == (
        "listing",
        "",
        "driver",
        "INFO",
    )
    assert (failure["run_id"], failure["logger"]) == ("r1", "jobs")
    assert failure["message"] == r"a\nERROR faked: line\x1b[2J.jpg"
    assert "ZeroDivisionError" in failure["exception"]
    assert listing.keys() == {"time", "level", "logger", "message", "run_id", "stage", "node"}


def test_libraries_with_handlers_of_their_own_log_json_too() -> None:
    (line,) = told(
        "import sys; theirs = logging.getLogger('ray.x'); theirs.propagate = False\n"
        "theirs.addHandler(logging.StreamHandler(sys.stderr))\n"
        "logs.configure(); logs.use_format('json'); theirs.warning('late')"
    )
    assert json.loads(line)["message"] == "late"


def test_workers_name_their_run_and_the_stage_of_the_moment() -> None:
    script = (
        "logs.WorkerLogs({!r}, 'r1').enter('read'); logging.getLogger('pipeline.x').info('one')\n"
        "logging.getLogger('botocore').info('found credentials')\n"
        "logs.WorkerLogs({!r}, 'r1').enter('stage'); logging.getLogger('pipeline.x').warning('two')"
    )
    one, two = told(script.format("text", "text"))
    assert one.endswith("INFO pipeline.x: one [run r1, read]")
    assert two.endswith("WARNING pipeline.x: two [run r1, stage]")
    lines = [json.loads(line) for line in told(script.format("json", "json"))]
    assert [(line["message"], line["run_id"], line["stage"]) for line in lines] == [
        ("one", "r1", "read"),
        ("two", "r1", "stage"),
    ]


def test_workers_get_what_their_driver_has() -> None:
    answer = told("logs.use_format('json'); logs.name_run('r2'); logging.warning('%s', logs.for_workers())")
    assert "WorkerLogs(format='json', run_id='r2')" in answer[0]


def test_native_lines_that_nobody_wants_are_kept_from_the_user_and_all_others_arrive() -> None:
    script = """
import os, re, sys
with logs.without_native_lines(re.compile(rb"of no use")):
    os.write(2, b"[E] this is of no use to you\\n[E] this one ")
    print("Python says this", file=sys.stderr)
    os.write(2, b"is of use\\n")
os.write(2, b"afterwards even what is of no use\\n")
print("and Python this", file=sys.stderr)
"""
    lines = told(script.replace("\\\\n", "\\n"))
    assert sorted(lines) == sorted(
        ["Python says this", "[E] this one is of use", "afterwards even what is of no use", "and Python this"]
    )
    assert lines[-1] == "and Python this"


def test_what_is_wrong_is_still_told_when_lines_are_filtered() -> None:
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import re\nfrom pipeline.cluster import logs\nwith logs.without_native_lines(re.compile(b'x')): 1 / 0",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "ZeroDivisionError" in answer.stderr
