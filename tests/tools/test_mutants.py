"""Mutants are the faults that they say, the same ones for a seed; what survives without a reason is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tools import mutants as runner
from tests.tools.mutant_maker import mutants

SOURCE = '''
"""Module whose docstring says SELECT FROM WHERE a > 1."""

LIMIT = 7  # größer
LABEL: dict[str, int | None] = {"a": 1}
SQL = f"""
    SELECT DISTINCT a FROM t ANTI JOIN u USING (a) -- WHERE a > 1
    WHERE b BETWEEN 0 AND 9 AND c > {LIMIT} ORDER BY "ä" DESC NULLS LAST"""


class Thing:
    def grow(self, parts: list[int], is_new: bool) -> list[int]:
        """Return more."""
        log.info("%d > 1", len(parts))
        if not is_new and len(parts) <= LIMIT:
            raise ValueError(f"{len(parts)} parts, more than {LIMIT - 1}")
        parts.append(1)
        return [part * 2 for part in parts if part is not None]
'''.encode()


def changes(kind: str, source: bytes = SOURCE) -> list[tuple[str, str]]:
    return [(mutant.function, mutant.now) for mutant in mutants("m.py", source) if mutant.kind == kind]


def test_each_kind_of_fault_is_made_where_it_can_be() -> None:
    grow = "Thing.grow"
    assert changes("comparison") == [
        (grow, "if not is_new and len(parts) < LIMIT:"),
        (grow, "if not is_new and len(parts) > LIMIT:"),
        (grow, "return [part * 2 for part in parts if part is None]"),
    ]
    assert changes("and/or") == [(grow, "if not is_new or len(parts) <= LIMIT:")]
    assert changes("not") == [(grow, "if (is_new) and len(parts) <= LIMIT:")]
    assert changes("arithmetic") == [(grow, "return [part / 2 for part in parts if part is not None]")]
    assert changes("deleted") == [(grow, "pass"), (grow, "pass")]
    assert changes("return") == [(grow, "return []")]
    assert ("", "LIMIT = (7 + 1) # größer") in changes("constant")
    assert len(changes("constant")) == 4  # 7, 1 of LABEL, append's 1, 2: none in annotations, messages and the log


def test_sql_is_changed_but_neither_its_values_nor_its_comments() -> None:
    made = changes("sql")
    where, join = 'WHERE b BETWEEN 0 AND 9 AND c > {LIMIT} ORDER BY "ä" DESC NULLS LAST"""', "t ANTI JOIN u USING (a)"
    for was, now in (
        ("AND c", "OR c"),
        ("c > {", "c >= {"),
        (" DESC ", " ASC "),
        ("NULLS LAST", "NULLS FIRST"),
        ("BETWEEN 0", "BETWEEN 1"),
        ("AND 9", "AND 10"),
    ):
        assert ("", where.replace(was, now)) in made
    comment = "-- WHERE a > 1"
    assert ("", f"SELECT DISTINCT a FROM {join.replace('ANTI', 'SEMI')} {comment}") in made
    assert ("", f"SELECT a FROM {join} {comment}") in made
    assert len(made) == 8


def test_a_mutant_differs_in_its_own_place_only_and_lines_stay() -> None:
    for mutant in mutants("m.py", SOURCE):
        changed = mutant.apply(SOURCE)
        assert changed != SOURCE
        assert changed.startswith(SOURCE[: mutant.start])
        assert changed.endswith(SOURCE[mutant.end :])
        assert (mutant.was, mutant.module) != (mutant.now, "")
        assert SOURCE.splitlines()[mutant.line - 1].decode().split()[0] in mutant.was


def test_an_operator_is_found_behind_parentheses_and_line_ends() -> None:
    source = b"x = (\n    (a)  # <\n    < (b + c)\n)\ny = (d)not in e\n"
    found = {mutant.now for mutant in mutants("m.py", source) if mutant.kind == "comparison"}
    assert found == {"<= (b + c)", ">= (b + c)", "y = (d)in e"}


def test_what_a_seed_draws_stays_when_other_places_are_edited() -> None:
    every = mutants("m.py", SOURCE)
    drawn = runner.draw(every, seed=3, count=8)
    assert len(drawn) == 8
    assert runner.draw(every[::-1], 3, 8)[::-1] == drawn
    assert runner.draw(every, 4, 8) != drawn
    assert runner.draw(every, 3, 12)  # more of them: the same and others
    assert {mutant.key for mutant in drawn} <= {mutant.key for mutant in runner.draw(every, 3, 12)}
    edited = mutants("m.py", b"import os\n" + SOURCE.replace(b"part * 2", b"part * 3"))
    kept = {mutant.key for mutant in runner.draw(edited, 3, 8)} & {mutant.key for mutant in every}
    unchanged = {mutant.key for mutant in drawn} & {mutant.key for mutant in edited}
    assert len(kept & unchanged) >= len(unchanged) - 1


def test_every_module_has_tests_and_every_survivor_a_reason() -> None:
    for module in runner.MODULES:
        assert runner.unit_tests_of(module), module
    files = runner.unit_tests_of("pipeline/published/catalog.py")
    assert files == ["tests/pipeline/published/test_catalog.py", "tests/pipeline/published/test_catalog_regions.py"]
    for key, reason in runner.reasons().items():
        assert len(reason.split()) >= 3, key


AREA = "def area(a: int, b: int) -> int:\n    if a < 0:\n        return 0\n    return a * b\n"
TEST_AREA = """
from pipeline.area import area

def test_area():
    assert area(2, 3) == 6
    assert area(-1, 3) == 0
"""
NEGATIVE_ONE = """
[[survivor]]
module = "pipeline/area.py"
function = "area"
was = "if a < 0:"
now = "if a < (0 + 1):"
reason = "equivalent: 0 times anything is 0"
"""


def test_what_survives_is_told_and_needs_a_reason(tmp_path: Path) -> None:
    """In a small repository, whose module is as it was afterwards."""
    module, survivors = tmp_path / "pipeline/area.py", tmp_path / "survivors.toml"
    files = {module: AREA, tmp_path / "tests/pipeline/test_area.py": TEST_AREA, survivors: NEGATIVE_ONE}
    files[tmp_path / "pipeline/__init__.py"] = ""
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    code = f"""
import pathlib, sys
from tests.tools import mutants
mutants.REPOSITORY, mutants.SURVIVORS = pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(survivors)!r})
mutants.LIBRARIES = ()
sys.exit(mutants.main(["--module", "pipeline/area.py"]))
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=runner.REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "6 mutants: 4 killed, 2 survived, 1 of them without a reason" in ended.stdout
    assert "survived (equivalent: 0 times anything is 0)" in ended.stdout
    assert 'was = "if a < 0:"\nnow = "if a <= 0:"\nreason = ""' in ended.stdout
    assert module.read_text() == AREA
    survivors.write_text(
        NEGATIVE_ONE + NEGATIVE_ONE.replace("(0 + 1)", "9") + NEGATIVE_ONE.replace("< (0 + 1)", "<= 0")
    )
    ended = subprocess.run(command, cwd=runner.REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no mutant any more: pipeline/area.py area: if a < 9:" in ended.stdout
