from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import Checkpoint, _sha256
from model.geodecoder import GeoDecoder, tiny
from model.hierarchy import Hierarchy


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(checkpoint.folder, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_round_trip(checkpoint: Checkpoint, hierarchy: Hierarchy) -> None:
    torch.manual_seed(0)
    original = GeoDecoder(tiny(), hierarchy.class_counts).eval()
    model = checkpoint.build_model()
    assert not model.training
    pixels_BCYX = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(pixels_BCYX), original(pixels_BCYX), rtol=0, atol=0)
    assert checkpoint.reading.temperatures == (1.0, 1.5, 0.7)
    assert checkpoint.training == {"photos": 400}
    assert checkpoint.hierarchy.content_hash == hierarchy.content_hash
    assert checkpoint.config == original.config
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == [
        "config.json",
        "hierarchy.json",
        "hierarchy.parquet",
        "weights.safetensors",
    ]


def test_model_id_names_the_answers_and_nothing_else(checkpoint: Checkpoint, folder: Path) -> None:
    assert checkpoint.model_id.startswith("tiny-")
    assert len(checkpoint.model_id) == len("tiny-") + 12
    assert Checkpoint.load(folder).model_id == checkpoint.model_id
    edit(folder, lambda values: values["training"].update(note="another note"))
    assert Checkpoint.load(folder).model_id == checkpoint.model_id
    edit(folder, lambda values: values.update(temperatures=[1.0, 1.0, 1.0]))
    assert Checkpoint.load(folder).model_id != checkpoint.model_id


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors", "hierarchy.json", "hierarchy.parquet"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        Checkpoint.load(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "hierarchy.parquet"])
def test_a_flipped_byte_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.split(".")[0]):
        Checkpoint.load(folder)


def test_half_a_file_is_found(folder: Path) -> None:
    for name in ("weights.safetensors", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=name):
            Checkpoint.load(folder)


def test_another_hierarchy_is_refused(folder: Path, make_world: Callable[..., Hierarchy]) -> None:
    make_world(seed=1).save(folder)
    with pytest.raises(ValueError, match="not this model's"):
        Checkpoint.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v.pop("temperatures"), "missing keys.*temperatures"),
        (lambda v: v.update(format_version=99), "format version 99"),
        (lambda v: v.update(name="../evil"), "name must be"),
        (lambda v: v.update(training=[]), "training"),
        (lambda v: v.update(temperatures=[1.0]), "list of 3 numbers"),
        (lambda v: v.update(temperatures=[1.0, -1.0, 1.0]), "positive"),
        (lambda v: v.update(temperatures=[1.0, True, 1.0]), "positive"),
        (lambda v: v.update(class_counts=[1, 2, 3]), "hierarchy has"),
        (lambda v: v.update(class_counts=7), "config.json is wrong"),
        (lambda v: v["model"].update(heads=5), "must divide"),
        (lambda v: v["model"].update(surprise=5), "unknown key 'surprise'"),
        (lambda v: v.update(weights_sha256="0" * 64), "weights.safetensors is damaged"),
        (lambda v: v.update(hierarchy_sha256="0" * 64), "hierarchy.parquet"),
    ],
)
def test_a_lying_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        Checkpoint.load(folder)


@pytest.mark.parametrize("kind", ["missing", "surplus", "shape"])
def test_weights_of_another_network_are_refused(folder: Path, kind: str) -> None:
    path = folder / "weights.safetensors"
    weights = load_file(path)
    if kind == "missing":
        del weights["norm.weight"]
    elif kind == "surplus":
        weights["surprise.weight"] = torch.zeros(1)
    else:
        weights["norm.weight"] = torch.zeros(3)
    save_file(weights, path)
    edit(folder, lambda values: values.update(weights_sha256=_sha256(path)))
    loaded = Checkpoint.load(folder)
    with pytest.raises(ValueError, match=r"surprise\.weight" if kind == "surplus" else r"norm\.weight"):
        loaded.build_model()


def test_save_refuses_what_load_would(
    hierarchy: Hierarchy, make_world: Callable[..., Hierarchy], tmp_path: Path
) -> None:
    model = GeoDecoder(tiny(), hierarchy.class_counts)
    with pytest.raises(ValueError, match="name must be"):
        Checkpoint.save(tmp_path, model, hierarchy, name="Not A Name")
    with pytest.raises(ValueError, match="classes, the hierarchy has"):
        Checkpoint.save(tmp_path, model, make_world((1, 2)))
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"norm\.weight are not finite"):
        Checkpoint.save(tmp_path, model, hierarchy)
    assert not (tmp_path / "config.json").exists()


def test_an_interrupted_save_leaves_no_checkpoint(
    folder: Path, checkpoint: Checkpoint, hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Hierarchy, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint.save(folder, checkpoint.build_model(), hierarchy)
    with pytest.raises(ValueError, match=r"no config\.json"):
        Checkpoint.load(folder)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkpoint"):
        Checkpoint.load(tmp_path / "nowhere")
