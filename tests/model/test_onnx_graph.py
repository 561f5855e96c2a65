"""The exported graph, run by ONNX Runtime and read by OpenVINO, says what torch says, on real photos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, load_engine, onnx_graph, openvino_engine
from model.readout import Answers
from model.world.geodesy import haversine_km
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.locator import BUNDLED_MODEL
from pipeline.read.reader import Reader, ReaderSettings

MAX_BATCH = 32
BATCHES = (1, 7, MAX_BATCH)
AROUND_THE_POINT = ("point_probability_B", "radius_km_B", "mass_within_B4")

Photos = Callable[[Checkpoint], NDArray[np.uint8]]
Graph = Callable[[Checkpoint, str], Path]


@pytest.fixture(scope="module")
def real_photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """The seven packaged photographs at a model's size, as served, turned and mirrored to 32."""
    folder = tmp_path_factory.mktemp("photos")
    write_demo_archive(folder)
    uris = [entry.uri for entry in storage.list_files(str(folder))]
    manifest = pa.Table.from_pylist(
        [{schema.PHOTO_ID: schema.photo_id(uri), schema.URI: uri} for uri in uris], schema=schema.MANIFEST
    )

    def pixels(checkpoint: Checkpoint) -> NDArray[np.uint8]:
        target = DecodeTarget.of(checkpoint.config.preprocessing)
        read = Reader(ReaderSettings(target))(manifest).column(schema.PIXELS_HWC).to_pylist()
        flat = np.frombuffer(b"".join(photo for photo in read if photo is not None), np.uint8)
        photos_BHWC = flat.reshape(-1, *target.shape_HWC)
        assert len(photos_BHWC) == 7
        turned = [np.rot90(photos_BHWC, quarter, axes=(1, 2)) for quarter in range(4)]
        return np.concatenate([*turned, turned[0][:, :, ::-1]])[:MAX_BATCH]

    return pixels


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Exports, each once."""
    cache_dir = tmp_path_factory.mktemp("graphs")
    return lambda checkpoint, precision: onnx_graph.cached(checkpoint, precision, cache_dir) / onnx_graph.GRAPH_FILE


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    """With a say for its network: where the prior alone decides, cells that are alike to it change places."""
    checkpoint = Checkpoint.load(BUNDLED_MODEL)
    reading = dataclasses.replace(checkpoint.reading, prior_share=(0.3,) * len(checkpoint.reading.prior_share))
    return dataclasses.replace(checkpoint, reading=reading)


def by_onnxruntime(graph: Path, pixels_BHWC: NDArray[np.uint8]) -> NumpyAnswers:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns about each operator that it casts to fp32 on the CPU
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == list(Answers._fields)
    assert session.get_inputs()[0].shape == ["batch", *pixels_BHWC.shape[1:]]
    return Answers(*session.run(None, {onnx_graph.INPUT: pixels_BHWC}))


def by_openvino(graph: Path, pixels_BHWC: NDArray[np.uint8]) -> NumpyAnswers:
    core = openvino_engine.core()
    compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled([np.ascontiguousarray(pixels_BHWC)])
    return Answers(*(results[name] for name in Answers._fields))


def assert_agree(
    checkpoint: Checkpoint, one: NumpyAnswers, other: NumpyAnswers, probability: float, km: float, same: float = 1.0
) -> None:
    """Probabilities and radii within tolerances; at least the share `same` of the photos at the same point."""
    finest = checkpoint.hierarchy.levels[-1]
    points = [(finest.lat_deg_K[a.point_index_B], finest.lon_deg_K[a.point_index_B]) for a in (one, other)]
    at_same_point_B = haversine_km(*points[0], *points[1]) < 0.001
    assert at_same_point_B.mean() >= same
    for name, a, b in zip(Answers._fields, one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if name in AROUND_THE_POINT:
            a, b = a[at_same_point_B], b[at_same_point_B]
        if name == "radius_km_B":
            np.testing.assert_allclose(a, b, rtol=0, atol=km)
        elif "probability" in name or "mass" in name:
            np.testing.assert_allclose(a, b, rtol=0, atol=probability, err_msg=name)
    np.testing.assert_array_equal(one.finite_B, other.finite_B)


@pytest.mark.parametrize("run", [by_onnxruntime, by_openvino])
@pytest.mark.parametrize("name", ["checkpoint", "bundled"])
def test_fp32_is_torchs_at_every_batch(
    name: str,
    run: Callable[[Path, NDArray[np.uint8]], NumpyAnswers],
    graph: Graph,
    real_photos: Photos,
    request: pytest.FixtureRequest,
) -> None:
    """Tolerances: 1e-5 in probability, 0.05 km in radius; measured 5e-7 and 0.002 km."""
    checkpoint: Checkpoint = request.getfixturevalue(name)
    photos_BHWC, exported = real_photos(checkpoint), graph(checkpoint, "fp32")
    reference = load_engine("torch", checkpoint, precision="fp32")
    for batch in BATCHES:
        expected, found = reference(photos_BHWC[:batch]), run(exported, photos_BHWC[:batch])
        assert_agree(checkpoint, expected, found, probability=1e-5, km=0.05)
        for field in ("level_index_BH", "top_index_BT", "scene_index_B"):
            np.testing.assert_array_equal(getattr(expected, field), getattr(found, field), err_msg=field)


@pytest.mark.parametrize(
    ("precision", "run"),
    [
        ("bf16", by_openvino),
        ("fp16", by_onnxruntime),
        pytest.param("fp16", by_openvino, marks=pytest.mark.soak),  # the same graph, read as bf16's is
    ],
)
def test_half_precisions_are_close(
    precision: str,
    run: Callable[[Path, NDArray[np.uint8]], NumpyAnswers],
    checkpoint: Checkpoint,
    graph: Graph,
    real_photos: Photos,
) -> None:
    """The graph's rounded weights, computed in fp32 by CPUs that have nothing else (ONNX Runtime has no bf16 here)."""
    photos_BHWC = real_photos(checkpoint)
    expected = load_engine("torch", checkpoint, precision="fp32")(photos_BHWC)
    found = run(graph(checkpoint, precision), photos_BHWC)
    tolerance = {"bf16": 0.05, "fp16": 0.01}[precision]
    assert_agree(checkpoint, expected, found, probability=tolerance, km=500.0, same=0.8)
    assert not np.array_equal(expected.level_probability_BH, found.level_probability_BH)


@pytest.mark.soak  # that their graph is right is told below, by its types
def test_bf16_convolutions_are_close(bundled: Checkpoint, graph: Graph, real_photos: Photos) -> None:
    """Measured: 0.02 in probability (a scene's), 0.02 km in radius, one photo of thirty at another point."""
    photos_BHWC = real_photos(bundled)
    expected = load_engine("torch", bundled, precision="fp32")(photos_BHWC)
    found = by_openvino(graph(bundled, "bf16"), photos_BHWC)
    assert_agree(bundled, expected, found, probability=0.05, km=5.0, same=0.8)


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [
        ("checkpoint", "fp32", onnx.TensorProto.FLOAT),
        ("checkpoint", "bf16", onnx.TensorProto.BFLOAT16),
        ("checkpoint", "fp16", onnx.TensorProto.FLOAT16),
        ("bundled", "bf16", onnx.TensorProto.BFLOAT16),
    ],
)
def test_the_graph_is_strongly_typed(
    name: str, precision: str, kind: int, graph: Graph, request: pytest.FixtureRequest
) -> None:
    """TensorRT takes every operator's type from the graph: the network in its precision, the rest in fp32."""
    exported = graph(request.getfixturevalue(name), precision)
    onnx.checker.check_model(exported, full_check=True)  # folded batch norms once gave bf16 convolutions fp32 weights
    model = onnx.shape_inference.infer_shapes(onnx.load(exported))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    types |= {value.name: value.data_type for value in model.graph.initializer}
    found = {node.op_type: set[int]() for node in model.graph.node}
    for node in model.graph.node:
        found[node.op_type].add(types[node.output[0]])
    for operator in ("Conv", "MatMul", "Gemm", "LayerNormalization", "Gelu"):
        assert found[operator] == {kind}, operator
    for operator in ("LogSoftmax", "ReduceSum", "Asin", "Exp"):
        assert found[operator] == {onnx.TensorProto.FLOAT}, operator
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", onnx_graph.OPSET)]


def test_exports_are_the_same_bytes_and_name_no_machine(checkpoint: Checkpoint, graph: Graph, tmp_path: Path) -> None:
    first = graph(checkpoint, "fp32").parent
    onnx_graph.export(checkpoint, "fp32", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [onnx_graph.GRAPH_FILE, onnx_graph.WEIGHTS_FILE]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (first / path.name).read_bytes(), path.name
    assert b".py" not in (tmp_path / onnx_graph.GRAPH_FILE).read_bytes()


def test_names_tell_what_would_be_made(checkpoint: Checkpoint, bundled: Checkpoint) -> None:
    names = {onnx_graph.fingerprint(c, p) for c in (checkpoint, bundled) for p in ("fp32", "bf16", "fp16")}
    assert len(names) == 6


def test_onnxruntime_engine_exports_once(
    checkpoint: Checkpoint, real_photos: Photos, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_dir = graph(checkpoint, "fp32").parent.parent
    monkeypatch.setattr(onnx_graph, "export", lambda *_: pytest.fail("exported again"))
    engine = load_engine("onnxruntime", checkpoint, threads=2, cache_dir=cache_dir)
    photos_BHWC = real_photos(checkpoint)
    expected = load_engine("torch", checkpoint, precision="fp32")(photos_BHWC)
    assert (engine.name, engine.precision, engine.shape_HWC) == ("onnxruntime", "fp32", (32, 32, 3))
    assert_agree(checkpoint, expected, engine(photos_BHWC), probability=1e-5, km=0.05)
    assert engine(photos_BHWC[:0]).top_index_BT.shape == (0, 5)
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match=rf"not (compute )?in {precision}"):
            load_engine("onnxruntime", checkpoint, cache_dir=cache_dir, precision=precision)
