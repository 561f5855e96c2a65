"""The command of the synthetic globe: a table of every variant asked for, beside the optimum, and an archive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jobs.synthetic_globe import Ablate, Context, Settings, Write, run
from training.data.labelled import labelled_photos
from training.globe.globe_ablation import ROWS, Conditions
from training.globe.synthetic_globe import GlobeConfig

FULL = next(iter(ROWS))
SMALL = Conditions(
    globe=GlobeConfig(climates=2, countries=2, towns=2, tail=1.0),
    photos=60,
    validation=20,
    test=40,
    tau_min=0,
    tau_max=(60, 40, 30, 20, 15, 10, 5),
    most_epochs=1,
    early_epochs=1,
)


def test_ablate_prints_one_table_of_the_optimum_every_row_and_the_constants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    ablate = Ablate(seeds=(3, 5), processes=2, only=("1 level",), json=str(file), conditions=SMALL)
    assert run(Settings(ablate)) == 0
    results = json.loads(file.read_text())
    assert [(x["row"], x["seed"]) for x in results] == [(FULL, 3), ("1 level", 3), (FULL, 5), ("1 level", 5)]
    _, body, footing = capsys.readouterr().out.strip().split("\n\n")
    heading, columns, *rows = body.splitlines()
    assert heading.startswith("60 photos of 8 towns, ")
    assert heading.endswith(" 2 seeds")
    assert columns.split() == ["country", "rare", "others", "Δ", "early", "town", "rare", "steps", "paper", "here"]
    assert [re.split(r"  +", row.strip())[0] for row in rows] == [
        "optimum: most probable country",
        "optimum: most probable town",
        FULL,
        "its finest level, no product",
        "1 level",
        "always the commonest town or country",
        "drawn from the prior",
    ]
    for row, name in ((rows[2], FULL), (rows[4], "1 level")):
        countries = [100 * x["answers"]["product"]["country"] for x in results if x["row"] == name]
        assert float(row.split(name)[1].split()[0]) == pytest.approx(sum(countries) / 2, abs=0.051)
    assert rows[2].count("±") == 5  # the full network does not differ from itself
    assert rows[4].count("±") == 6
    assert " worse " in rows[4]  # in the paper
    assert footing.startswith("0 of 4 trainings converged")


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        (Ablate(only=("4 levels",)), "no row '4 levels'"),
        (Ablate(seeds=()), "one or more different seeds"),
        (Ablate(seeds=(1, 1)), "one or more different seeds"),
        (Ablate(processes=0), "1 process or more"),
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
