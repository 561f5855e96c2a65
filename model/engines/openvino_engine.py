"""OpenVINO on the CPU: the default engine of machines without a GPU.

Shapes: N photos · B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision, cache
from model.engines.export import (
    ServingGraph,
    export_program,
    graph_fingerprint,
    manifest,
    no_answers,
    plain_attention,
    require_pixels,
)
from model.gallery import GalleryConfig
from model.readout import Answers

# `import openvino` reports itself to Google Analytics if this package is there; without it OpenVINO uses its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

GRAPH_FILE = "graph.xml"
LEAST_CALIBRATION_PHOTOS = 100


class OpenVinoEngine:
    """The serving graph, compiled for one batch at a time on all given threads; see `Engine`.

    With `cache_dir`, the converted graph stays in a folder named by OpenVINO's version, the model's id and a hash of
    groups and code that made it, and the next start skips export and conversion; `share` has it from, and for, other
    machines.

    Raises:
        ValueError: bf16 on a processor that does not compute in it; int8 that nobody has made yet.
    """

    name: str = "openvino"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        precision: Precision = "auto",
        share: cache.Share | None = None,
    ) -> None:
        has_bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise ValueError("this processor does not compute in bf16: use precision auto or fp32")
        self.precision: str = precision if precision != "auto" else ("bf16" if has_bf16 else "fp32")
        self.shape_HWC = checkpoint.config.preprocessing.shape_HWC
        settings: dict[str, Any] = {
            # LATENCY puts all threads on one batch; THROUGHPUT would need several batches at once to fill the machine.
            "PERFORMANCE_HINT": "LATENCY",
            # What int8 leaves is computed in the next best that there is.
            "INFERENCE_PRECISION_HINT": "bf16" if has_bf16 and self.precision != "fp32" else "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        with contextlib.ExitStack() as temporary:
            folder = cache_dir or Path(temporary.enter_context(tempfile.TemporaryDirectory()))
            if self.precision == "int8":
                graph = _quantised_before(checkpoint, folder, share)
            else:
                graph = converted(checkpoint, folder, share)
            compiled = core().compile_model(core().read_model(graph), "CPU", settings)
        self._request = compiled.create_infer_request()

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.shape_HWC)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        results = self._request.infer([np.ascontiguousarray(pixels_BHWC)])
        return Answers(*(results[output] for output in range(len(Answers._fields))))


@functools.cache
def core() -> openvino.Core:
    """Return this process's one OpenVINO, which stays until the process ends.

    Its CPU plugin gives the thread that loads it a stack for signals, and on its end puts back the one before. Of two
    whose lives overlap, the first one's is put back when it is gone already: the next Ctrl-C is a segmentation fault.
    """
    return openvino.Core()


def converted(checkpoint: Checkpoint, cache_dir: Path, share: cache.Share | None = None) -> Path:
    """Return the file with OpenVINO's graph of `checkpoint` in fp32, converted if it is not in the cache."""

    def make(folder: Path) -> None:
        _save(openvino_graph(ServingGraph(checkpoint)), folder)

    return cache.entry(cache_dir, _name(checkpoint, "fp32"), _manifest(checkpoint, "fp32"), make, share) / GRAPH_FILE


def openvino_graph(graph: ServingGraph) -> openvino.Model:
    """Return `graph` as OpenVINO has it, in fp32."""
    program = export_program(graph)
    with warnings.catch_warnings(), plain_attention():
        # torch 2.13 warns about its own copy of a LeafSpec when OpenVINO decomposes the program.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return openvino.convert_model(program)


def quantise(
    checkpoint: Checkpoint,
    pixels_NHWC: npt.NDArray[np.uint8],
    cache_dir: Path,
    share: cache.Share | None = None,
) -> Path:
    """Return the file with the graph whose matrix products and convolutions are int8, made if it is not in the cache.

    Ranges of activations are taken from photos such as will be asked about, by post-training quantisation with
    smoothing and bias correction (NNCF). Weights take 7 of their 8 bits: on processors without VNNI the sums of 16 bits
    that they go into would overflow. What a gallery compares photos by stays as it is: `_gallerys_own`.

    Raises:
        ValueError: NNCF is not installed, or too few photos.
    """
    try:
        import nncf
    except ImportError as error:
        raise ValueError("making int8 needs nncf: pip install 'graticule[int8]'") from error
    if len(pixels_NHWC) < LEAST_CALIBRATION_PHOTOS:
        raise ValueError(f"int8 needs {LEAST_CALIBRATION_PHOTOS} photos to take ranges from, not {len(pixels_NHWC)}")

    def make(folder: Path) -> None:
        graph = core().read_model(converted(checkpoint, cache_dir, share))
        exact = _gallerys_own(graph, checkpoint)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results, not for NNCF's progress
            quantised = nncf.quantize(
                graph,
                nncf.Dataset([pixels_HWC[None] for pixels_HWC in pixels_NHWC]),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=exact) if exact else None,
                subset_size=len(pixels_NHWC),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
            )
        _save(quantised, folder)

    details = _manifest(checkpoint, "int8") | {"calibration_photos": len(pixels_NHWC)}
    return cache.entry(cache_dir, _name(checkpoint, "int8"), details, make, share) / GRAPH_FILE


def _gallerys_own(graph: Any, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the products behind a gallery's tower: its head's, and that with all places.

    The cosines of neighbouring places differ in the third digit, and 7 bits have two.
    """
    if not isinstance(checkpoint.config, GalleryConfig):
        return []
    products = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return products[-len(checkpoint.config.head_widths) - 1 :]


def _quantised_before(checkpoint: Checkpoint, cache_dir: Path, share: cache.Share | None) -> Path:
    def refuse(_: Path) -> None:
        raise ValueError(
            f"nobody has made {checkpoint.model_id} in int8 yet: python -m jobs.compile_engine --engine openvino"
            " --precision int8 --photos SOURCE --output ENGINES, then give --engines ENGINES"
        )

    return cache.entry(cache_dir, _name(checkpoint, "int8"), {}, refuse, share) / GRAPH_FILE


def _name(checkpoint: Checkpoint, precision: str) -> str:
    return f"openvino-{openvino.__version__.split('-')[0]}-{graph_fingerprint(checkpoint)}-{precision}"


def _manifest(checkpoint: Checkpoint, precision: str) -> dict[str, object]:
    fingerprint = graph_fingerprint(checkpoint)
    return manifest(checkpoint, "openvino", fingerprint, precision, openvino=openvino.__version__)


def _save(graph: Any, folder: Path) -> None:
    # compress_to_fp16 is save_model's default and would round the weights.
    openvino.save_model(graph, folder / GRAPH_FILE, compress_to_fp16=False)
