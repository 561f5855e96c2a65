"""What tells two nodes' code from each other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.code_version import NodeError, check_code, code_version
from tests.conftest import REPOSITORY

_SAY = "from pipeline.cluster.code_version import code_version; print(code_version())"


def test_the_same_sources_elsewhere_have_the_same_name_and_others_another(tmp_path: Path) -> None:
    for package in ("jobs", "model", "pipeline", "training"):
        shutil.copytree(
            REPOSITORY / package, tmp_path / package, ignore=lambda _, names: [n for n in names if n.endswith(".pyc")]
        )

    def there() -> str:
        answer = subprocess.run([sys.executable, "-c", _SAY], cwd=tmp_path, capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    assert there() == code_version()
    with open(tmp_path / "training" / "loss.py", "a") as file:
        file.write("# changed\n")
    changed = there()
    assert changed != code_version()
    (tmp_path / "training" / "loss.py").rename(tmp_path / "training" / "renamed.py")
    assert there() not in (changed, code_version())


def test_a_process_with_other_code_than_the_driver_says_so() -> None:
    check_code(code_version())
    with pytest.raises(NodeError, match=r"runs other code than this run's driver .* ray job submit --working-dir"):
        check_code("0123456789abcdef")
