"""Engines run a checkpoint on pixels: the same serving graph by different means, behind one protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.readout import Answers

EngineName = Literal["auto", "torch", "openvino", "tensorrt"]
Precision = Literal["auto", "fp32", "bf16"]
NumpyAnswers = Answers[npt.NDArray[Any]]


class Engine(Protocol):
    """A compiled model. Not safe to call from several threads at once; one call uses all the threads it was given.

    Attributes:
        name: "torch" or "openvino".
        precision: what the network computes in, "fp32" or "bf16"; probabilities are fp32 either way.
        image_size_px: height and width of the pixels it takes.
    """

    name: str
    precision: str
    image_size_px: int

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        """Answers for upright RGB pixels, uint8, `image_size_px` squared; any batch size, also 0."""


def load_engine(
    name: EngineName,
    checkpoint: Checkpoint,
    *,
    threads: int | None = None,
    cache_dir: Path | None = None,
    precision: Precision = "auto",
    group_K: npt.NDArray[np.int64] | None = None,
) -> Engine:
    """Load `checkpoint` into an engine.

    Args:
        name: "auto" is torch where there is a CUDA device, else openvino.
        threads: CPU threads; all if not given.
        cache_dir: a local folder that keeps what was compiled, for the next start; only openvino uses it.
        precision: "auto" is bf16 where the processor computes in it, else fp32.
        group_K: the group of each of the finest level's cells, for `Answers.group_probability_BG`.

    Raises:
        ValueError: an engine or a precision that is not to be had here.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"an engine needs at least one thread, not {threads}")
    if name == "auto":
        name = "torch" if torch.cuda.is_available() else "openvino"
    if name == "torch":
        from model.engines.torch_engine import TorchEngine

        return TorchEngine(checkpoint, threads=threads, precision=precision, group_K=group_K)
    if name == "openvino":
        from model.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(checkpoint, threads=threads, cache_dir=cache_dir, precision=precision, group_K=group_K)
    if name == "tensorrt":
        raise ValueError("the tensorrt engine is not built yet: use torch on a GPU, or openvino on a CPU")
    raise ValueError(f"no engine is called {name!r}: choose auto, torch or openvino")
