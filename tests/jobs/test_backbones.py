"""Every family of backbones by one flag: from its folder through training, checkpoint and every engine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs import train
from model.backbones.backbone import Backbone
from model.checkpoint import Checkpoint
from model.engines import EngineName, load_engine
from model.engines.export import plain_attention
from model.geodecoder import GeoDecoder, GeoDecoderConfig
from tests.support import family_training
from tests.support.backbone_folders import FAMILIES, SIZE_PX
from training.fit.recipe import Recipe

TOLERANCE = 1e-4
CONVERTED = (
    *("clip", "siglip", "dinov2", "dinov3 vit", "convnext", "swin", "swinv2"),
    *("efficientnet", "resnet", "mobilenet v2"),
)
"""Families whose backbone each engine's runtime converts here, in seconds each. The others differ little from these."""
IN_PAIRS = ("clip", "siglip", "dinov2", "efficientnet")
"""Families with weights that tokens don't depend on, and the one with batch statistics."""
PHOTOS = {"train": 24, "validation": 12}
TOWNS = ((48.8, 2.3), (-33.9, 18.4), (35.7, 139.7))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Photos of three towns, each town its colour."""
    folder = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(0)
    lines = ["path,lat,lon,part"]
    for part, count in PHOTOS.items():
        for number in range(count):
            town = number % 3
            colour = np.eye(3)[town] * 120 + 60
            pixels = np.clip(colour + random.integers(-30, 31, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}{number}.png")
            lines.append(f"{part}{number}.png,{TOWNS[town][0] + number / 100},{TOWNS[town][1]},{part}")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "photos.csv")


def run(manifest: str, backbone: Path | str, output: Path, **more: Any) -> Checkpoint:
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=3e-3)
    given = {"recipe": recipe, "network": "tiny"} | more
    assert train.run(train.Settings(manifest, str(output), backbone=str(backbone), **given)) == 0
    return Checkpoint.load(output)


def engines() -> list[EngineName]:
    """Those that are installed here, beside torch."""
    has_onnxruntime = all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnxscript"))
    return ["openvino", "onnxruntime"] if has_onnxruntime else ["openvino"]


def pixels(count: int = 3, size_px: int = SIZE_PX) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)


def assert_engines_agree(checkpoint: Checkpoint, cache_dir: Path, others: Sequence[EngineName]) -> None:
    expected = load_engine("torch", checkpoint, precision="fp32")(pixels())
    assert expected.finite_B.all()
    for engine in others:
        answers = load_engine(engine, checkpoint, precision="fp32", cache_dir=cache_dir)(pixels())
        for field in ("level_probability_BH", "top_probability_BT", "mass_within_B4", "scene_probability_B"):
            one, other = getattr(answers, field), getattr(expected, field)
            np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE, err_msg=f"{engine} {field}")


def assert_tokens_agree(backbone: Backbone, folder: Path, size_px: int = SIZE_PX) -> None:
    """What the engines' runtimes make of the backbone alone, exported as they export the whole: in seconds."""
    pixels_BCHW = torch.from_numpy(pixels(2, size_px)).permute(0, 3, 1, 2) / 255 - 0.5
    batch = ({0: torch.export.Dim("batch")},)
    with torch.no_grad(), plain_attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        expected_BND = backbone(pixels_BCHW).numpy()
        program = torch.export.export(backbone, (pixels_BCHW,), dynamic_shapes=batch)
        compiled = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answers = {"openvino": compiled([pixels_BCHW.numpy()])[0]}
        if "onnxruntime" in engines():
            answers["onnxruntime"] = in_onnxruntime(program, pixels_BCHW, folder / "tokens.onnx")
    for engine, tokens_BND in answers.items():
        np.testing.assert_allclose(tokens_BND, expected_BND, rtol=TOLERANCE, atol=TOLERANCE, err_msg=engine)


def in_onnxruntime(program: torch.export.ExportedProgram, pixels_BCHW: Tensor, path: Path) -> NDArray[np.float32]:
    import onnxruntime

    torch.onnx.export(program, dynamo=True, verbose=False, optimize=False).save(path)  # type: ignore[union-attr]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens_BND: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: pixels_BCHW.numpy()})[0]
    return tokens_BND


def assert_learnt(model: GeoDecoder, start: family_training.Network) -> None:
    """Every weight that learns had a gradient, and the backbone's have moved."""
    learning = {name: x for name, x in model.named_parameters() if x.requires_grad}
    assert [name for name, x in learning.items() if x.grad is None] == []
    assert start.weights is not None
    moved = [name for name, x in learning.items() if name in start.weights and not torch.equal(x, start.weights[name])]
    # Of attention's keys, the bias moves nothing: a softmax does not see it.
    still = {name for name in learning if name.startswith("backbone.")} - set(moved)
    assert len(still) <= 0.2 * len(moved), still


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_trained_stored_and_computed_alike_by_every_runtime(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    family.write(tmp_path / "downloaded")
    start = family_training.network(str(tmp_path / "downloaded"))
    (tmp_path / "downloaded" / "model.safetensors").unlink()  # nothing needs it any more
    model = family_training.trained(start)
    assert_learnt(model, start)
    checkpoint = Checkpoint.save(tmp_path / "model", model, family_training.hierarchy())
    assert isinstance(checkpoint.config, GeoDecoderConfig)
    assert checkpoint.config.backbone.name == ""
    assert checkpoint.config.backbone.model_type == (family.stored_type or family.model_type)
    loaded = checkpoint.build_model()
    assert isinstance(loaded, GeoDecoder)
    pixels_BCHW = torch.randn(2, 3, SIZE_PX, SIZE_PX)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels_BCHW).logits, model(pixels_BCHW).logits, rtol=0, atol=1e-6)
    if name in CONVERTED:
        assert_tokens_agree(loaded.backbone.eval(), tmp_path)


@pytest.mark.filterwarnings("ignore:Grad strides")  # of depthwise convolutions: it costs a copy, and no more
def test_two_processes_train_what_has_weights_that_no_gradient_reaches(tmp_path: Path) -> None:
    """DistributedDataParallel refuses a weight that learns and gets no gradient: with CLIP's own class it does."""
    folders = []
    for name in IN_PAIRS:
        FAMILIES[name].write(tmp_path / name)
        folders.append(str(tmp_path / name))
    rendezvous, tokens = tmp_path / "rendezvous", str(tmp_path / "tokens")
    command = [sys.executable, "-m", "tests.support.family_training", str(rendezvous), tokens, *folders]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        try:
            family_training.join(rendezvous, 0)
            for folder in folders:
                start = family_training.network(folder)
                assert_learnt(family_training.trained(start), start)
            start = family_training.network(folders[0])
            frozen = family_training.trained(start, tokens).state_dict()
            _, said = other.communicate(timeout=120)
        finally:
            other.kill()
            if dist.is_initialized():
                dist.destroy_process_group()
    assert other.returncode == 0, said
    alone = family_training.trained(start, tokens).state_dict()
    assert start.weights is not None
    for name, x in frozen.items():
        torch.testing.assert_close(x, alone[name], rtol=0, atol=1e-4)
        assert name not in start.weights or torch.equal(x, start.weights[name])


def test_another_image_size_is_trained_with_its_positions_interpolated(tmp_path: Path) -> None:
    FAMILIES["vit"].write(tmp_path / "downloaded")
    start = family_training.network(str(tmp_path / "downloaded"), 48)
    model = family_training.trained(start)
    assert_learnt(model, start)
    assert model.backbone.tokens == 1 + 36
    checkpoint = Checkpoint.save(tmp_path / "model", model, family_training.hierarchy())
    assert checkpoint.config.preprocessing.image_size_px == 48
    loaded = checkpoint.build_model()
    assert isinstance(loaded, GeoDecoder)
    assert_tokens_agree(loaded.backbone.eval(), tmp_path, 48)


def test_the_command_takes_a_folder_and_engines_serve_what_it_made(manifest: str, tmp_path: Path) -> None:
    """The default engine alone: a whole graph takes each of the others half a minute, which the soak has."""
    FAMILIES["clip"].write(tmp_path / "downloaded")
    levels = tmp_path / "hierarchy"  # of one level, so that its graph is small
    levels.mkdir()
    family_training.hierarchy().save(levels)
    checkpoint = run(manifest, tmp_path / "downloaded", tmp_path / "model", hierarchy=str(levels), prior="none")
    assert checkpoint.training["backbone"] == "downloaded"
    assert checkpoint.config.preprocessing.mean_rgb == pytest.approx((0.48, 0.46, 0.41))
    assert_engines_agree(checkpoint, tmp_path, ["openvino"])


def test_a_frozen_backbone_is_trained_on_from_its_tokens(
    manifest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAMILIES["clip"].write(tmp_path / "downloaded")
    more = {"freeze": True, "cache_tokens": str(tmp_path / "tokens"), "prior": "none"}
    checkpoint = run(manifest, tmp_path / "downloaded", tmp_path / "model", **more)
    assert f"tokens: 17 of 16 for each of {sum(PHOTOS.values())} photos, 0 MB in " in capsys.readouterr().out
    (cache,) = (tmp_path / "tokens").iterdir()
    assert checkpoint.training["tokens"] == cache.name
    assert sorted(path.name for path in cache.iterdir()) == [
        "index.json",
        "train-00000.24.arrow",
        "validation-00000.12.arrow",
    ]
    start = family_training.network(str(tmp_path / "downloaded")).weights
    assert start is not None
    weights = checkpoint.build_model().state_dict()
    assert all(torch.equal(weights[name], x) for name, x in start.items())
    again = run(manifest, tmp_path / "downloaded", tmp_path / "again", **more)
    assert again.model_id == checkpoint.model_id
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [cache.name]
    with pytest.raises(ValueError, match="add --freeze to --cache-tokens"):
        run(manifest, tmp_path / "downloaded", tmp_path / "other", cache_tokens=str(tmp_path / "tokens"))
    with pytest.raises(ValueError, match="leave --backbone or --init out"):
        run(manifest, tmp_path / "downloaded", tmp_path / "other", init="bundled")
    assert not (tmp_path / "other").exists()


@pytest.mark.soak
@pytest.mark.parametrize("name", FAMILIES)
def test_the_command_takes_every_folder_and_engines_serve_what_it_made(
    name: str, manifest: str, tmp_path: Path
) -> None:
    FAMILIES[name].write(tmp_path / "downloaded")
    checkpoint = run(manifest, tmp_path / "downloaded", tmp_path / "model")
    assert checkpoint.config.preprocessing.image_size_px == SIZE_PX
    assert_engines_agree(checkpoint, tmp_path, engines())
