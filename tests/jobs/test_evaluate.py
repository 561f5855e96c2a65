"""The command that measures a model: on its own held-out photos, on a table of the field's layout, in ten crops."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import evaluate
from jobs.evaluate import SHARED
from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoder, tiny
from model.readout import BEST_CELL, Reading
from model.world.prior import Prior
from pipeline.locate.locator import BUNDLED_MODEL
from training.data.labelled import labelled_photos
from training.data.split import PARTS, SplitConfig, fingerprint, split_photos
from training.hierarchy import PartitionConfig, build_hierarchy

TOWNS = {"FR": (48.85, 2.35), "ZA": (-33.5, 19.5), "JP": (35.7, 139.7), "BR": (-10.0, -52.0)}
PHOTOS_A_TOWN = 12


def write_photos(folder: Path, names: list[str]) -> None:
    random = np.random.default_rng(0)
    for name in names:
        Image.fromarray(random.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    lines = ["path,lat,lon,photographer,scene"]
    for town, (lat_deg, lon_deg) in TOWNS.items():
        for number in range(PHOTOS_A_TOWN):
            scene = ("urban", "natural")[number % 2]
            lines.append(f"{town}{number}.png,{lat_deg + number // 3},{lon_deg},{town} {number // 3},{scene}")
    write_photos(folder, [line.split(",")[0] for line in lines[1:]])
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder / "photos.csv"


@pytest.fixture(scope="module")
def settings(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> evaluate.Settings:
    """For a network of random weights that remembers a split of the photos, as jobs.train leaves it."""
    photos = labelled_photos(str(manifest))
    config = SplitConfig(seed=3, test_share=0.4)
    split = split_photos(photos, config)
    known = split.rows("train")
    assert (len(known), len(split.rows("test"))) == (27, 18)
    hierarchy = build_hierarchy(photos.lat_deg_N[known], photos.lon_deg_N[known], PartitionConfig(0, (20, 5)))
    parts = {part: {"fingerprint": fingerprint(photos.name_N[row] for row in split.rows(part))} for part in PARTS}
    torch.manual_seed(0)
    model = GeoDecoder(tiny(), hierarchy.class_counts)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    training = {"split": dataclasses.asdict(config), "parts": parts}
    prior = Prior.world()
    reading = Reading((2.0, 3.0), prior.levels(hierarchy), (0.25, 0.5), 0.95, point=BEST_CELL)
    Checkpoint.save(folder, model, hierarchy, reading, training=training, name="random", prior=prior)
    return evaluate.Settings(manifest=str(manifest), model=str(folder), engine="torch")


def shares(line: str) -> list[float]:
    return [float(x) for x in re.findall(r"([\d.]+)%", line)]


def test_the_table_the_json_and_the_page_say_the_same(
    settings: evaluate.Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run(dataclasses.replace(settings, to=str(tmp_path), attention_photos=2)) == 0
    out = capsys.readouterr().out
    assert "18 photos (test), 0 more could not be read; engine torch " in out
    lines = out.splitlines()
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert values["photos"] == 18
    assert values["resampled"] == {"photographers": 6, "places": 6}
    assert "resampling 6 photographers and 6 places (rough" in out
    printed = {way["name"]: next(x for x in lines if x.startswith(way["name"])) for way in values["ways"]}
    assert list(printed) == [
        values["about"]["model_id"],
        "its best cell instead",
        "always the commonest cell",
        "the prior alone",
        "the best constant point, in hindsight",
    ]
    for line, way in zip(printed.values(), values["ways"], strict=True):
        assert shares(line) == [pytest.approx(100 * x["value"], abs=0.05) for x in way["share_within"].values()]
    assert {x["kind"] for x in values["by_country"]} <= set(TOWNS)
    assert sum(x["measured"]["photos"] for x in values["by_scene"]) == 18
    assert [level["after"]["temperature"] for level in values["levels"]] == [2, 3]
    assert values["about"]["model_id"] == Checkpoint.load(Path(settings.model)).model_id
    # A test photo's place was never trained on: the nearest cells are a degree or more away.
    assert values["ways"][0]["share_within"]["city"]["value"] == 0
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert f"{100 * values['radius_holds']['value']:.1f}%" in page


def test_what_looks_at_no_photo_is_measured_beside_the_model(
    settings: evaluate.Settings, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.run(dataclasses.replace(settings, to=str(tmp_path), attention_photos=0)) == 0
    out, values = capsys.readouterr().out, json.loads((tmp_path / "evaluation.json").read_text())
    checkpoint, photos = Checkpoint.load(Path(settings.model)), labelled_photos(str(manifest))
    test = split_photos(photos, SplitConfig(seed=3, test_share=0.4)).rows("test")
    lat_deg_N, lon_deg_N = photos.lat_deg_N[test], photos.lon_deg_N[test]
    label_NH = checkpoint.hierarchy.label_NH(lat_deg_N, lon_deg_N)
    pi = Prior.world().levels(checkpoint.hierarchy)
    for number, (level, printed) in enumerate(
        zip(values["likelihood"], re.findall(r"level \d +[\d.]+ .*", out), strict=True)
    ):
        known_N = label_NH[:, number] >= 0
        expected = -np.log(pi[number][label_NH[known_N, number]]).mean()
        assert level["prior"]["value"] == pytest.approx(expected, rel=1e-5)
        assert level["gain"]["value"] == pytest.approx(level["prior"]["value"] - level["model"]["value"])
        assert level["gain"]["low"] <= level["gain"]["value"] <= level["gain"]["high"]
        # A network of random weights says nearly the same of every photo.
        assert level["blind"]["value"] == pytest.approx(level["model"]["value"], abs=0.1)
        numbers = [float(x) for x in printed.split()[2:5]]
        assert numbers == [pytest.approx(level[name]["value"], abs=6e-4) for name in ("model", "prior", "blind")]
    # No single point is nearer to them on average than the one that is found in hindsight, of their own ones.
    by_name = {way["name"]: np.mean(way["error_km_P"]) for way in values["ways"]}
    best = by_name["the best constant point, in hindsight"]
    assert all(best <= by_name[name] for name in ("the prior alone", "always the commonest cell"))


def test_measuring_again_gives_the_same_numbers(settings: evaluate.Settings, tmp_path: Path) -> None:
    for name in ("once", "twice"):
        assert evaluate.run(dataclasses.replace(settings, to=str(tmp_path / name), attention_photos=0)) == 0
    once, twice = ((tmp_path / name / "evaluation.json").read_text() for name in ("once", "twice"))
    assert once == twice


@pytest.mark.parametrize("crops", [1, 10])
def test_another_point_is_measured_beside_the_best_cell(
    settings: evaluate.Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], crops: int
) -> None:
    """Without a prior, which makes all answers of a network of random weights the same."""
    checkpoint = Checkpoint.load(Path(settings.model))
    bare = str(tmp_path / "bare")
    Checkpoint.save(Path(bare), checkpoint.build_model(), checkpoint.hierarchy, training=checkpoint.training)
    both = []
    for point in ("best-cell", "least-distance"):
        chosen = dataclasses.replace(
            settings, model=bare, point=point, crops=crops, to=str(tmp_path / point), attention_photos=0
        )  # type: ignore[arg-type]
        assert evaluate.run(chosen) == 0
        both.append(json.loads((tmp_path / point / "evaluation.json").read_text())["ways"])
    (plain, *_), (elsewhere, best_cell, *_) = both  # with --point best-cell there is no other one to show
    assert plain["name"].endswith("+best-cell")
    assert elsewhere["name"] == plain["name"].replace("+best-cell", "+least-distance")
    assert best_cell["name"] == "its best cell instead"
    assert best_cell["error_km_P"] == pytest.approx(plain["error_km_P"], rel=1e-9)
    assert elsewhere["error_km_P"] != plain["error_km_P"]
    assert re.search(r"mean error with the point by least-distance: \d+ km; at its best cell", capsys.readouterr().out)


def test_ten_crops_are_another_answer_by_torch(
    settings: evaluate.Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = []
    for crops in (1, 10):
        chosen = dataclasses.replace(settings, to=str(tmp_path / str(crops)), crops=crops)
        assert evaluate.run(chosen) == 0  # type: ignore[arg-type]
        both.append(json.loads((tmp_path / str(crops) / "evaluation.json").read_text()))
    assert (
        "18 photos (test), 0 more could not be read; torch fp32, ten crops' logits averaged" in capsys.readouterr().out
    )
    one, ten = (x["nearness"] for x in both)
    assert [x["km"] for x in one] == [x["km"] for x in ten]
    assert [x["said"] for x in one] != [x["said"] for x in ten]
    with pytest.raises(ValueError, match=r"ten crops need logits.*use --engine torch"):
        evaluate.run(dataclasses.replace(settings, engine="openvino", crops=10))


def test_a_published_table_is_read_as_it_is_and_missing_images_are_named(
    settings: evaluate.Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of Im2GPS3k; the images in a folder of their own, one of them lost."""
    names = [f"{number}_ab_{number}@N00.png" for number in range(20)]
    lines = [f"{name},who {name},{10 + k},20,{k % 3},4,3,0.1,0.2,0.7" for k, name in enumerate(names)]
    header = "IMG_ID,AUTHOR,LAT,LON,S3_Label,S16_Label,S365_Label,Prob_indoor,Prob_natural,Prob_urban"
    (tmp_path / "im2gps3k.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "images").mkdir()
    write_photos(tmp_path / "images", names[:-1])
    other = dataclasses.replace(
        settings,
        manifest=str(tmp_path / "im2gps3k.csv"),
        root=str(tmp_path / "images"),
        part="all",
        max_failed_fraction=0.1,
        to=str(tmp_path / "to"),
    )
    assert evaluate.run(other) == 0
    out = capsys.readouterr().out
    assert "19 photos (all), 1 more could not be read" in out
    assert f"not read: {names[-1]}: " in out
    assert re.search(r"scene recognised, where it is known: [\d.]+%", out)
    values = json.loads((tmp_path / "to" / "evaluation.json").read_text())
    assert list(values["unreadable"]) == [names[-1]]
    assert {x["kind"] for x in values["by_scene"]} == {"indoor", "natural", "urban"}
    assert names[-1] in (tmp_path / "to" / "evaluation.html").read_text()
    with pytest.raises(ValueError, match=r"1 of (the )?20 photos could not be read"):
        evaluate.run(dataclasses.replace(other, max_failed_fraction=0.01))


def test_missing_photos_count_against_the_photos_that_are_measured(
    settings: evaluate.Settings, manifest: Path, tmp_path: Path
) -> None:
    """One of the 18 is more than 4 %; one of the table's 48, or of a million, would not be."""
    photos = labelled_photos(str(manifest))
    row = int(split_photos(photos, SplitConfig(seed=3, test_share=0.4)).rows("test")[0])
    root = tmp_path / "images"
    root.mkdir()
    for name in photos.name_N:
        if name != photos.name_N[row]:
            (root / name).symlink_to(manifest.parent / name)
    with pytest.raises(ValueError, match=r"1 of the 18 photos could not be read.*max-failed-fraction is 0\.04"):
        evaluate.run(dataclasses.replace(settings, root=str(root), max_failed_fraction=0.04))


def test_another_table_is_refused_unless_told_that_it_is_one(
    settings: evaluate.Settings, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = manifest.parent / "fewer.csv"
    fewer.write_text("\n".join(manifest.read_text().splitlines()[:30]) + "\n")
    other = dataclasses.replace(settings, manifest=str(fewer))
    with pytest.raises(ValueError, match=r"not the table that .* was trained with"):
        evaluate.run(other)
    assert evaluate.run(dataclasses.replace(other, part="all")) == 0
    assert "29 photos (all)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not with --part all"):
        evaluate.run(dataclasses.replace(other, part="all", teacher_onnx=Path("teacher.onnx")))


def test_a_split_by_unknown_rules_is_refused(settings: evaluate.Settings, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(settings.model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["training"]["split"]["by_weekday"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"rules of another version .*by_weekday.*use --part all"):
        evaluate.run(dataclasses.replace(settings, model=str(folder)))


def test_a_table_that_says_its_parts_may_be_another_one(
    settings: evaluate.Settings, manifest: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    head, *lines = manifest.read_text().splitlines()[:21]
    parts = ["test" if number % 2 else "train" for number in range(len(lines))]
    told = manifest.parent / "told.csv"
    told.write_text("\n".join([f"{head},part", *map(",".join, zip(lines, parts, strict=True))]) + "\n")
    assert evaluate.run(dataclasses.replace(settings, manifest=str(told))) == 0
    assert "10 photos (test)" in capsys.readouterr().out
    assert "was trained with another table" in caplog.text


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --manifest"):
        evaluate.run(evaluate.Settings(model=str(tmp_path)))
    with pytest.raises(ValueError, match=r"not a checkpoint"):
        evaluate.run(evaluate.Settings(model=str(tmp_path), manifest="x.csv"))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the photos of the bundled model are not at {SHARED}")
def test_the_bundled_model_is_measured_on_photos_it_never_saw(capsys: pytest.CaptureFixture[str]) -> None:
    """Without the nearest neighbours, for which all training photos would have to be decoded, and in torch, which has
    nothing to compile."""
    photos = {"manifest": str(SHARED / "photos.csv"), "root": str(SHARED / "photos"), "only": "scene_ok"}
    assert evaluate.run(evaluate.Settings(engine="torch", **photos)) == 0  # type: ignore[arg-type]
    out = capsys.readouterr().out
    held_out = Checkpoint.load(BUNDLED_MODEL).training["parts"]["test"]["photos"]
    assert f"{held_out} photos (test)" in out
    for name in ("graticule", "always the commonest cell"):
        assert len(shares(next(line for line in out.splitlines() if line.startswith(name)))) == 5
