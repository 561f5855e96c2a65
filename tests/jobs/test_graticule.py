"""The command `graticule`: every job by one name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.graticule import commands
from tests.conftest import REPOSITORY


def graticule(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.graticule", *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_it_lists_every_job_with_its_purpose() -> None:
    shown = graticule("--help")
    assert shown.returncode == 0
    lines = {words[0]: words[1:] for line in shown.stdout.splitlines()[2:] if (words := line.split())}
    assert lines.keys() == commands().keys() >= {"geotag-archive", "nightly", "query", "report", "train", "benchmark"}
    assert all(len(says) > 3 for says in lines.values()), "a job's first line must say what it is for"


def test_it_runs_a_job_with_its_arguments_and_its_exit_code(tmp_path: Path) -> None:
    answer = graticule("query", str(tmp_path / "nothing"), "SELECT 1")
    assert answer.returncode == 2
    assert "nothing is published" in answer.stderr


def test_a_jobs_help_is_called_by_the_name_that_was_typed() -> None:
    answer = graticule("query", "--help")
    assert answer.returncode == 0
    assert "usage: graticule query " in answer.stdout


@pytest.mark.parametrize(("typed", "hint"), [("nightli", "did you mean nightly?"), ("xyzzy", "lists all")])
def test_an_unknown_command_is_answered_with_what_to_type(typed: str, hint: str) -> None:
    answer = graticule(typed)
    assert answer.returncode == 2
    assert hint in answer.stderr
