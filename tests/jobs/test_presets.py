"""Recipes by name: what is given wins, what was set is told, and README's table is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from jobs import train
from model.checkpoint import Checkpoint
from tests.conftest import REPOSITORY
from training.fit.presets import FINETUNE, PAPER, PRESETS, PROBE, flags
from training.fit.recipe import Recipe

TOWNS = ((48.8, 2.3), (-33.9, 18.4), (35.7, 139.7))
REQUIRED = ("--manifest", "photos.csv", "--output", "model")


def parsed(*arguments: str) -> train.Settings:
    line = [*REQUIRED, *arguments]
    return tyro.cli(train.Settings, args=line, default=train.defaults(line))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Photos of three towns, each town its colour."""
    folder, random = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    lines = ["path,lat,lon,part"]
    for number in range(36):
        town, part = number % 3, "train" if number < 24 else "validation"
        pixels = np.clip(np.eye(3)[town] * 120 + 60 + random.integers(-30, 31, (40, 48, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{TOWNS[town][0] + number / 100},{TOWNS[town][1]},{part}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "photos.csv")


def test_flags_that_are_given_win_over_the_presets_and_these_over_the_defaults() -> None:
    assert parsed() == train.Settings("photos.csv", "model")
    paper = parsed("--recipe.preset", "paper")
    assert paper.recipe == PAPER
    assert (paper.network, paper.preset) == ("paper_swin_b", "paper7")
    own = parsed("--recipe.augment.hue", "0", "--recipe.preset=paper", "--recipe.epochs", "3", "--network", "tiny")
    assert flags(own.recipe) == flags(PAPER) | {"epochs": 3, "augment.hue": 0.0}
    assert (own.network, own.preset) == ("tiny", "paper7")
    # Also where what is given is what stands without a preset.
    assert parsed("--recipe.preset", "paper", "--recipe.optimizer", "adamw").recipe.optimizer == "adamw"
    assert parsed("--recipe.preset", "probe").recipe == PROBE
    assert parsed("--recipe.preset", "finetune").recipe == FINETUNE
    with pytest.raises(SystemExit):
        parsed("--recipe.preset", "papers")


def test_the_paper_says_every_flag_that_decides_what_comes_out() -> None:
    """A setting that is new must be thought about: is it the paper's?"""
    source = (
        (REPOSITORY / "training" / "fit" / "presets.py").read_text().split("PAPER = Recipe(", 1)[1].split("\n)\n", 1)[0]
    )
    said = set(re.findall(r"^ +(\w+)=", source, re.MULTILINE))
    ours = {"distillation_weight", "early_share", "max_failed_fraction", "seed"}
    assert {name.rpartition(".")[2] for name in flags(PAPER)} <= said | ours
    assert PAPER.rate_factor(0.0) == 1
    assert [PAPER.rate_factor(epoch / 20) for epoch in (3.9, 4, 8, 19)] == [1, 0.5, 0.25, 0.0625]


def readme_table() -> list[list[str]]:
    text = (REPOSITORY / "training" / "README.md").read_text(encoding="utf-8").split("| flag | default |", 1)[1]
    lines = text.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def in_words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_readmes_table_has_every_default_that_differs_from_the_papers() -> None:
    plain, paper = ({"network": x.network, "preset": x.preset} for x in (parsed(), parsed("--recipe.preset", "paper")))
    plain |= {f"recipe.{name}": value for name, value in flags(Recipe()).items()}
    paper |= {f"recipe.{name}": value for name, value in flags(PAPER).items()}
    expected = {
        f"`--{name.replace('_', '-')}`": (in_words(plain[name]), in_words(paper[name]))
        for name in plain
        if plain[name] != paper[name]
    }
    rows = readme_table()
    assert {row[0]: (row[1], row[2]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert {row[3] for row in rows} == {"paper", "code", "remembered"}
    assert all(row[4] for row in rows)


def test_presets_that_begin_with_something_learned_ask_for_it(manifest: str, tmp_path: Path) -> None:
    for preset, message in (("finetune", "add --init MODEL"), ("probe", "add --backbone or --init")):
        settings = train.Settings(manifest, str(tmp_path / "model"), network="tiny", recipe=PRESETS[preset])
        with pytest.raises(ValueError, match=message):
            train.run(settings)
    assert list(tmp_path.iterdir()) == []


def run_line(manifest: str, output: Path, *arguments: str) -> Checkpoint:
    line = ["--manifest", manifest, "--output", str(output), "--prior", "none", "--threads", "1", *arguments]
    assert train.run(tyro.cli(train.Settings, args=line, default=train.defaults(line))) == 0
    return Checkpoint.load(output)


def test_paper_probe_and_finetune_one_after_the_other(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    small = ("--network", "tiny", "--preset", "hundreds", "--recipe.batch-size", "8")
    paper = run_line(manifest, tmp_path / "paper", *small, "--recipe.preset", "paper", "--recipe.epochs", "2")
    printed = capsys.readouterr().out
    assert re.search(r"^recipe paper: optimizer sgd, learning_rate 0\.01, .*augment\.rotation_deg 15$", printed, re.M)
    assert "\ngiven in place of the preset's: epochs 2, batch_size 8\n" in printed
    assert "begins with random weights: add --backbone microsoft/swin-base" in caplog.text
    record = paper.training["preset"]
    assert record["name"] == "paper"
    assert record["given_instead"] == {"epochs": 2, "batch_size": 8}
    assert record["set"]["levels"] == "sum"
    assert json.loads((tmp_path / "paper" / "run.json").read_text())["preset"] == record

    rates = ("--recipe.batch-size", "8", "--recipe.learning-rate", "0.02", "--recipe.epochs", "4")
    paper_model = ("--init", str(tmp_path / "paper"))
    probe = run_line(manifest, tmp_path / "probe", *paper_model, "--recipe.preset", "probe", *rates)
    assert list((tmp_path / "probe-tokens").glob("tokens-*/train-*.arrow"))
    assert probe.training["tokens"].startswith("tokens-")
    assert moved(paper, probe) == {"decoder"}
    best = probe.training["progress"]["best"]
    epochs = json.loads((tmp_path / "probe" / "run.json").read_text())["epochs"]
    assert best["log_likelihood"] == max(x["validation"]["log_likelihood"] for x in epochs if x["best"])
    assert all(0 <= x["validation"]["within_25_km"] <= 1 for x in epochs)
    assert f"kept is what was learned after {best['epochs']:g} epochs" in capsys.readouterr().out

    tuned = run_line(manifest, tmp_path / "tuned", *paper_model, "--recipe.preset", "finetune", *rates)
    assert moved(paper, tuned) == {"backbone", "decoder"}
    assert tuned.training["recipe"]["backbone_rate"] == 0.1


def moved(one: Checkpoint, other: Checkpoint) -> set[str]:
    """Return which parts of two networks differ."""
    weights, others = one.build_model().state_dict(), other.build_model().state_dict()
    different = {name for name, x in weights.items() if not torch.equal(x, others[name])}
    return {"backbone" if name.startswith("backbone.") else "decoder" for name in different}


def test_paper_decays_every_parameter_and_ours_no_vectors() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decays = [
        {group["weight_decay"] for group in recipe.make_optimizer(module, module[0]).param_groups}
        for recipe in (PAPER, Recipe())
    ]
    assert decays == [{1e-4}, {0.05, 0.0}]
