"""Compile a model ahead of its use, and put what comes of it, with a manifest, into a folder or object prefix.

python -m jobs.compile_engine --model URI --engine tensorrt --output s3://bucket/engines
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from jobs import run_command
from model.checkpoint import Checkpoint
from model.engines import Precision, cache, load_engine, onnx_graph
from model.engines.export import graph_fingerprint
from model.engines.tensorrt_engine import TensorRtSettings
from model.readout import BEST_CELL, PointRule
from pipeline import storage
from pipeline.engine_share import EngineShare
from pipeline.locator import model_folder, serving_checkpoint


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
    point: PointRule = BEST_CELL
    """Where an answer has its point: as jobs.geotag_archive's."""
    precision: Precision = "auto"
    """What the network computes in: auto is fp32 for onnx, and what this machine is fastest in for the others."""
    tensorrt: TensorRtSettings = field(default_factory=TensorRtSettings)


def run(settings: CompileSettings) -> int:
    """Compile or export unless it is there, and say what is where and how to use it; return the exit code."""
    checkpoint = serving_checkpoint(Checkpoint.load(model_folder(settings.model)).pointing(settings.point))
    output = storage.absolute(settings.output)
    storage.check_writable(output)
    share = EngineShare(output)
    with tempfile.TemporaryDirectory() as folder:
        _compile(settings, checkpoint, Path(folder), share)
        (entry,) = Path(folder).glob(f"*/{cache.MANIFEST_FILE}")
        manifest = json.loads(entry.read_bytes())
        name = entry.parent.name
    print(f"{storage.join(output, name)}: {manifest['engine']} {manifest['precision']} of {manifest['model_id']}")
    for file, described in manifest["files"].items():
        print(f"    {file:<16} {described['bytes']:>13,} bytes")
    print(_advice(settings, output, name))
    return 0


def _compile(settings: CompileSettings, checkpoint: Checkpoint, cache_dir: Path, share: cache.Share) -> None:
    """Leave one entry in `cache_dir`, from the share or made and put there."""
    if settings.engine == "onnx":
        precision = "fp32" if settings.precision == "auto" else settings.precision
        onnx_graph.cached(checkpoint, precision, cache_dir, share)
    elif settings.engine == "tensorrt":
        load_engine(
            "tensorrt",
            checkpoint,
            cache_dir=cache_dir,
            precision=settings.precision,
            share=share,
            tensorrt=settings.tensorrt,
        )
    else:
        _compile_openvino(settings, checkpoint, cache_dir, share)


def _compile_openvino(settings: CompileSettings, checkpoint: Checkpoint, cache_dir: Path, share: cache.Share) -> None:
    if settings.precision not in ("auto", "fp32"):
        raise ValueError(
            "openvino's graph is kept in fp32, and the engine rounds it when it starts: leave --precision out"
        )
    with tempfile.TemporaryDirectory() as folder:
        load_engine("openvino", checkpoint, cache_dir=Path(folder))
        (made,) = Path(folder).iterdir()
        manifest = onnx_graph.manifest(checkpoint, "openvino", "fp32", openvino=version("openvino"))
        manifest["fingerprint"] = graph_fingerprint(checkpoint)

        def copy(fresh: Path) -> None:
            shutil.copytree(made, fresh, dirs_exist_ok=True)

        cache.entry(cache_dir, made.name, manifest, copy, share)


def _advice(settings: CompileSettings, output: str, name: str) -> str:
    """What to do with what was written."""
    if settings.engine == "openvino":
        folder = storage.cache_folder() / "engines"
        return f"Copy it to {folder}/{name}, and --engine openvino starts from it there."
    point = "" if settings.point == BEST_CELL else f" --point {settings.point}"
    geotag = f"python -m jobs.geotag_archive … --model {settings.model}{point} --engines {output}"
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


if __name__ == "__main__":
    run_command(CompileSettings, run)
