"""README and the pages it leads to are true: tables, command lines, SQL and links."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import duckdb
import pytest
import tyro

from jobs import graticule
from jobs.graticule import module_of
from pipeline import schema
from tests.support.photo_rows import failed_row, located_row
from tests.support.published_rows import publish_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = ROOT / "pipeline" / "published" / "columns.md"
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in sorted(
        [ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *(ROOT / "pipeline" / "published").glob("*.md")]
    )
}


def blocks(language: str) -> list[str]:
    """The pages' fenced blocks of one language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
    return [block for text in PAGES.values() for block in pattern.findall(text)]


def table_rows(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, cells without their backticks around."""
    section = PAGES[COLUMNS].split(f"## {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def commands() -> list[list[str]]:
    """Every command line in the pages' bash blocks, its comment removed."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_column_table_is_the_schema() -> None:
    expected = [[f"`{field.name}`", str(field.type), field.metadata[b"doc"].decode()] for field in schema.PHOTOS]
    for row in expected:
        if row[1].startswith("list<"):
            row[1] = "list of structs" if "struct" in row[1] else "list of strings"
    assert table_rows("Columns") == expected


def test_error_table_is_the_closed_set() -> None:
    assert [row[0] for row in table_rows("Error codes")] == [f"`{code}`" for code in schema.ErrorCode]
    transient = {row[0].strip("`") for row in table_rows("Error codes") if row[2] == "by itself"}
    assert transient == {str(code) for code in schema.TRANSIENT_ERRORS}


def job_arguments() -> list[list[str]]:
    """Module name and arguments of every job that the pages start."""
    found = []
    for words in commands():
        if "-m" in words and words[words.index("-m") + 1].startswith("jobs."):
            found.append(words[words.index("-m") + 1 :])
        if words[0] == "graticule":
            found.append([f"jobs.{words[1].replace('-', '_')}", *words[2:]])
        scripts = [index for index, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)]
        found += [[words[index][:-3].replace("/", "."), *words[index + 1 :]] for index in scripts]
    return found


@pytest.mark.parametrize("words", job_arguments(), ids=" ".join)
def test_command_lines_parse(words: list[str]) -> None:
    module = importlib.import_module(module_of(words[0].removeprefix("jobs.")))
    (settings_type,) = (
        value
        for name, value in vars(module).items()
        if name.endswith("Settings") and dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    )
    tyro.cli(settings_type, args=words[1:])


def test_pages_show_every_job() -> None:
    jobs = {name.replace("-", "_") for name in graticule.commands()}
    shown = {words[0].removeprefix("jobs.") for words in job_arguments()} | {"demo"}  # the demo runs by make
    assert shown == jobs


def test_make_targets_exist() -> None:
    for words in commands():
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_sql_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [located_row("a.jpg", 43.46, 11.88, confidence=0.9), failed_row("b.jpg", schema.ErrorCode.EMPTY)]
    catalog = publish_rows(str(tmp_path / "geotags"), rows)
    monkeypatch.chdir(tmp_path)
    queries = [query for block in blocks("sql") for query in block.split(";") if query.strip()]
    assert any("read_parquet" in query for query in queries)
    for query in queries:
        found = duckdb.sql(query).fetchall() if "read_parquet" in query else catalog.rows(query).to_pylist()
        assert len(found) == 1, query


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_readme_is_for_users_and_leads_to_the_rest() -> None:
    assert len(README.splitlines()) <= 130
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target}
    assert linked >= PAGES.keys() - {ROOT / "README.md"}
