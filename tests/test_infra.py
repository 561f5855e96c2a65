"""What operators install is what its own tools accept."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

NIGHTLY = REPOSITORY / "infra" / "nightly"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (package systemd)")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in NIGHTLY.glob("graticule-nightly.*"):
        text = path.read_text()
        # systemd-analyze looks whether the program and the user exist.
        text = text.replace("/opt/graticule/.venv/bin/python", sys.executable).replace("User=graticule", "User=root")
        (tmp_path / path.name).write_text(text.replace("/opt/graticule", str(tmp_path)))
    units = sorted(tmp_path.glob("graticule-nightly.*"))
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    (when,) = re.findall(r"OnCalendar=(.*)", (NIGHTLY / "graticule-nightly.timer").read_text())
    calendar = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, text=True, check=False)
    assert calendar.returncode == 0, calendar.stderr


@pytest.mark.parametrize("name", ["graticule-nightly.service", "crontab"])
def test_nightly_examples_call_a_command_that_exists(name: str) -> None:
    (arguments,) = re.findall(r"python -m jobs\.nightly ([^>\n]*)", (NIGHTLY / name).read_text())
    values = arguments.replace("${", "$").replace("}", "").replace('"', "").split()
    values = [value.replace("$PHOTOS", "/nowhere").replace("$OUTPUT", "/nowhere/out") for value in values]
    command = [sys.executable, "-m", "jobs.nightly", *values, "--date", "never"]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (answer.returncode, "give a date such as" in answer.stderr) == (2, True), answer.stderr
