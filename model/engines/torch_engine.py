"""Torch, eager: the GPU's engine until TensorRT, and the yardstick of every other.

Shapes: B batch · H, W height and width · C 3 colours · K the finest level's cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision
from model.engines.export import ServingGraph, no_answers, require_pixels
from model.readout import Answers


class TorchEngine:
    """The serving graph on the first CUDA device, else on the CPU; see `Engine`.

    `threads` sets torch's thread count for the whole process, which is all that torch offers.
    """

    name: str = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        precision: Precision = "auto",
        group_K: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision: str = precision if precision != "auto" else ("bf16" if _has_bf16(self.device) else "fp32")
        self.image_size_px = checkpoint.config.preprocessing.image_size_px
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._graph = ServingGraph(checkpoint, dtype, group_K).to(self.device)

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.image_size_px)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        with torch.inference_mode():
            # torch.tensor copies: torch.from_numpy warns about the read-only arrays that Arrow hands out.
            answers = self._graph(torch.tensor(pixels_BHWC).to(self.device))
            return Answers(*(field.cpu().numpy() for field in answers))


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: emulated bf16 is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
