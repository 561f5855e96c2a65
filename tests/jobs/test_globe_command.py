"""The command of the synthetic globe: a table of every variant asked for, beside the optimum, and an archive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.synthetic_globe import Ablate, Context, Settings, Write, run
from training.globe_study import VARIANTS
from training.labelled import labelled_photos
from training.synthetic_globe import GlobeConfig

BASE = next(iter(VARIANTS))


def test_ablate_prints_the_optimum_and_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    ablate = Ablate(seeds=2, processes=2, photos_per_town=(1,), draws=64, only=("1 level",), json=str(file))
    assert run(Settings(ablate)) == 0
    results = json.loads(file.read_text())
    assert [(result["variant"], result["seed"]) for result in results] == [
        (BASE, 0),
        ("1 level", 0),
        (BASE, 1),
        ("1 level", 1),
    ]
    legend, printed = capsys.readouterr().out.strip().split("\n\n")
    assert legend.startswith("climate, country, town")
    head, _, *rows = printed.splitlines()
    assert head == "1 photos of each town to learn from, 64 draws, 2 seeds"
    assert [re.split(r"  +", row.strip())[0] for row in rows] == [
        "optimum, each asked by itself",
        "most probable town (Bayes)",
        "counting, knows what is near",
        "counting, town by town",
        BASE,
        "its finest level alone",
        "1 level",
    ]
    for row, variant in ((rows[4], BASE), (rows[6], "1 level")):
        towns = [100 * x["answers"]["product"]["right"]["town"] for x in results if x["variant"] == variant]
        assert f" {sum(towns) / 2:.1f} ± " in row
    assert " Δ " in printed
    assert rows[4].count("±") == 3  # the base does not differ from itself
    assert rows[6].count("±") == 6


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        (Ablate(only=("4 levels",)), "no variant '4 levels'"),
        (Ablate(seeds=0), "must be 1 or more"),
        (Ablate(photos_per_town=()), "must be 1 or more"),
    ],
)
def test_ablate_refuses_what_it_cannot_do_before_it_trains(ablate: Ablate, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(Settings(ablate))


def test_write_writes_a_manifest_with_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    globe = GlobeConfig(climates=2, countries=1, towns=2)
    assert run(Settings(Write(str(tmp_path / "globe"), train=3, validation=1, test=1, globe=globe))) == 0
    photos = labelled_photos(str(tmp_path / "globe" / "photos.csv"))
    assert [photos.part_N.count(part) for part in ("train", "validation", "test")] == [12, 4, 4]
    assert all(Path(uri).is_file() for uri in photos.uri_N)
    printed = capsys.readouterr().out
    assert "photos.csv: 20 photos of 4 towns" in printed
    assert re.search(r"town +at best \d\d\.\d% right, by chance 25\.0%", printed)


def test_context_prints_each_photo_alone_and_in_its_album(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is learnt in so few steps; but with every photo's camera knowing its place, all neighbours do."""
    context = Context(photos_per_town=1, draws=64, albums=4, photos=30, with_position=(0.0, 0.5))
    assert run(Settings(context)) == 0
    head, alone, without, with_position = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["climate", "country", "town", "median"]
    assert [row[:34].strip() for row in (alone, without, with_position)] == [
        "each photo alone",
        "in context, 0% with a position",
        "in context, 50% with a position",
    ]
    town = [float(row[34:].split()[2].rstrip("%")) for row in (alone, with_position)]
    assert town[1] > town[0] + 30


def test_context_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run(Settings(Context(albums=0)))
    with pytest.raises(ValueError, match="shares from 0 to 1"):
        run(Settings(Context(with_position=(1.5,))))
