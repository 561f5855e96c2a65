from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import model as model_package
from model.checkpoint import Checkpoint, _sha256
from model.geodecoder import GeoDecoder, tiny
from model.networks import PriorConfig, PriorNetwork
from model.readout import Reading
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior

BUNDLED = Path(model_package.__file__).parent / "bundled"


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


@pytest.fixture(scope="module")
def prior() -> Prior:
    rng = np.random.default_rng(2)
    return Prior.of(rng.uniform(-60, 60, 500), rng.uniform(-180, 180, 500), source="a test")


@pytest.fixture(scope="module")
def with_prior(
    checkpoint: Checkpoint, hierarchy: Hierarchy, prior: Prior, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """The tiny checkpoint read with a prior; do not change its folder."""
    reading = Reading((1.0, 1.5, 0.7), prior.levels(hierarchy), (0.0, 0.25, 1.0), 0.8, "sum")
    folder = tmp_path_factory.mktemp("prior") / "model"
    return Checkpoint.save(folder, checkpoint.build_model(), hierarchy, reading, prior=prior)


def test_reading_and_prior_come_back(with_prior: Checkpoint, hierarchy: Hierarchy, prior: Prior) -> None:
    reading = with_prior.reading
    assert (reading.temperatures, reading.prior_share) == ((1.0, 1.5, 0.7), (0.0, 0.25, 1.0))
    assert (reading.radius_mass, reading.combination, reading.point) == (0.8, "sum", "auto")
    assert reading.prior is not None
    for found_K, expected_K in zip(reading.prior, prior.levels(hierarchy), strict=True):
        np.testing.assert_array_equal(found_K, expected_K)
    assert with_prior.prior is not None
    assert (with_prior.prior.content_hash, with_prior.prior.provenance) == (prior.content_hash, {"source": "a test"})
    assert (with_prior.folder / "prior.parquet").is_file()


def test_a_model_without_a_network(hierarchy: Hierarchy, prior: Prior, tmp_path: Path) -> None:
    config = PriorConfig(scenes=("indoor", "outdoor"))
    reading = Reading.plain(len(hierarchy.levels))
    saved = Checkpoint.save(tmp_path, PriorNetwork(config, hierarchy.class_counts), hierarchy, reading, prior=prior)
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "prior"
    assert saved.config == config
    assert list(saved.build_model().state_dict()) == []
    edit(tmp_path, lambda values: values["model"].update(width=5))
    with pytest.raises(ValueError, match="keys preprocessing and scenes, and no others"):
        Checkpoint.load(tmp_path)


def test_saving_over_a_model_that_had_a_prior_leaves_none(
    with_prior: Checkpoint, checkpoint: Checkpoint, hierarchy: Hierarchy, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_prior.folder, tmp_path / "model"))
    assert Checkpoint.save(folder, checkpoint.build_model(), hierarchy).prior is None
    assert not (folder / "prior.parquet").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file, other: file.unlink(), "cannot be read"),
        (lambda file, other: file.write_bytes(file.read_bytes()[:-20]), "is not a prior that jobs.build_prior wrote"),
        (lambda file, other: file.write_bytes(b""), "is not a prior that jobs.build_prior wrote"),
        (lambda file, other: file.write_bytes(other.to_bytes()), "is not this model's: its hash is not config.json's"),
    ],
)
def test_a_damaged_or_foreign_prior_is_refused_in_one_line(
    with_prior: Checkpoint, tmp_path: Path, damage: Callable[[Path, Prior], object], message: str
) -> None:
    folder = Path(shutil.copytree(with_prior.folder, tmp_path / "model"))
    damage(folder / "prior.parquet", Prior.of([1.0, 2.0], [3.0, 4.0]))
    with pytest.raises(ValueError, match=message) as refused:
        Checkpoint.load(folder)
    assert "prior.parquet" in str(refused.value)
    assert str(refused.value).endswith("copy the whole checkpoint folder again from where it was published")
    assert "\n" not in str(refused.value)


def test_what_reads_the_logits_is_part_of_the_id(with_prior: Checkpoint, hierarchy: Hierarchy, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_prior.folder, tmp_path / "model"))
    seen = {with_prior.model_id}
    for change in ({"radius_mass": 0.7}, {"prior_share": [0.0, 0.25, 0.99]}, {"combination": "product"}):
        edit(folder, lambda values, change=change: values.update(change))
        seen.add(Checkpoint.load(folder).model_id)
    other = Prior.of([1.0, 2.0], [3.0, 4.0])
    reading = Reading((1.0, 1.5, 0.7), other.levels(hierarchy), (0.0, 0.25, 1.0), 0.8, "sum")
    again = Checkpoint.save(tmp_path / "other", with_prior.build_model(), hierarchy, reading, prior=other)
    assert len(seen | {again.model_id}) == 5


def test_a_checkpoint_of_format_1_is_read_as_it_was(checkpoint: Checkpoint, folder: Path) -> None:
    """It had no prior and pointed at the best cell: with its id the same answers, by another rule another id."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {"format_version": 1}
    for name in ("kind", "prior_sha256", "prior_share", "radius_mass", "combination"):
        del values[name]
    path.write_text(json.dumps(values))
    first = Checkpoint.load(folder)
    assert first.prior is None
    assert vars(first.reading) == vars(Reading((1.0, 1.5, 0.7), radius_mass=0.9, point="best-cell"))
    assert first.pointing("best-cell").model_id == first.model_id
    assert first.pointing("auto").model_id == f"{first.model_id}+auto"
    assert first.pointing("auto").pointing("best-cell").model_id == first.model_id
    assert checkpoint.pointing("auto").model_id == checkpoint.model_id
    assert checkpoint.pointing("best-cell").model_id == f"{checkpoint.model_id}+best-cell"
    weights = checkpoint.build_model().state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.build_model().state_dict().items())
    edit(folder, lambda values: values.update(prior_share=[0.0] * 3))
    with pytest.raises(ValueError, match=r"unknown keys \['prior_share'\]"):
        Checkpoint.load(folder)


def test_models_of_format_1_keep_the_id_that_published_rows_have(folder: Path) -> None:
    """By the rule of when all models were of format 1: all of config.json but name and training."""
    path = folder / "config.json"
    names = ("class_counts", "hierarchy_sha256", "model", "temperatures", "weights_sha256")
    values = json.loads(path.read_text())
    first = {"format_version": 1} | {name: values[name] for name in names}
    path.write_text(json.dumps(first | {"name": "older", "training": {"photos": 3}}))
    digest = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
    assert Checkpoint.load(folder).model_id == f"older-{digest[:12]}"


def test_the_bundled_model_answers_by_its_prior_and_says_so() -> None:
    bundled = Checkpoint.load(BUNDLED)
    assert bundled.reading.is_prior
    assert bundled.prior is not None
    assert bundled.prior.content_hash == Prior.world().content_hash
    assert bundled.model_id in (BUNDLED / "MODEL_CARD.md").read_text().splitlines()[0]


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
        (lambda v: v.pop("kind"), "missing keys.*kind"),
        (lambda v: v.update(kind="oracle"), "kind 'oracle' is not known here: upgrade"),
        (lambda v: v.update(kind="prior"), "keys preprocessing and scenes"),
        (lambda v: v.update(kind=5), "kind 5 is not known"),
        (lambda v: v.update(prior_share=[0.0]), "3 levels need as many shares"),
        (lambda v: v.update(prior_share=[0.0, 0.0, 0.5]), "needs a prior"),
        (lambda v: v.update(prior_share=[0.0, 0.0, True]), "prior_share must be a list of numbers"),
        (lambda v: v.update(prior_share=0.5), "prior_share must be a list of numbers"),
        (lambda v: v.update(radius_mass=0), "radius must hold"),
        (lambda v: v.update(radius_mass="much"), "radius_mass must be a number"),
        (lambda v: v.update(radius_mass=10**400), "config.json is wrong"),
        (lambda v: v.update(combination="best"), "combination must be one of product, sum"),
        (lambda v: v.update(combination=[]), "combination must be one of product, sum"),
        (lambda v: v.update(prior_sha256="0" * 64), "prior.parquet cannot be read"),
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
