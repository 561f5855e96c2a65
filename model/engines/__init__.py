"""Engines run a checkpoint on pixels: the same serving graph by different means, behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.readout import Answers

if TYPE_CHECKING:
    from model.engines.cache import Share
    from model.engines.tensorrt_engine import TensorRtSettings

EngineName = Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
NumpyAnswers = Answers[npt.NDArray[Any]]


class Engine(Protocol):
    """A compiled model. Not safe to call from several threads at once; one call uses all the threads it was given.

    Attributes:
        name: "torch", "openvino", "onnxruntime" or "tensorrt".
        precision: what the network computes in, "fp32", "bf16", "fp16" or "int8"; probabilities are fp32 whichever it
            is.
        shape_HWC: of the pixels it takes of each photo: its views, one below the other.
    """

    name: str
    precision: str
    shape_HWC: tuple[int, int, int]

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        """Answers for upright RGB pixels, uint8, of `shape_HWC`; any batch size, also 0."""


def load_engine(
    name: EngineName,
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    precision: Precision = "auto",
    share: Share | None = None,
    tensorrt: TensorRtSettings | None = None,
) -> Engine:
    """Load `checkpoint` into an engine.

    Args:
        name: "auto" is torch where there is a CUDA device, else openvino.
        threads: CPU threads; all if not given.
        cache_dir: a local folder that keeps what was compiled, for the next start; torch compiles nothing.
        precision: "auto" is bf16 where the processor computes in it, else fp32 (fp16 on older GPUs with tensorrt, the
            only engine that has it). "int8", which openvino alone has, is less exact, and somebody must have made it:
            `openvino_engine.quantise`.
        share: where machines keep compiled engines in common; all but torch use it.
        tensorrt: what tensorrt compiles for.

    Raises:
        ValueError: an engine or a precision that is not to be had here.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"an engine needs at least one thread, not {threads}")
    if name == "auto":
        name = "torch" if torch.cuda.is_available() else "openvino"
    if precision == "fp16" and name != "tensorrt":
        raise ValueError(f"the {name} engine does not compute in fp16: use precision auto")
    if precision == "int8" and name != "openvino":
        raise ValueError(f"the {name} engine does not compute in int8: use precision auto, or openvino")
    if name == "torch":
        from model.engines.torch_engine import TorchEngine

        return TorchEngine(checkpoint, threads=threads, precision=precision)
    if name == "openvino":
        from model.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(checkpoint, threads=threads, cache_dir=cache_dir, precision=precision, share=share)
    if name == "onnxruntime":
        from model.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(checkpoint, threads=threads, cache_dir=cache_dir, precision=precision, share=share)
    if name == "tensorrt":
        from model.engines.tensorrt_engine import TensorRtEngine

        return TensorRtEngine(checkpoint, cache_dir=cache_dir, precision=precision, settings=tensorrt, share=share)
    raise ValueError(f"no engine is called {name!r}: choose auto, torch, openvino, onnxruntime or tensorrt")
