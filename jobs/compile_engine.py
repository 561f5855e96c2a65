"""Compile a model ahead of its use, and put what comes of it, with a manifest, into a folder or object prefix.

python -m jobs.compile_engine --model URI --engine tensorrt --output s3://bucket/engines
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs import run_command
from jobs.benchmark.engine import Agreement, all_answers
from model.checkpoint import Checkpoint
from model.engines import Precision, cache, load_engine, onnx_graph
from model.engines.tensorrt_engine import TensorRtSettings
from model.readout import AUTO, PointRule
from pipeline import schema, storage
from pipeline.decode.photo import DecodeTarget
from pipeline.locate.engine_share import EngineShare
from pipeline.locate.locator import model_folder, serving_checkpoint
from pipeline.read.reader import IsolatedReader, ReaderSettings
from pipeline.sources.manifest import read_manifest

_READ_AT_ONCE = 64


@dataclass(frozen=True)
class CompileSettings:
    """Compile a model for an engine, or export it as ONNX, into a folder below the output."""

    engine: Literal["onnx", "openvino", "tensorrt"]
    """onnx is a file for any program that reads ONNX; openvino is OpenVINO's graph; tensorrt is a plan for this
    machine's GPU."""
    output: str
    """Folder or object prefix; several models, engines and GPUs may share one."""
    model: str = "bundled"
    """Checkpoint folder, local or remote; `bundled` is the small model that ships with Graticule."""
    point: PointRule = AUTO
    """Where an answer has its point: as jobs.geotag_archive's."""
    precision: Precision = "auto"
    """What the network computes in: auto is fp32 for onnx, and what this machine is fastest in for the others. int8 is
    for openvino; its answers differ, and by how much is printed."""
    photos: str | None = None
    """With --precision int8: photos such as will be tagged, any source that jobs.geotag_archive takes."""
    calibration_photos: int = 600
    """So many of them, drawn by lot, are read: half to make int8 from, half to say what it costs."""
    tensorrt: TensorRtSettings = field(default_factory=TensorRtSettings)


def run(settings: CompileSettings) -> int:
    """Compile or export unless it is there, and say what is where and how to use it; return the exit code."""
    if (settings.precision == "int8") != bool(settings.photos):
        raise ValueError("--photos is for --precision int8, and int8 needs it: photos such as will be tagged")
    if settings.precision == "int8" and settings.engine != "openvino":
        raise ValueError("only openvino computes in int8: give --engine openvino")
    checkpoint = serving_checkpoint(Checkpoint.load(model_folder(settings.model)).pointing(settings.point))
    output = storage.absolute(settings.output)
    storage.check_writable(output)
    share = EngineShare(output)
    with tempfile.TemporaryDirectory() as folder:
        entry = _compile(settings, checkpoint, Path(folder), share)
        manifest = json.loads((entry / cache.MANIFEST_FILE).read_bytes())
    print(f"{storage.join(output, entry.name)}: {manifest['engine']} {manifest['precision']} of {manifest['model_id']}")
    for file, described in manifest["files"].items():
        print(f"    {file:<16} {described['bytes']:>13,} bytes")
    print(_advice(settings, output, entry.name))
    return 0


def _compile(settings: CompileSettings, checkpoint: Checkpoint, cache_dir: Path, share: cache.Share) -> Path:
    """Return the folder of an entry in `cache_dir`, from the share or made and put there."""
    if settings.engine == "onnx":
        precision = "fp32" if settings.precision == "auto" else settings.precision
        return onnx_graph.cached(checkpoint, precision, cache_dir, share)
    if settings.engine == "tensorrt":
        load_engine(
            "tensorrt",
            checkpoint,
            cache_dir=cache_dir,
            precision=settings.precision,
            share=share,
            tensorrt=settings.tensorrt,
        )
        (manifest,) = cache_dir.glob(f"*/{cache.MANIFEST_FILE}")
        return manifest.parent
    from model.engines import openvino_engine

    if settings.precision == "int8":
        return _int8(settings, checkpoint, cache_dir, share)
    if settings.precision not in ("auto", "fp32"):
        raise ValueError(
            "openvino's graph is kept in fp32, and the engine rounds it when it starts: leave --precision out"
        )
    return openvino_engine.converted(checkpoint, cache_dir, share).parent


def _int8(settings: CompileSettings, checkpoint: Checkpoint, cache_dir: Path, share: cache.Share) -> Path:
    """Make the graph from half of a sample of photos, and print what it costs on the other half."""
    from model.engines import openvino_engine

    pixels_NHWC = _sampled_pixels(settings, checkpoint)
    graph = openvino_engine.quantise(checkpoint, pixels_NHWC[::2], cache_dir, share)
    exact, quantised = (
        all_answers(load_engine("openvino", checkpoint, cache_dir=cache_dir, precision=precision), pixels_NHWC[1::2])
        for precision in ("fp32", "int8")
    )
    found = Agreement.of(quantised, exact, checkpoint.hierarchy)
    print(f"on {len(exact.point_index_B)} photos that ranges were not taken from, int8 beside fp32: {found}")
    return graph.parent


def _sampled_pixels(settings: CompileSettings, checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """Read photos of the source in a random order, the same one each time, until there are enough readable ones."""
    assert settings.photos is not None
    listed = pa.Table.from_batches(list(read_manifest(storage.absolute(settings.photos))))
    order = np.random.default_rng(0).permutation(listed.num_rows)
    wanted = settings.calibration_photos
    reader = IsolatedReader(ReaderSettings(DecodeTarget.of(checkpoint.config.preprocessing)))
    pixels: list[bytes] = []
    try:
        for start in range(0, len(order), _READ_AT_ONCE):
            rows = listed.take(pa.array(order[start : start + _READ_AT_ONCE]))
            pixels += reader(rows).column(schema.PIXELS_HWC).drop_null().to_pylist()
            if len(pixels) >= wanted:
                break
    finally:
        reader.close()
    if len(pixels) < wanted:
        raise ValueError(f"{settings.photos} has {len(pixels)} readable photos, and int8 is to be made from {wanted}")
    return np.frombuffer(b"".join(pixels[:wanted]), np.uint8).reshape(
        wanted, *checkpoint.config.preprocessing.shape_HWC
    )


def _advice(settings: CompileSettings, output: str, name: str) -> str:
    """What to do with what was written."""
    if settings.engine == "openvino":
        int8 = " --engine-precision int8" if settings.precision == "int8" else ""
        return f"Machines take it from there:\n    {_geotag(settings, output)} --engine openvino{int8}"
    geotag = _geotag(settings, output)
    if settings.engine == "tensorrt":
        flags = "".join(
            f" --tensorrt.{key.replace('_', '-')} {value}"
            for key, value in asdict(settings.tensorrt).items()
            if value != getattr(TensorRtSettings(), key) and not isinstance(value, bool)
        )
        flags += " --tensorrt.version-compatible" if settings.tensorrt.version_compatible else ""
        return f"Machines with such a GPU take it from there:\n    {geotag} --engine tensorrt{flags}"
    takes = f"{onnx_graph.GRAPH_FILE} takes {onnx_graph.INPUT}, uint8 RGB, and gives {', '.join(onnx_graph.OUTPUTS)}"
    if not name.endswith("-fp32"):
        return f"{takes}."
    return f"{takes}.\nONNX Runtime runs it here, too:\n    {geotag} --engine onnxruntime"


def _geotag(settings: CompileSettings, output: str) -> str:
    point = "" if settings.point == AUTO else f" --point {settings.point}"
    return f"python -m jobs.geotag_archive … --model {settings.model}{point} --engines {output}"


if __name__ == "__main__":
    run_command(CompileSettings, run)
