"""Operators' pages are true: their commands parse, their links lead somewhere, the code says what they quote."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from jobs.graticule import module_of
from tests.conftest import REPOSITORY
from tests.test_architecture import modules

PAGES = sorted([REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "infra").rglob("*.md")])


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def job_commands() -> list[list[str]]:
    """Module and arguments of every job that a page starts, in blocks and in its text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in lines + re.findall(r"`([^`\n]+)`", prose):
            words = shlex.split(line, comments=True) if "-m jobs." in line else []
            if words:
                found.append(words[words.index("-m") + 1 :])
    return found


@pytest.mark.parametrize("words", job_commands(), ids=" ".join)
def test_job_commands_parse(words: list[str]) -> None:
    module = importlib.import_module(module_of(words[0].removeprefix("jobs.")))
    assert "\n    run_command(" in Path(str(module.__file__)).read_text()
    if len(words) == 1 or words[-1] == "--help":
        return
    (settings_type,) = (
        value
        for name, value in vars(module).items()
        if name.endswith("Settings") and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    )
    tyro.cli(settings_type, args=words[1:])


def test_some_commands_were_found() -> None:
    assert {words[0] for words in job_commands()} >= {"jobs.geotag_archive", "jobs.nightly", "jobs.query", "jobs.train"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:model|pipeline|training|jobs|tests|infra|kubernetes)/[\w./]+\.\w+)`", text):
        below = REPOSITORY / "infra" if name.startswith("kubernetes/") else REPOSITORY
        assert (below / name).is_file(), name


def test_what_machines_need_in_their_environment_is_in_images_and_the_launcher_too() -> None:
    by_hand = set(re.findall(r"RAY_\w+=\d+", (REPOSITORY / "infra" / "README.md").read_text(encoding="utf-8")))
    assert len(by_hand) >= 3
    for name in ("docker/Dockerfile", "aws/cluster.yaml"):
        text = (REPOSITORY / "infra" / name).read_text(encoding="utf-8")
        assert {setting for setting in by_hand if setting not in text} == set(), name


def messages() -> set[str]:
    """Every text in the code, `…` in place of what is put into it."""
    found = set()
    for module in modules():
        for node in ast.walk(ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"%[\d.]*[sdgf]", "…", node.value))
    return found


def quoted() -> list[str]:
    """The messages that the runbook quotes: what is between backticks and has a hole or is a sentence's length."""
    runbook = (REPOSITORY / "infra" / "README.md").read_text(encoding="utf-8").split("## When something fails\n")[1]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in runbook.splitlines() if line.startswith("| `")]
    assert len(rows) >= 10
    others = re.findall(r"`([^`]*… ?[^`]*)`", runbook)
    return sorted({row.strip("`") for row in rows} | {text for text in others if len(text) > 12})


@pytest.mark.parametrize("message", quoted())
def test_the_code_says_what_the_runbook_quotes(message: str) -> None:
    pattern = re.compile(".+".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    assert [text for text in messages() if pattern.fullmatch(text)]
