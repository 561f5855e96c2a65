"""OpenVINO on the CPU: the default engine of machines without a GPU.

Shapes: B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision
from model.engines.export import ServingGraph, export_program, graph_fingerprint, no_answers, require_pixels
from model.readout import Answers

# `import openvino` reports itself to Google Analytics if this package is there; without it OpenVINO uses its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

_log = logging.getLogger(__name__)

_GRAPH_FILE = "graph.xml"


class OpenVinoEngine:
    """The serving graph, compiled for one batch at a time on all given threads; see `Engine`.

    With `cache_dir`, the converted graph stays in a folder named by OpenVINO's version, the model's id and a hash of
    groups and code that made it, and the next start skips export and conversion.

    Raises:
        ValueError: bf16 on a processor that does not compute in it.
    """

    name: str = "openvino"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        precision: Precision = "auto",
    ) -> None:
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise ValueError("this processor does not compute in bf16: use precision auto or fp32")
        self.precision: str = precision if precision != "auto" else ("bf16" if has_bf16 else "fp32")
        self.image_size_px = checkpoint.config.preprocessing.image_size_px
        settings: dict[str, Any] = {
            # LATENCY puts all threads on one batch; THROUGHPUT would need several batches at once to fill the machine.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if cache_dir is None:
            graph = _converted_graph(checkpoint)
        else:
            graph = _cached_graph(core, checkpoint, cache_dir)
        self._request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.image_size_px)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        results = self._request.infer([np.ascontiguousarray(pixels_BHWC)])
        return Answers(*(results[output] for output in range(len(Answers._fields))))


def _converted_graph(checkpoint: Checkpoint) -> Any:
    program = export_program(ServingGraph(checkpoint))
    with warnings.catch_warnings():
        # torch 2.13 warns about its own copy of a LeafSpec when OpenVINO decomposes the program.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        return openvino.convert_model(program)


def _cached_graph(core: Any, checkpoint: Checkpoint, cache_dir: Path) -> Any:
    """The converted graph, from `cache_dir` if it is there, else put there by one rename."""
    entry = cache_dir / f"openvino-{openvino.__version__.split('-')[0]}-{graph_fingerprint(checkpoint)}"
    if (entry / _GRAPH_FILE).is_file():
        try:
            return core.read_model(entry / _GRAPH_FILE)
        except RuntimeError:
            _log.warning("the cached graph %s cannot be read: converting the model again", entry)
            shutil.rmtree(entry)
    graph = _converted_graph(checkpoint)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as partial:
        # compress_to_fp16 is save_model's default and would round the weights.
        openvino.save_model(graph, Path(partial) / _GRAPH_FILE, compress_to_fp16=False)
        try:
            os.rename(partial, entry)
        except OSError:
            _log.info("another process has just cached %s", entry)
        else:
            Path(partial).mkdir()  # what TemporaryDirectory expects to remove
    return graph
