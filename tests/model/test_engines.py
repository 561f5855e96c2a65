from __future__ import annotations

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.backbones.backbone import BackboneConfig
from model.checkpoint import Checkpoint
from model.engines import Engine, NumpyAnswers, load_engine
from model.engines.export import ServingGraph, export_program, graph_fingerprint
from model.engines.openvino_engine import core, openvino, quantise
from model.engines.torch_engine import GPU_BATCH_SIZE
from model.geodecoder import GeoDecoder, tiny
from model.networks import PriorConfig, PriorNetwork
from model.readout import Reading
from model.world import s2
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior

PROBABILITY_TOLERANCE = 1e-5
TOLERANCES = {"radius_km_B": 0.05, "information_bits_B": 1e-4}
"""Of what is no probability."""


def photos(count: int, size_px: int = 32, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)


def assert_same(one: NumpyAnswers, other: NumpyAnswers) -> None:
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        if a.dtype.kind == "f":
            tolerance = TOLERANCES.get(name, PROBABILITY_TOLERANCE)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def torch_engine(checkpoint: Checkpoint) -> Engine:
    return load_engine("torch", checkpoint, precision="fp32")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one conversion of this module's checkpoint is kept: conversions take some ten seconds."""
    return tmp_path_factory.mktemp("engines") / "cache"


@pytest.fixture(scope="module")
def openvino_engine(checkpoint: Checkpoint, cache_dir: Path) -> Engine:
    return load_engine("openvino", checkpoint, threads=2, cache_dir=cache_dir, precision="fp32")


@pytest.mark.parametrize("batch", [0, 1, 2, 7, 32])
def test_engines_agree_at_every_batch_size(torch_engine: Engine, openvino_engine: Engine, batch: int) -> None:
    assert_same(torch_engine(photos(32)[:batch]), openvino_engine(photos(32)[:batch]))


@pytest.mark.parametrize("name", ["torch_engine", "openvino_engine"])
def test_a_photos_answer_does_not_depend_on_its_batch(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    together = engine(photos(7))
    for row in range(7):
        alone = engine(photos(7)[row : row + 1])
        assert_same(alone, type(together)(*(field[row : row + 1] for field in together)))


def test_engines_agree_on_groups_and_keep_graphs_of_other_groups_apart(checkpoint: Checkpoint, tmp_path: Path) -> None:
    count = checkpoint.hierarchy.class_counts[-1]
    names = set()
    for group_K in (np.arange(count) % 5, np.arange(count) % 3):
        reference, compiled = (
            load_engine(name, checkpoint.grouping(group_K), precision="fp32", cache_dir=tmp_path)
            for name in ("torch", "openvino")
        )
        for batch in (0, 1, 7):
            assert_same(reference(photos(batch)), compiled(photos(batch)))
        answers = compiled(photos(4))
        assert answers.group_probability_BG.shape == (4, group_K.max() + 1)
        best_B = group_K[answers.top_index_BT[:, 0]]
        of_best_B = np.take_along_axis(answers.group_probability_BG, best_B[:, None], axis=1)[:, 0]
        assert (of_best_B > answers.top_probability_BT[:, 0]).all()
        names.add(graph_fingerprint(checkpoint.grouping(group_K)))
    assert len(names | {graph_fingerprint(checkpoint)}) == 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_answers_are_the_networks(checkpoint: Checkpoint, torch_engine: Engine) -> None:
    """Normalisation, checked apart from the serving graph that the engines share."""
    pixels_BHWC = photos(3)
    preprocessing = checkpoint.config.preprocessing
    x_BHWC = (pixels_BHWC / 255.0 - np.array(preprocessing.mean_rgb)) / np.array(preprocessing.std_rgb)
    with torch.no_grad():
        output = checkpoint.build_model()(torch.tensor(x_BHWC.transpose(0, 3, 1, 2), dtype=torch.float32))
    coarse_BK = output.logits[0] / checkpoint.reading.temperatures[0]
    answers = torch_engine(pixels_BHWC)
    np.testing.assert_array_equal(answers.level_index_BH[:, 0], coarse_BK.argmax(dim=1).numpy())
    expected_B = coarse_BK.softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(answers.level_probability_BH[:, 0], expected_B, atol=1e-6)
    assert answers.finite_B.all()


def test_engines_agree_on_points_of_least_distance(checkpoint: Checkpoint, torch_engine: Engine) -> None:
    elsewhere = checkpoint.pointing("least-distance")
    assert elsewhere.model_id == f"{checkpoint.model_id}+least-distance"
    assert graph_fingerprint(elsewhere) != graph_fingerprint(checkpoint)
    assert elsewhere.pointing("auto").model_id == checkpoint.model_id
    one, other = (load_engine(name, elsewhere, precision="fp32")(photos(32)) for name in ("torch", "openvino"))
    assert_same(one, other)
    best = load_engine("torch", checkpoint.pointing("best-cell"), precision="fp32")(photos(32))
    assert (best.point_index_B == best.top_index_BT[:, 0]).all()
    assert (one.point_index_B != best.point_index_B).any()
    np.testing.assert_array_equal(one.top_index_BT, best.top_index_BT)
    # No photo of a network with random weights is sure of a city.
    np.testing.assert_array_equal(torch_engine(photos(32)).point_index_B, one.point_index_B)


@pytest.fixture(scope="module")
def prior(hierarchy: Hierarchy) -> Prior:
    """No two of its cells are alike, so that no order hangs on rounding."""
    rng = np.random.default_rng(4)
    cell_id_M = np.unique(s2.cell_id_N(rng.normal(-15, 8, 3000), rng.normal(180, 12, 3000), 11))
    return Prior(cell_id_M, rng.integers(1, 1_000_000, len(cell_id_M)))


def read_with_prior(checkpoint: Checkpoint, prior: Prior, folder: Path, **changed: Any) -> Checkpoint:
    """The tiny network, loud enough to be heard, read with a prior that has another share at each level."""
    pi = prior.levels(checkpoint.hierarchy)
    reading = dataclasses.replace(Reading((0.2, 0.1, 0.05), pi, (0.3, 0.2, 0.1), 0.7), **changed)
    return Checkpoint.save(folder, checkpoint.build_model(), checkpoint.hierarchy, reading, prior=prior)


def read_by_the_sum(checkpoint: Checkpoint, prior: Prior, folder: Path) -> Checkpoint:
    return read_with_prior(checkpoint, prior, folder, combination="sum")


def prior_alone(checkpoint: Checkpoint, prior: Prior, folder: Path) -> Checkpoint:
    hierarchy = checkpoint.hierarchy
    reading = Reading((1.0, 1.0, 1.0), prior.levels(hierarchy))
    return Checkpoint.save(folder, PriorNetwork(PriorConfig(), hierarchy.class_counts), hierarchy, reading, prior=prior)


@pytest.mark.parametrize("make", [read_with_prior, read_by_the_sum, prior_alone])
def test_engines_agree_on_what_is_read_with_a_prior(
    make: Callable[[Checkpoint, Prior, Path], Checkpoint], checkpoint: Checkpoint, prior: Prior, tmp_path: Path
) -> None:
    """Each also says it of groups, and as the reading by itself does."""
    count = checkpoint.hierarchy.class_counts[-1]
    made = make(checkpoint, prior, tmp_path / "model").grouping(np.arange(count) % 5)
    reference = load_engine("torch", made, precision="fp32")
    for name in ("openvino", "onnxruntime"):
        engine = load_engine(name, made, precision="fp32", cache_dir=tmp_path / "cache")
        for batch in (0, 1, 7, 32):
            assert_same(reference(photos(32)[:batch]), engine(photos(32)[:batch]))
    answers = reference(photos(32))
    assert answers.finite_B.all()
    pi = prior.levels(checkpoint.hierarchy)
    if make is prior_alone:
        np.testing.assert_allclose(answers.information_bits_B, 0, atol=1e-5)
        best_BH = np.stack([prior_K[index_B] for prior_K, index_B in zip(pi, answers.level_index_BH.T, strict=True)], 1)
        np.testing.assert_allclose(answers.level_probability_BH, best_BH, rtol=1e-5)
        np.testing.assert_allclose(best_BH, np.tile([prior_K.max() for prior_K in pi], (32, 1)), rtol=1e-5)
    else:
        assert (answers.information_bits_B > 0.1).all()
        with torch.no_grad():
            graph = ServingGraph(made)
            preprocessing = made.config.preprocessing
            mean_C, std_C = torch.tensor(preprocessing.mean_rgb), torch.tensor(preprocessing.std_rgb)
            output = graph.network(((torch.tensor(photos(32)).float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2))
            p_BK = graph.read_out.log_probabilities(output.logits)[-1].exp().double().numpy()
        expected_B = (p_BK * np.log2(p_BK / pi[-1])).sum(axis=1)
        np.testing.assert_allclose(answers.information_bits_B, expected_B, rtol=1e-3)


def test_a_compiled_graph_is_of_its_prior(checkpoint: Checkpoint, prior: Prior, tmp_path: Path) -> None:
    other = Prior(prior.cell_id_M[:-1], prior.photo_count_M[:-1])
    made = [read_with_prior(checkpoint, p, tmp_path / str(n)) for n, p in enumerate((prior, other))]
    made += [read_by_the_sum(checkpoint, prior, tmp_path / "sum"), checkpoint]
    assert len({graph_fingerprint(one) for one in made}) == 4


def test_results_survive_the_next_call(openvino_engine: Engine) -> None:
    first = openvino_engine(photos(3))
    copies = [field.copy() for field in first]
    openvino_engine(photos(3, seed=1))
    for field, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(field, copy)


@pytest.mark.parametrize("name", ["torch_engine", "openvino_engine"])
def test_odd_memory_layouts_are_fine_and_odd_shapes_are_not(name: str, request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    pixels_BHWC = photos(4)
    turned = np.ascontiguousarray(pixels_BHWC.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    turned.flags.writeable = False
    assert_same(engine(turned), engine(pixels_BHWC))
    assert_same(engine(pixels_BHWC[::2]), engine(pixels_BHWC[::2].copy()))
    wrong: list[Any] = [pixels_BHWC.astype(np.float32), pixels_BHWC[0], pixels_BHWC[:, :31], pixels_BHWC[..., :2]]
    for pixels in wrong:
        with pytest.raises(AssertionError, match="pixels must"):
            engine(pixels)


def test_convolutional_backbone_exports(hierarchy: Hierarchy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = BackboneConfig("mobilenet_v2", {"depth_multiplier": 0.25, "tf_padding": False})
    model = GeoDecoder(dataclasses.replace(tiny(), backbone=backbone), hierarchy.class_counts)
    checkpoint = Checkpoint.save(tmp_path, model, hierarchy)
    reference, compiled = (load_engine(name, checkpoint, precision="fp32") for name in ("torch", "openvino"))
    for batch in (1, 5):
        assert_same(reference(photos(batch)), compiled(photos(batch)))


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_outputs_that_are_not_finite_are_told(
    name: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints refuse such weights, so they are put into the network behind its back."""
    build = Checkpoint.build_model

    def poisoned(self: Checkpoint) -> GeoDecoder:
        model = build(self)
        with torch.no_grad():
            model.classifiers[1].bias[3] = float("nan")
        return model

    monkeypatch.setattr(Checkpoint, "build_model", poisoned)
    assert load_engine(name, checkpoint)(photos(2)).finite_B.tolist() == [False, False]


def test_cache_skips_conversion_and_heals(
    checkpoint: Checkpoint,
    openvino_engine: Engine,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mine = tmp_path / "cache"
    shutil.copytree(cache_dir, mine)
    (entry,) = (path for path in mine.iterdir() if path.is_dir())
    assert entry.name == f"openvino-{openvino.__version__.split('-')[0]}-{graph_fingerprint(checkpoint)}-fp32"
    assert checkpoint.model_id in entry.name
    assert sorted(path.name for path in entry.iterdir()) == ["graph.bin", "graph.xml", "manifest.json"]
    conversions = []

    def export(graph: ServingGraph) -> Any:
        conversions.append(graph)
        return export_program(graph)

    monkeypatch.setattr("model.engines.openvino_engine.export_program", export)
    expected = openvino_engine(photos(2))
    assert_same(load_engine("openvino", checkpoint, cache_dir=mine, precision="fp32")(photos(2)), expected)
    assert conversions == []

    (entry / "graph.xml").write_text("<net>")
    with caplog.at_level(logging.WARNING):
        assert_same(load_engine("openvino", checkpoint, cache_dir=mine, precision="fp32")(photos(2)), expected)
    assert "making it again" in caplog.text
    assert_same(load_engine("openvino", checkpoint, cache_dir=mine, precision="fp32")(photos(2)), expected)
    assert len(conversions) == 1
    assert [path for path in mine.iterdir() if path.is_dir()] == [entry]


def test_int8_is_made_once_from_photos_and_is_near(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nobody has made .* in int8 yet"):
        load_engine("openvino", checkpoint, precision="int8", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="needs 100 photos"):
        quantise(checkpoint, photos(99), tmp_path)
    graph = quantise(checkpoint, photos(100), tmp_path)
    assert graph.read_text().count("FakeQuantize") > 10
    made_ns = graph.stat().st_mtime_ns
    assert quantise(checkpoint, photos(100, seed=1), tmp_path).stat().st_mtime_ns == made_ns
    quantised = load_engine("openvino", checkpoint, precision="int8", cache_dir=tmp_path)
    exact = load_engine("openvino", checkpoint, precision="fp32", cache_dir=tmp_path)
    assert quantised.precision == "int8"
    said, right = quantised(photos(64, seed=2)), exact(photos(64, seed=2))
    np.testing.assert_allclose(said.level_probability_BH, right.level_probability_BH, atol=0.05)
    assert not np.array_equal(said.level_probability_BH, right.level_probability_BH)
    np.testing.assert_allclose(said.group_probability_BG.sum(axis=1), 1, atol=1e-5)  # the read-out is fp32
    for name in ("torch", "onnxruntime"):
        with pytest.raises(ValueError, match="does not compute in int8"):
            load_engine(name, checkpoint, precision="int8")


def test_bf16_network_keeps_fp32_probabilities(checkpoint: Checkpoint, torch_engine: Engine) -> None:
    engine = load_engine("torch", checkpoint, precision="bf16")
    assert engine.precision == "bf16"
    coarse, exact = engine(photos(4)), torch_engine(photos(4))
    assert coarse.level_probability_BH.dtype == np.float32
    np.testing.assert_allclose(coarse.level_probability_BH, exact.level_probability_BH, atol=0.02)
    assert not np.array_equal(coarse.level_probability_BH, exact.level_probability_BH)


def test_openvino_reports_to_nobody() -> None:
    """Importing and converting would each send an event to Google Analytics."""
    assert openvino.tools.ovc.telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
    assert openvino.tools.ovc.convert_impl.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


COME_AND_GO = """
import os, signal, sys, time
from pathlib import Path
from model.checkpoint import Checkpoint
from model.engines import load_engine
checkpoint = Checkpoint.load(Path(sys.argv[1]))
one, other = (load_engine("openvino", checkpoint, precision="fp32", cache_dir=Path(sys.argv[2])) for _ in range(2))
del one
del other
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.usefixtures("openvino_engine")
def test_ctrl_c_is_heard_when_engines_have_come_and_gone(checkpoint: Checkpoint, cache_dir: Path) -> None:
    command = [sys.executable, "-c", COME_AND_GO, str(checkpoint.folder), str(cache_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n")  # -11, a segmentation fault, with an OpenVINO each


@pytest.mark.usefixtures("openvino_engine")
def test_choosing_an_engine(checkpoint: Checkpoint, cache_dir: Path) -> None:
    engine = load_engine("auto", checkpoint, cache_dir=cache_dir)
    assert engine.name == ("torch" if torch.cuda.is_available() else "openvino")
    assert engine.shape_HWC == (32, 32, 3)
    for name in ("torch", "openvino", "onnxruntime"):
        with pytest.raises(ValueError, match=f"the {name} engine does not compute in fp16: use precision auto"):
            load_engine(name, checkpoint, precision="fp16")
    wrong: Any = "tensorflow"
    with pytest.raises(ValueError, match="no engine is called 'tensorflow'"):
        load_engine(wrong, checkpoint)
    with pytest.raises(ValueError, match="at least one thread"):
        load_engine("torch", checkpoint, threads=0)


@pytest.mark.usefixtures("openvino_engine")
def test_openvino_refuses_bf16_that_the_processor_lacks(checkpoint: Checkpoint, cache_dir: Path) -> None:
    if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert load_engine("openvino", checkpoint, cache_dir=cache_dir, precision="bf16").precision == "bf16"
    else:
        with pytest.raises(ValueError, match="does not compute in bf16"):
            load_engine("openvino", checkpoint, precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("batch", [1, 7, GPU_BATCH_SIZE, 2 * GPU_BATCH_SIZE + 3])
def test_gpu_gives_the_cpus_answers(checkpoint: Checkpoint, batch: int) -> None:
    """Several batches in flight, a short last one: each photo gets its own answer."""
    with torch.inference_mode():
        expected = NumpyAnswers(*(x.numpy() for x in ServingGraph(checkpoint)(torch.tensor(photos(batch)))))
    engine = load_engine("torch", checkpoint, precision="fp32")
    assert_same(engine(photos(batch)), expected)
    assert_same(engine(photos(batch)), expected)
