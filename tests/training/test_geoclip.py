"""GeoCLIP: our gallery gives what the published formula gives, with the published weights behind a random CLIP."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from model.backbones.tower import CLIP_MEAN_RGB, CLIP_STD_RGB, load_tower
from model.checkpoint import Checkpoint
from model.engines import EngineName, load_engine
from model.readout import Reading
from model.world.prior import Prior
from tests.support.geoclip_wheel import PLACES, SMALL_CLIP, WEIGHTS, real_wheel, small_tensors, two_towers, write_wheel
from training import galleries, geoclip


@pytest.fixture
def wheel(pytestconfig: pytest.Config) -> Path:
    return real_wheel(pytestconfig)


def as_published(wheel: Path, clip: CLIPModel, pixels_BHWC: NDArray[np.uint8], places_N2: Tensor) -> Tensor:
    """The probabilities of places, line by line as the paper has them, in fp64 but for CLIP."""
    weights: dict[str, Any] = {}
    with zipfile.ZipFile(wheel) as file:
        for name in ("image_encoder_mlp", "location_encoder", "logit_scale"):
            data = io.BytesIO(file.read(f"{WEIGHTS}/{name}_weights.pth"))
            weights[name] = torch.load(data, weights_only=True)
    x = (torch.tensor(pixels_BHWC).float() / 255 - torch.tensor(CLIP_MEAN_RGB)) / torch.tensor(CLIP_STD_RGB)
    pooled: Any = clip.get_image_features(pixel_values=x.permute(0, 3, 1, 2))
    mlp = {key: value.double() for key, value in weights["image_encoder_mlp"].items()}
    hidden = torch.relu(pooled.pooler_output.double() @ mlp["0.weight"].T + mlp["0.bias"])
    image = hidden @ mlp["2.weight"].T + mlp["2.bias"]

    phi, lambda_ = torch.deg2rad(places_N2.double()).unbind(dim=1)
    theta = torch.asin(math.sqrt(3) / 2 * torch.sin(phi))
    denominator = 3 * (9 * 0.003796 * theta**8 + 7 * 0.000893 * theta**6 + 3 * -0.081106 * theta**2 + 1.340264)
    east = 2 * math.sqrt(3) * lambda_ * torch.cos(theta) / denominator
    north = 0.003796 * theta**9 + 0.000893 * theta**7 - 0.081106 * theta**3 + 1.340264 * theta
    plane = torch.stack([east, north], dim=1) * 66.50336 / 180
    place = torch.zeros(len(places_N2), image.shape[1], dtype=torch.float64)
    for number in range(3):
        of = {
            key.removeprefix(f"LocEnc{number}."): value.double()
            for key, value in weights["location_encoder"].items()
            if key.startswith(f"LocEnc{number}.")
        }
        for rows in torch.arange(len(plane)).split(4096):
            phase = 2 * math.pi * plane[rows] @ of["capsule.0.b"].T
            v = torch.cat([torch.cos(phase), torch.sin(phase)], dim=1)
            for layer in ("capsule.1", "capsule.3", "capsule.5"):
                v = torch.relu(v @ of[f"{layer}.weight"].T + of[f"{layer}.bias"])
            place[rows] += v @ of["head.0.weight"].T + of["head.0.bias"]
    cosine = torch.nn.functional.cosine_similarity(image[:, None], place[None], dim=2)
    return torch.softmax(weights["logit_scale"].double().exp() * cosine, dim=1)


@torch.no_grad()
def assert_parity(
    wheel: Path,
    folder: Path,
    vision: dict[str, Any],
    tau_max: tuple[int, ...],
    engines: tuple[EngineName, ...],
    every: int,
    photos: int,
) -> None:
    published = geoclip.read_wheel(wheel)
    clip = two_towers(vision, published.clip_width)
    if vision is SMALL_CLIP:  # random towers see little difference between pictures
        clip.visual_projection.weight.mul_(60)
    clip.save_pretrained(folder)
    tower, preprocessing = load_tower(str(folder))
    lat_deg_N, lon_deg_N = published.lat_deg_N[::every], published.lon_deg_N[::every]
    network, hierarchy = galleries.make_gallery(
        tower,
        preprocessing,
        published.head,
        geoclip.location_features(published, lat_deg_N, lon_deg_N),
        lat_deg_N,
        lon_deg_N,
        published.scale,
        tau_max,
    )
    size_px = preprocessing.image_size_px
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (photos, size_px, size_px, 3), dtype=np.uint8)
    place_BN = as_published(wheel, clip, pixels_BHWC, torch.tensor(np.stack([lat_deg_N, lon_deg_N], axis=1))).numpy()
    label_NH = hierarchy.label_NH(lat_deg_N, lon_deg_N)
    assert label_NH.min() == 0  # no place is lost
    expected_HBK = [np.stack([np.bincount(label_N, row_N) for row_N in place_BN]) for label_N in label_NH.T]
    levels = len(hierarchy.levels)
    reading = Reading((1.0,) * levels, combination="sum")
    checkpoint = Checkpoint.save(folder / "model", network, hierarchy, reading, name="geoclip")
    checkpoint = checkpoint.grouping(np.arange(len(hierarchy.levels[-1])))  # the engines give every cell's probability
    for name in engines:
        answers = load_engine(name, checkpoint, precision="fp32")(pixels_BHWC)
        for level, (expected_BK, best_B) in enumerate(zip(expected_HBK, answers.level_index_BH.T, strict=True)):
            probability_B = answers.level_probability_BH[:, level]
            np.testing.assert_array_equal(best_B, expected_BK.argmax(axis=1), err_msg=name)
            np.testing.assert_allclose(probability_B, expected_BK.max(axis=1), rtol=2e-3, err_msg=name)
        np.testing.assert_allclose(answers.group_probability_BG, expected_HBK[-1], rtol=2e-3, atol=3e-6, err_msg=name)


def test_parity_with_the_published_weights(wheel: Path, tmp_path: Path) -> None:
    """A fiftieth of the gallery, behind a small tower."""
    assert_parity(wheel, tmp_path, SMALL_CLIP, (500, 15), ("torch", "openvino", "onnxruntime"), every=50, photos=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_parity_at_full_size(wheel: Path, tmp_path: Path) -> None:
    """All 100,000 places behind a tower of ViT-L/14's shape: 303 million numbers, minutes and some 6 GB."""
    vision = {key: value for key, value in geoclip.CLIP_VIT_L_14.items() if key != "projection_dim"}
    assert_parity(wheel, tmp_path, vision, galleries.TAU_MAX, ("torch", "openvino"), every=1, photos=1)


def test_the_wheels_shape_is_the_published_one(wheel: Path) -> None:
    published = geoclip.read_wheel(wheel)
    assert (published.head_widths, published.clip_width, len(published.lat_deg_N)) == ((768, 512), 768, 100_000)
    assert published.scale == pytest.approx(39.687, abs=1e-3)
    assert geoclip.needed_shape(published) == geoclip.CLIP_VIT_L_14
    numbers = sum(f.numel() + sum(w.numel() + b.numel() for w, b in layers) for f, layers in published.location)
    assert numbers == 9_449_472  # the published 9.45 million
    for (frequency_F2, _), sigma in zip(published.location, geoclip.SIGMAS, strict=True):
        assert float(frequency_F2.std()) == pytest.approx(sigma, rel=0.05)


def test_the_projection_keeps_areas() -> None:
    """x is linear in longitude and y hangs on latitude alone: area is dx/dλ · dy/dφ, and on the sphere cos φ."""
    lat_deg = np.linspace(-89, 89, 179)
    step_deg = 1e-4
    x, _ = geoclip.equal_earth_N2(lat_deg, np.ones_like(lat_deg)).T
    _, above = geoclip.equal_earth_N2(lat_deg + step_deg, 0 * lat_deg).T
    _, below = geoclip.equal_earth_N2(lat_deg - step_deg, 0 * lat_deg).T
    area = x / math.radians(1) * (above - below) / math.radians(2 * step_deg)
    np.testing.assert_allclose(area / np.cos(np.radians(lat_deg)), (66.50336 / 180) ** 2, rtol=1e-6)


def test_first_reading_is_the_gallerys_with_a_little_of_the_prior(tmp_path: Path) -> None:
    published = geoclip.read_wheel(write_wheel(tmp_path / "small.whl", small_tensors()))
    two_towers(SMALL_CLIP, 16).save_pretrained(tmp_path / "clip")
    tower, preprocessing = load_tower(str(tmp_path / "clip"))
    places = published.lat_deg_N, published.lon_deg_N
    features_ND = geoclip.location_features(published, *places)
    network, hierarchy = galleries.make_gallery(
        tower, preprocessing, published.head, features_ND, *places, published.scale, (100, 10)
    )
    reading = galleries.first_reading(hierarchy, Prior.world())
    assert reading.combination == "sum"
    assert reading.prior_share == (0.01, 0.01)
    assert network.gallery.weight.detach().norm(dim=1).numpy() == pytest.approx(math.exp(3), rel=1e-5)
    with pytest.raises(ValueError, match="a gallery of 99 places would answer nothing"):
        galleries.make_gallery(tower, preprocessing, (), features_ND[:99], *(x[:99] for x in places), 1.0, (10,))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def damage(tensors: dict[str, Any], file: str, change: dict[str, Any]) -> dict[str, Any]:
    return tensors | {file: tensors[file] | change}


MLP, LOCATION, SCALE = "image_encoder_mlp_weights.pth", "location_encoder_weights.pth", "logit_scale_weights.pth"
SMALL = small_tensors()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (damage(SMALL, MLP, {"2.weight": torch.zeros(8, 23)}), "takes 23 numbers, and gets 24"),
        (damage(SMALL, MLP, {"0.bias": torch.zeros(3)}), r"the layer 0 has the shapes \(24, 16\) and \(3,\)"),
        (damage(SMALL, MLP, {"0.bias": torch.full((24,), math.nan)}), "not finite"),
        (damage(SMALL, LOCATION, {"extra": torch.zeros(1)}), "has 28 tensors"),
        (damage(SMALL, LOCATION, {"LocEnc1.capsule.0.b": torch.zeros(5, 2)}), "LocEnc1's frequencies"),
        (SMALL | {MLP: small_tensors(width=9)[MLP]}, "places have 8 features, photos 9"),
        (SMALL | {SCALE: {"scale": torch.zeros(())}}, "not laid out"),
        (SMALL | {SCALE: Evil()}, "Weights only load failed"),
        ({MLP: {}}, "no item named"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tensors: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        geoclip.read_wheel(write_wheel(tmp_path / "x.whl", tensors))
    assert "\n" not in str(refused.value)
    assert "pip download --no-deps geoclip==1.3.0" in str(refused.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_wheel_that_is_cut_short_or_none_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_wheel(tmp_path / "whole.whl", small_tensors()).read_bytes()
    contents = {"half.whl": whole[: len(whole) // 2], "pickle.whl": pickle.dumps({"a": 1}), "empty.whl": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not GeoCLIP's wheel, or cut short") as refused:
            geoclip.read_wheel(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="cannot be read"):
        geoclip.read_wheel(tmp_path / "absent.whl")


def test_places_that_are_not_on_earth_are_refused(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "x.whl", small_tensors())
    with zipfile.ZipFile(path) as wheel:
        kept = {name: wheel.read(name) for name in wheel.namelist() if name != PLACES}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in (kept | {PLACES: b"LAT,LON\n1,2\n91,0\n"}).items():
            wheel.writestr(name, data)
    with pytest.raises(ValueError, match="beyond ±90 degrees"):
        geoclip.read_wheel(path)
