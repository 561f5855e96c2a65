"""A few kills at random moments (the long version, by hand: `python -m tests.chaos`): nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import Chaos

KILLS = {"local": 4, "s3": 4}


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_kills_lose_and_double_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    chaos = Chaos(str(tmp_path), tmp_path, tiny_checkpoint, seed=1)
    chaos.grow(1000)
    chaos.run(KILLS["local"])
    print(chaos.tally)  # noqa: T201


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.timeout(900)
def test_kills_lose_and_double_nothing_on_s3(s3_bucket: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    chaos = Chaos(f"s3://{s3_bucket}/chaos", tmp_path, tiny_checkpoint, seed=2)
    chaos.grow(600)
    chaos.run(KILLS["s3"])
    print(chaos.tally)  # noqa: T201
