"""A bounded, seeded run of each fuzz target. Longer ones: `make soak`, by hand `python -m tests.tools.fuzz decode`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import fuzz
from tests.tools.fuzz_mutation import seeds_of

EXECUTIONS = {"decode": 800, "exif": 1000, "manifest": 150, "members": 120, "metadata": 600, "sidecars": 2000}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_hostile_files_break_no_promise(target: str, tmp_path: Path) -> None:
    report = fuzz.campaign(target, seed=1, executions=EXECUTIONS[target], seconds=120, findings=tmp_path)
    assert report.violations + report.hangs + report.crashes == []
    assert sum(report.outcomes.values()) == EXECUTIONS[target]
    assert len(report.outcomes) > 1, "every input had the same outcome: the mutations reach nothing"


def test_execution_is_the_same_whenever_it_is_made() -> None:
    for target in fuzz.TARGETS:
        seeds = seeds_of(target)
        assert fuzz.input_of(target, 3, 17, seeds) == fuzz.input_of(target, 3, 17, seeds_of(target))
        assert fuzz.input_of(target, 3, 18, seeds) != fuzz.input_of(target, 3, 17, seeds)


def test_violation_crash_and_hang_are_told_apart_and_their_inputs_saved(tmp_path: Path) -> None:
    """In a process of its own, whose children have a target that misbehaves at known executions."""
    code = f"""
import os, pathlib, signal, sys, time
from tests.tools import fuzz
calls = iter(range(-1, 100))  # the first call of a child is its warming up

def misbehave(data):
    call = next(calls)
    at = call + start if call >= 0 else -1
    if at == 2: raise KeyError("oops")
    if at == 4: os.kill(os.getpid(), signal.SIGSEGV)
    if at == 6: time.sleep(60)
    return "fine"

fuzz.TARGETS["exif"], fuzz._STALL_S = misbehave, 3
if sys.argv[1] == "exif":
    start = int(sys.argv[sys.argv.index("--child") + 1].split(":")[0])
    sys.exit(fuzz.main())
command = fuzz.subprocess.Popen
fuzz.subprocess.Popen = lambda words, **more: command([words[0], __file__, *words[3:]], **more)
report = fuzz.campaign("exif", 0, 9, 100, pathlib.Path({str(tmp_path)!r}))
print(dict(report.outcomes), len(report.violations), len(report.crashes), len(report.hangs))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {"PYTHONPATH": str(Path(fuzz.__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, script, "campaign"], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "{'fine': 6, 'violation': 1, 'crash': 1, 'hang': 1} 1 1 1\n"
    saved = sorted(path.name for path in tmp_path.glob("*.bin"))
    assert saved == ["exif-crash-0-4.bin", "exif-hang-0-6.bin", "exif-violation-0-2.bin"]
