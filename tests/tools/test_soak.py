"""`make soak` runs all its parts, whatever fails, and tells the truth of each; plain runs leave soaking tests out."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.fuzz import TARGETS
from tests.tools.soak import PARTS, REPOSITORY, Part, soak


def test_a_part_that_fails_stops_no_other(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    parts = [
        Part("bad", "-c \"print('one'); print('two'); raise SystemExit(3)\""),
        Part("good", r"""-c "print('three\nfour\n\nfive')" """, told_lines=2),
        Part("remote", "-c 'print(6)'", needs_s3=True),
    ]
    assert soak(parts) == 1
    out = capfd.readouterr().out
    progress, summary = out.split("\n== soak: ")
    assert "one\ntwo\n" in progress
    assert "\n6\n" not in out
    assert summary.splitlines() == [
        "0:00:00, 1 of 3 parts failed",
        "bad: FAILED with exit status 3 after 0:00:00",
        "    two",
        "good: passed after 0:00:00",
        "    four",
        "    five",
        "remote: left out, as AWS_ENDPOINT_URL names no S3 server",
    ]
    assert soak(parts[1:2]) == 0


def test_parts_are_there() -> None:
    modules = [shlex.split(part.command)[:3] for part in PARTS]
    for flag, module, _ in modules:
        assert flag == "-m"
        assert importlib.util.find_spec(module), module
    assert {target for _, module, target in modules if module == "tests.tools.fuzz"} == set(TARGETS)


def test_soaking_tests_run_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.soak\ndef test_long(): pass\ndef test_short(): pass\n"
    )
    for options, ran in (([], "test_short"), (["-m", "soak"], "test_long")):
        command = [sys.executable, "-m", "pytest", "-c", REPOSITORY / "pyproject.toml", "--collect-only", "-q"]
        command += ["-p", "no:cacheprovider", *options, tmp_path / "test_it.py"]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert [line.split("::")[-1] for line in answer.stdout.splitlines() if "::" in line] == [ran]
