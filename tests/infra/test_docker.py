"""The Dockerfile and every shell script here, by their linters; and what an image must not hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_architecture import LAYERS, tracked_files

DOCKERFILE = REPOSITORY / "infra" / "docker" / "Dockerfile"


def tool(name: str) -> str:
    """The path of a linter that the extra `infra` brings, or the machine has."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{'/usr/local/bin:/usr/bin'}")
    if found is None:
        pytest.skip(f"needs {name} (extra `infra`)")
    return found


def test_hadolint() -> None:
    checked = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert re.findall(r"hadolint ignore=(.*)", DOCKERFILE.read_text()) == ["DL3008"]  # Debian removes old versions


def test_every_shell_script() -> None:
    scripts = [
        name
        for name in tracked_files()
        if not name.endswith((".py", ".md")) and re.match(rb"#!.*\b(ba)?sh\b", (REPOSITORY / name).read_bytes()[:80])
    ]
    assert {"infra/local_s3/up", "infra/docker/build_without_docker"} <= set(scripts)
    checked = subprocess.run(
        [tool("shellcheck"), *scripts], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_images_run_as_nobody_special() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.split()[2]: stage for stage in stages}
    final = {name: stage for name, stage in by_name.items() if "USER " in stage}
    assert list(final) == ["tensorrt", "cuda", "cpu"]  # the last one is what is built unasked
    for stage in final.values():
        assert stage.rstrip().endswith("USER 1000:1000")
    assert "HEALTHCHECK" in by_name["runtime"]
    assert "RAY_AUTH_MODE=token" in by_name["runtime"]


def test_base_image_is_pinned_to_one_release() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG BASE=python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {
        "${BASE}", "dependencies", "installed", "runtime", "runtime-gpu",
    }  # fmt: skip
    for install in re.findall(r"pip install (.*)", text):
        assert "--constraint constraints.txt" in install or "--no-deps" in install, install


def test_all_that_the_code_needs_is_in_the_context() -> None:
    left_out = [line.strip("/") for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "/"]
    assert not set(left_out) & {*LAYERS, "pyproject.toml", "constraints.txt", "README.md"}
    assert {".git", ".venv", "tests"} <= set(left_out)
