"""A few kills, nothing lost and nothing twice. By the dozen: `make soak`, by hand `python -m tests.tools.chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.chaos import Chaos


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_kills_lose_and_double_nothing(tiny_checkpoint: Path, cache_home: Path, tmp_path: Path) -> None:
    """This seed kills the machine while it publishes, then the driver in the middle of the work."""
    chaos = Chaos(str(tmp_path), tmp_path, tiny_checkpoint, seed=6, cache_home=cache_home)
    chaos.grow(500)
    chaos.run(kills=2)
    print(chaos.tally)  # noqa: T201


@pytest.mark.timeout(900)
def test_kills_lose_and_double_nothing_without_a_cluster(
    tiny_checkpoint: Path, cache_home: Path, tmp_path: Path
) -> None:
    chaos = Chaos(str(tmp_path), tmp_path, tiny_checkpoint, seed=6, cache_home=cache_home, executor="local")
    chaos.grow(500)
    chaos.run(kills=3)
    print(chaos.tally)  # noqa: T201


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_kills_lose_and_double_nothing_on_s3(
    s3_bucket: str, tiny_checkpoint: Path, cache_home: Path, tmp_path: Path
) -> None:
    """This seed kills the driver and, while it publishes, the server, where it is one that may be killed."""
    chaos = Chaos(f"s3://{s3_bucket}/chaos", tmp_path, tiny_checkpoint, seed=2, cache_home=cache_home)
    chaos.grow(300)
    chaos.run(kills=2)
    print(chaos.tally)  # noqa: T201
