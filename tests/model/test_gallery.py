from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.backbones.backbone import BackboneConfig, Preprocessing
from model.checkpoint import Checkpoint
from model.engines import load_engine
from model.engines.export import ServingGraph, graph_fingerprint
from model.engines.openvino_engine import core, quantise
from model.gallery import MOST_PLACES, Gallery, GalleryConfig, LogSums
from model.networks import config_from_json
from model.readout import Reading
from model.world.hierarchy import Hierarchy, Level
from model.world.prior import Prior
from tests.model.test_engines import assert_same

CLIP = BackboneConfig(
    "clip_vision_model",
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
        "projection_dim": 16,
    },
)
PRECISIONS: tuple[Literal["int8", "fp32"], ...] = ("int8", "fp32")
SWIN = BackboneConfig("swin", {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4})


def photos(count: int, size_px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)


def gallery(hierarchy: Hierarchy, backbone: BackboneConfig, size_px: int, widths: tuple[int, ...] = ()) -> Gallery:
    """A gallery with random weights whose softmax is neither flat nor a single place's."""
    torch.manual_seed(0)
    network = Gallery(GalleryConfig(backbone, Preprocessing(size_px, size_px), head_widths=widths), hierarchy)
    with torch.no_grad():
        network.gallery.weight.copy_(20 * torch.nn.functional.normalize(torch.randn_like(network.gallery.weight)))
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(hierarchy: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    prior, levels = Prior.world(), len(hierarchy.levels)
    reading = Reading((1.0,) * levels, prior.levels(hierarchy), (0.01,) * levels, combination="sum")
    folder = Path(tmp_path_factory.mktemp("gallery"))
    return Checkpoint.save(
        folder, gallery(hierarchy, CLIP, 28, (24, 8)), hierarchy, reading, name="gallery", prior=prior
    )


def test_log_sums_are_exact_in_fp32_however_small_a_cell_is_beside_the_others() -> None:
    """100,000 places, cells of 1 to 2,000 of them, logits that spread over e^60."""
    random = np.random.default_rng(0)
    count_K = np.concatenate([random.integers(1, 40, 4000), [2000, 1, 1, 256, 257]])
    random.shuffle(count_K)
    logits_BN = torch.tensor(random.uniform(-60, 0, (2, count_K.sum())), dtype=torch.float32)
    found_BK = LogSums(count_K)(logits_BN)
    expected = [part.double().logsumexp(dim=1) for part in logits_BN.split(count_K.tolist(), dim=1)]
    torch.testing.assert_close(found_BK.double(), torch.stack(expected, dim=1), rtol=0, atol=1e-5)


def test_log_sums_of_single_places_are_the_places() -> None:
    logits_BN = torch.randn(3, 5)
    assert LogSums(np.ones(5, np.int64))(logits_BN) is logits_BN
    with pytest.raises(ValueError, match="every cell of a gallery needs a place"):
        LogSums(np.array([2, 0, 1]))


def test_levels_are_the_softmax_over_places_summed_by_cell(hierarchy: Hierarchy) -> None:
    network = gallery(hierarchy, CLIP, 28, (24, 8))
    with torch.no_grad():
        pixels_BCYX = torch.randn(3, 3, 28, 28)
        output = network(pixels_BCYX)
        hidden_BD = network.head[0](network.tower(pixels_BCYX)).clamp(min=0)
        features_BD = network.head[2](hidden_BD)
        cosine_BN = features_BD / features_BD.norm(dim=1, keepdim=True) @ network.gallery.weight.T
    place_BN = cosine_BN.double().softmax(dim=1).numpy()
    cell_N = np.repeat(np.arange(len(hierarchy.levels[-1])), hierarchy.levels[-1].photo_count_K)
    for number in reversed(range(len(hierarchy.levels))):
        expected_BK = np.stack([np.bincount(cell_N, row_N) for row_N in place_BN])
        np.testing.assert_allclose(output.logits[number].softmax(dim=1).numpy(), expected_BK, atol=1e-6)
        cell_N = hierarchy.levels[number].parent_K[cell_N]
    assert output.scene_logits_BS.shape == (3, 1)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_agree(checkpoint: Checkpoint, name: Literal["openvino", "onnxruntime"], tmp_path: Path) -> None:
    reference = load_engine("torch", checkpoint, precision="fp32")
    engine = load_engine(name, checkpoint, precision="fp32", cache_dir=tmp_path)
    for batch in (1, 5):
        assert_same(reference(photos(batch, 28)), engine(photos(batch, 28)))
    answers = engine(photos(5, 28))
    assert answers.scene_probability_B.tolist() == [1] * 5
    assert answers.information_bits_B.min() > 0.1


def test_features_of_another_backbone_are_compared_as_they_are(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """A gallery of one's own photos: no perceptron, the mean of the tokens."""
    network = gallery(hierarchy, SWIN, 32)
    pixels_BCYX = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        mean_BD = network.tower.backbone(pixels_BCYX).mean(dim=1)
        torch.testing.assert_close(network.features(pixels_BCYX), mean_BD / mean_BD.norm(dim=1, keepdim=True))
    checkpoint = Checkpoint.save(tmp_path, network, hierarchy)
    reference, compiled = (load_engine(name, checkpoint, precision="fp32") for name in ("torch", "openvino"))
    assert_same(reference(photos(3, 32)), compiled(photos(3, 32)))


def test_in_bf16_the_comparison_stays_in_fp32(checkpoint: Checkpoint) -> None:
    network = ServingGraph(checkpoint, torch.bfloat16).network
    assert isinstance(network, Gallery)
    assert next(network.tower.parameters()).dtype == torch.bfloat16
    assert network.gallery.weight.dtype == network.head[0].weight.dtype == torch.float32
    exact = load_engine("torch", checkpoint, precision="fp32")(photos(4, 28))
    coarse = load_engine("torch", checkpoint, precision="bf16")(photos(4, 28))
    np.testing.assert_allclose(coarse.level_probability_BH, exact.level_probability_BH, rtol=0.2, atol=0.02)


def test_in_int8_the_tower_is_coarse_and_the_comparison_exact(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The head's two products and that with all places take what they get as it is."""
    graph = quantise(checkpoint, photos(100, 28), tmp_path)
    products = [op for op in core().read_model(graph).get_ordered_ops() if op.get_type_name() == "MatMul"]
    is_coarse = ["FakeQuantize" in {x.get_node().get_type_name() for x in op.input_values()} for op in products]
    assert any(is_coarse[:-3])
    assert not any(is_coarse[-3:])
    quantised, exact = (
        load_engine("openvino", checkpoint, precision=precision, cache_dir=tmp_path)(photos(64, 28))
        for precision in PRECISIONS
    )
    np.testing.assert_allclose(quantised.level_probability_BH, exact.level_probability_BH, atol=0.09)
    assert not np.array_equal(quantised.level_probability_BH, exact.level_probability_BH)
    assert (quantised.level_index_BH == exact.level_index_BH).mean() > 0.8


def test_a_checkpoint_keeps_it_and_says_its_kind(checkpoint: Checkpoint, hierarchy: Hierarchy) -> None:
    values = json.loads((checkpoint.folder / "config.json").read_text())
    assert values["kind"] == "gallery"
    assert values["combination"] == "sum"
    original, loaded = gallery(hierarchy, CLIP, 28, (24, 8)), checkpoint.build_model()
    assert checkpoint.config == original.config
    pixels_BCYX = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(loaded(pixels_BCYX), original(pixels_BCYX), rtol=0, atol=0)


def test_weights_of_another_number_of_places_are_refused(
    checkpoint: Checkpoint, make_world: Any, tmp_path: Path
) -> None:
    other = make_world(photos=300)
    Checkpoint.save(tmp_path, gallery(other, CLIP, 28, (24, 8)), other)
    (tmp_path / "weights.safetensors").write_bytes((checkpoint.folder / "weights.safetensors").read_bytes())
    damaged = dataclasses.replace(Checkpoint.load(checkpoint.folder), folder=tmp_path, hierarchy=other)
    with pytest.raises(ValueError, match=r"'gallery\.weight' should be \(300, 8\) and is \(400, 8\)"):
        damaged.build_model()


def test_a_hierarchy_that_asks_for_any_amount_of_memory_is_refused(hierarchy: Hierarchy) -> None:
    finest = hierarchy.levels[-1]
    count_K = finest.photo_count_K.copy()
    count_K[0] = np.iinfo(np.int64).max
    levels = (*hierarchy.levels[:-1], Level(**{**vars_of(finest), "photo_count_K": count_K}))
    with pytest.raises(ValueError, match=f"may have {MOST_PLACES} places"):
        gallery(Hierarchy(levels), CLIP, 28)


def vars_of(level: Level) -> dict[str, Any]:
    return {field.name: getattr(level, field.name) for field in dataclasses.fields(level)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_widths": [24, 0]}, "positive whole numbers"),
        ({"head_widths": [True]}, "positive whole numbers"),
        ({"scenes": ["indoor", "urban"]}, "has one"),
        ({"scenes": [1]}, "a list of names"),
        ({"scale": 3}, "unknown key 'scale'"),
        ({"backbone": {"model_type": "swin"}}, "lacks the key"),
    ],
)
def test_wrong_settings_are_named(checkpoint: Checkpoint, change: dict[str, Any], message: str) -> None:
    values = json.loads(json.dumps(checkpoint.config.to_json())) | change
    with pytest.raises(ValueError, match=message):
        config_from_json("gallery", values)


@pytest.mark.parametrize("module", ["model.gallery", "model.backbones.tower", "model.networks"])
def test_a_graph_of_other_code_has_another_name(
    checkpoint: Checkpoint, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, source_of = graph_fingerprint(checkpoint), inspect.getsource
    monkeypatch.setattr("inspect.getsource", lambda one: source_of(one) + "#" * (one.__name__ == module))
    assert graph_fingerprint(checkpoint) != before
