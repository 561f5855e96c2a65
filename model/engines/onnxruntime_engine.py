"""ONNX Runtime on the CPU: a yardstick for the others, and what most other programs would run the model with.

Shapes: B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision, cache, onnx_graph
from model.engines.export import no_answers, require_pixels
from model.readout import Answers


class OnnxRuntimeEngine:
    """The exported serving graph in ONNX Runtime, fp32; see `Engine`. With `cache_dir` it is exported once.

    Raises:
        ValueError: ONNX Runtime is not installed, or another precision than fp32, which it is slower in on CPUs.
    """

    name: str = "onnxruntime"
    precision: str = "fp32"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        cache_dir: Path | None = None,
        precision: Precision = "auto",
        share: cache.Share | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError("the onnxruntime engine is not installed: pip install 'graticule[onnxruntime]'") from error
        if precision not in ("auto", "fp32"):
            raise ValueError(f"the onnxruntime engine computes in fp32 on the CPU, not in {precision}")
        self.shape_HWC = checkpoint.config.preprocessing.shape_HWC
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Between batches its threads would spin on the cores that decode the next photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with contextlib.ExitStack() as temporary:
            folder = cache_dir or Path(temporary.enter_context(tempfile.TemporaryDirectory()))
            graph = onnx_graph.cached(checkpoint, "fp32", folder, share) / onnx_graph.GRAPH_FILE
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.shape_HWC)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        pixels = np.ascontiguousarray(pixels_BHWC)
        return Answers(*self._session.run(list(onnx_graph.OUTPUTS), {onnx_graph.INPUT: pixels}))
