"""The serving graph as an ONNX file: what ONNX Runtime runs, TensorRT compiles and OpenVINO reads.

Shapes: B batch, free · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Checkpoint
from model.engines import cache
from model.engines import export as export_module
from model.engines.export import ServingGraph, export_program, graph_fingerprint, plain_attention
from model.readout import Answers

GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "graph.onnx.data"
INPUT = "pixels_BHWC"
OUTPUTS = Answers._fields
"""The graph's outputs, named and typed as `Answers` says."""

OPSET = 22
"""The oldest with bf16 convolutions (22); layer normalisation (17) and GELU (20) are one operator each, to be fused."""

NETWORK_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fingerprint(checkpoint: Checkpoint, precision: str) -> str:
    """A name for the ONNX graph of `checkpoint`: never the same for what other code would make. Needs no ONNX."""
    source = Path(__file__).read_bytes()
    return f"{graph_fingerprint(checkpoint)}-{hashlib.sha256(source).hexdigest()[:8]}-{precision}"


def manifest(checkpoint: Checkpoint, engine: str, precision: str, **versions: str) -> dict[str, object]:
    """What an entry of the cache that came of the ONNX graph says of itself, besides its files."""
    return export_module.manifest(checkpoint, engine, fingerprint(checkpoint, precision), precision, **versions)


def cached(checkpoint: Checkpoint, precision: str, cache_dir: Path, share: cache.Share | None = None) -> Path:
    """Return the folder with the graph's files, exported if it is not in the cache.

    Raises:
        ValueError: it has to be exported, and `onnx` or `onnxscript` is not installed.
    """
    return cache.entry(
        cache_dir,
        f"onnx-{fingerprint(checkpoint, precision)}",
        manifest(checkpoint, "onnx", precision, **_versions()) | {"opset": OPSET},
        lambda folder: export(checkpoint, precision, folder),
        share,
    )


def export(checkpoint: Checkpoint, precision: str, folder: Path) -> Path:
    """Write the graph to `folder`/graph.onnx and its weights beside it, and return the graph's path.

    pixels_BHWC, uint8 → the fields of `Answers`. The network computes in `precision` (fp32, bf16 or fp16: whoever runs
    the graph need not choose), normalisation and read-out in fp32. The same checkpoint and library versions give the
    same bytes.

    Raises:
        ValueError: `onnx` or `onnxscript` is not installed.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  (torch's exporter needs it, and would say so less clearly)
    except ImportError as error:
        raise ValueError(f"exporting to ONNX needs {error.name}: pip install 'graticule[onnx]'") from error
    with (
        # Torch traces twice, and takes over the first trace's views, which hold only if attention lays its output out
        # alike in both: so the same kernel always. Swin cannot be exported otherwise.
        torch.no_grad(),
        plain_attention(),
        warnings.catch_warnings(),
    ):
        # torch 2.13 warns about its own copy of a LeafSpec when it decomposes the program.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        program = export_program(ServingGraph(checkpoint, NETWORK_DTYPES[precision]))
        exported: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=list(OUTPUTS), verbose=False
        )
    model = exported.model
    # Torch writes where in its source each operator came from: paths of this machine.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    _name_batch(model)
    _unify_convolutions(model)
    # Weights apart, whatever their size: a protobuf holds 2 GB at most.
    onnx_ir.save(model, folder / GRAPH_FILE, external_data=WEIGHTS_FILE)
    return folder / GRAPH_FILE


def _name_batch(model: Any) -> None:
    """Call the free dimension "batch" in what the graph takes and gives: torch has a number for it."""
    import onnx_ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        dims = [dim if isinstance(dim, int) else "batch" for dim in value.shape]
        assert dims[0] == "batch", f"{value.name} has the shape {value.shape}: its batch is not free"
        assert dims.count("batch") == 1, f"{value.name} has the shape {value.shape}: only its batch may be free"
        value.shape = onnx_ir.Shape(dims)


def _unify_convolutions(model: Any) -> None:
    """Give convolutions weights of their input's type: onnxscript folds batch norms into them as fp32."""
    import onnx_ir

    for node in model.graph.all_nodes():
        if node.op_type == "Conv":
            dtype = node.inputs[0].dtype
            for weight in node.inputs[1:]:
                if weight.dtype != dtype:
                    tensor = weight.const_value.numpy().astype(dtype.numpy())
                    weight.const_value = onnx_ir.Tensor(tensor, name=weight.name)
                    weight.dtype = dtype


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("onnx", "onnxscript"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not needed where a share has the graph
            versions[name] = importlib.metadata.version(name)
    return versions
