"""Other people's weights and one's own photos as models: imported, refused, checked, and used by every command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from jobs import calibrate, compile_engine, evaluate, import_model, report
from jobs.import_model import FromGeoClip, FromPhotos, Settings
from model.checkpoint import Checkpoint
from model.gallery import GalleryConfig
from pipeline import storage
from tests.conftest import publish_photos
from tests.support.backbone_folders import FAMILIES
from tests.support.geoclip_wheel import SMALL_CLIP, real_wheel, small_tensors, two_towers, write_wheel
from tests.support.photo_samples import camera_jpeg

TOWNS = ((48.8, 2.3), (-33.9, 18.4), (35.7, 139.7), (40.7, -74.0), (-33.4, -70.6), (19.1, 72.9), (64.1, -21.9))
TRAINED, HELD_OUT = 15, 8
"""Photos of each town."""
FED = {"size": {"shortest_edge": 32}, "crop_size": 28, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("wheel") / "small.whl", small_tensors())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    two_towers(SMALL_CLIP, 16).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(FED))
    return folder


@pytest.fixture(scope="module")
def geoclip_model(wheel: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("imported") / "model"
    assert import_model.run(Settings(FromGeoClip(wheel, str(output), str(clip), tau_max=(100, 20)))) == 0
    return output


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of towns far apart, each town its colour, by cameras that wrote where they were; and a table of them."""
    folder, random = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    lines = ["path,lat,lon,part"]
    for town, (lat_deg, lon_deg) in enumerate(TOWNS):
        colour = random.integers(30, 226, 3)
        for number in range(TRAINED + HELD_OUT):
            pixels = np.clip(colour + random.integers(-12, 13, (40, 48, 3)), 0, 255).astype(np.uint8)
            place = lat_deg + number / 50, lon_deg + number / 50
            part = "train" if number < TRAINED else "test"
            path = folder / part / f"{town}-{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(camera_jpeg(Image.fromarray(pixels), lat_deg=place[0], lon_deg=place[1]))
            lines.append(f"{part}/{path.name},{place[0]},{place[1]},{part}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def own_model(archive: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("own") / "model"
    source = FromPhotos(str(clip), str(archive / "photos.csv"), str(output), kernel_width=0.003, name="towns")
    assert import_model.run(Settings(dataclasses.replace(source, tau_max=(40, 10)))) == 0
    return output


def test_geoclip_becomes_a_gallery_behind_the_users_clip(geoclip_model: Path, wheel: Path, clip: Path) -> None:
    checkpoint = Checkpoint.load(geoclip_model)
    assert checkpoint.model_id.startswith("geoclip-")
    assert isinstance(checkpoint.config, GalleryConfig)
    assert checkpoint.config.head_widths == (24, 8)
    preprocessing = checkpoint.config.preprocessing
    assert (preprocessing.image_size_px, preprocessing.resize_px) == (28, 32)
    assert (preprocessing.mean_rgb, preprocessing.std_rgb) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert checkpoint.prior is not None
    assert checkpoint.reading.combination == "sum"
    assert checkpoint.training["published_on_im2gps3k_percent"]["25 km"] == 34.5
    assert checkpoint.training["clip"] == clip.name
    assert str(wheel.parent) not in json.dumps(checkpoint.training)  # it is published with the model


def test_what_is_said_of_it(wheel: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_model.run(Settings(FromGeoClip(wheel, str(tmp_path / "model"), str(clip), tau_max=(100,))))
    printed = capsys.readouterr().out
    assert "300 places in cells (" in printed
    assert "Published for GeoCLIP on Im2GPS3k, not measured here: 14.1 34.5 50.7 69.7 83.8 %" in printed
    assert "Never run with the real tower where this was written" in printed
    assert f"python -m jobs.import_model --check {tmp_path / 'model'} --photos PHOTOS" in printed
    assert "fitted to nothing yet (temperature 1, 0.01 of the prior)" in printed
    assert f"python -m jobs.geotag_archive --photos PHOTOS --model {tmp_path / 'model'}" in printed


def refused(source: FromGeoClip | FromPhotos) -> str:
    """Import in vain, see that nothing was written, and return the one line that says why."""
    with pytest.raises(ValueError, match=r".") as error:
        import_model.run(Settings(source))
    assert not Path(source.output).exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def cut_short(folder: Path) -> None:
    two_towers(SMALL_CLIP, 16).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])


def without_weights(folder: Path) -> None:
    two_towers(SMALL_CLIP, 16).save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def another_ones_weights(folder: Path) -> None:
    two_towers(SMALL_CLIP | {"hidden_size": 32}, 16).save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    two_towers(SMALL_CLIP, 16).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(weights)


def texts_only(folder: Path) -> None:
    clip = two_towers(SMALL_CLIP, 16)
    transformers.CLIPTextModel(clip.config.text_config).save_pretrained(folder)


def without_projection(folder: Path) -> None:
    config = transformers.CLIPVisionConfig(**SMALL_CLIP, projection_dim=16)
    transformers.CLIPVisionModel(config).save_pretrained(folder)


DOWNLOAD = "pip download --no-deps geoclip==1.3.0"
CLIPS: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda folder: two_towers(SMALL_CLIP, 24).save_pretrained(folder),
        "has projection_dim 24; GeoCLIP needs project",
    ),
    (texts_only, "has model_type clip_text_model; GeoCLIP needs model_type clip_vision_model: give openai/clip-vit-la"),
    (lambda folder: FAMILIES["dinov2"].write(folder), "has model_type dinov2; GeoCLIP needs model_type clip_vision_mo"),
    (lambda folder: FAMILIES["siglip"].write(folder), "has model_type siglip_vision_model; GeoCLIP needs model_type c"),
    (without_projection, "lacks visual_projection.weight, which a CLIP that is compared with texts has"),
    (cut_short, "damaged"),
    (without_weights, "is not a complete Hugging Face model folder: it needs config.json and model.safetensors"),
    (another_ones_weights, "do not fit its config.json"),
    (lambda folder: folder.mkdir(), "is not a complete Hugging Face model folder"),
    (lambda folder: None, "is not on this machine: download it first with `hf download "),
]


@pytest.mark.parametrize(("write", "message"), CLIPS)
def test_a_wrong_clip_is_refused(wheel: Path, tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "clip")
    assert message in refused(FromGeoClip(wheel, str(tmp_path / "model"), str(tmp_path / "clip")))


def test_a_wrong_wheel_is_refused(wheel: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "half.whl").write_bytes(wheel.read_bytes()[:5000])
    (tmp_path / "clip.whl").write_bytes((clip / "model.safetensors").read_bytes())
    for name, message in (("half.whl", "cut short"), ("clip.whl", "is not GeoCLIP's wheel"), ("no.whl", "be read")):
        said = refused(FromGeoClip(tmp_path / name, str(tmp_path / "model"), str(clip)))
        assert message in said
        assert DOWNLOAD in said


def test_the_real_wheel_takes_one_clip_only(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    wheel = real_wheel(pytestconfig)
    two_towers(SMALL_CLIP, 768).save_pretrained(tmp_path / "clip")
    said = refused(FromGeoClip(wheel, str(tmp_path / "model"), str(tmp_path / "clip")))
    assert "has hidden_size 64, intermediate_size 96, num_hidden_layers 1, num_attention_heads 4, image_size 28" in said
    assert "GeoCLIP needs hidden_size 1024, intermediate_size 4096, num_hidden_layers 24" in said


def test_what_else_is_refused(wheel: Path, clip: Path, archive: Path, tmp_path: Path, own_model: Path) -> None:
    geoclip = FromGeoClip(wheel, str(tmp_path / "model"), str(clip))
    assert "give world, or a file" in refused(dataclasses.replace(geoclip, prior="none"))
    assert "tau_max" in refused(dataclasses.replace(geoclip, tau_max=(20, 100)))
    own = FromPhotos(str(clip), str(archive / "photos.csv"), str(tmp_path / "model"))
    assert "--kernel-width 0" in refused(dataclasses.replace(own, kernel_width=0.0))
    lines = (archive / "photos.csv").read_text().splitlines()
    (archive / "few.csv").write_text("\n".join(lines[:50]) + "\n")
    assert "would answer nothing: it takes 100" in refused(dataclasses.replace(own, photos=str(archive / "few.csv")))
    with pytest.raises(ValueError, match=r"there is a model at .* already: give another --output"):
        import_model.run(Settings(dataclasses.replace(own, output=str(own_model))))
    with pytest.raises(ValueError, match="say what to import"):
        import_model.run(Settings())
    with pytest.raises(ValueError, match="--check imports nothing"):
        import_model.run(Settings(geoclip, check=str(own_model)))


def test_a_check_tells_a_model_that_finds_photos_from_one_that_does_not(
    archive: Path, own_model: Path, geoclip_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_camera = Settings(check=str(own_model), photos=str(archive / "test"), most=14, engine="torch")
    assert import_model.run(by_camera) == 0
    printed = capsys.readouterr().out
    assert "towns-" in printed
    assert "s a photo" in printed
    assert "GB of memory at most" in printed
    assert printed.count(" km off, within ") == 14
    assert "of 14: " in printed
    assert "It tells these photos apart." in printed
    by_table = Settings(check=str(geoclip_model), photos=str(archive / "photos.csv"), most=14, engine="torch")
    assert import_model.run(by_table) == 3
    assert "It does not tell these photos apart: do not use it." in capsys.readouterr().out


def test_photos_of_one_town_check_nothing(
    archive: Path, geoclip_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (archive / "test").glob("0-*.jpg"):
        shutil.copy(path, tmp_path)
    assert import_model.run(Settings(check=str(geoclip_model), photos=str(tmp_path), engine="torch")) == 0
    assert "take some from far apart" in capsys.readouterr().out


def test_a_check_without_photos_or_model_says_what_it_needs(
    archive: Path, own_model: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "no-place.png")
    cases = [(own_model, tmp_path / "photos", "has 0 readable photos whose place is known, of 1")]
    shutil.copytree(own_model, tmp_path / "cut")
    weights = tmp_path / "cut" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    cases += [(tmp_path / "cut", archive / "test", "damaged"), (clip, archive / "test", "another program's model")]
    for model, photos, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            import_model.run(Settings(check=str(model), photos=str(photos), engine="torch"))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="--most 1"):
        import_model.run(Settings(check=str(own_model), photos=str(archive), most=1))


def test_only_some_rows_of_a_table_make_a_gallery(
    archive: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, *lines = (archive / "photos.csv").read_text().splitlines()
    marked = [f"{line},{int(not line.startswith('train/0-0.jpg'))}" for line in lines]
    table = archive / "marked.csv"
    table.write_text("\n".join([f"{head},good", *marked]) + "\n")
    source = FromPhotos(str(clip), str(table), str(tmp_path / "model"), only="good", tau_max=(40, 10))
    assert import_model.run(Settings(source)) == 0
    printed = capsys.readouterr().out
    assert Checkpoint.load(tmp_path / "model").hierarchy.levels[-1].photo_count_K.sum() == len(TOWNS) * TRAINED - 1
    assert f"--manifest {table} --only good --part test" in printed
    assert f"--trained-on {table} --only good" in printed


def test_a_gallery_of_ones_own_goes_through_every_command(
    archive: Path, own_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)  # on tensors this small a second thread costs more than it gives
    answers, calibrated = tmp_path / "answers", tmp_path / "calibrated"
    publish_photos(archive / "test", own_model, answers)
    settings = evaluate.Settings(str(archive / "photos.csv"), str(own_model), str(tmp_path / "numbers"), engine="torch")
    assert evaluate.run(settings) == 0
    assert f"{len(TOWNS) * HELD_OUT} photos (test)" in capsys.readouterr().out
    assert report.run(report.ReportSettings(str(answers), str(tmp_path / "report.html"))) == 0
    assert calibrate.run(calibrate.Settings(str(answers), str(calibrated), by_folder="never", anyway=True)) == 0
    before, after = Checkpoint.load(own_model), Checkpoint.load(calibrated)
    assert after.reading.combination == "sum"
    assert after.model_id != before.model_id
    assert after.weights_sha256 == before.weights_sha256
    compiled = compile_engine.CompileSettings("onnx", str(tmp_path / "engines"), str(calibrated))
    assert compile_engine.run(compiled) == 0
    assert storage.exists(str(calibrated / "prior.parquet"))
