"""Torch: compiled and graph-captured on a GPU; eager on the CPU, where it is the yardstick of every other engine.

Shapes: B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.engines import NumpyAnswers, Precision
from model.engines.export import ServingGraph, no_answers, require_pixels
from model.readout import Answers

GPU_BATCH_SIZE = 256
"""Photos that a GPU computes at a time: enough to fill it, and 38 MB of pixels at 224 px."""
_SLOTS = 2
"""Batches on their way at once: one is computed while the next is copied."""


class TorchEngine:
    """The serving graph on the first CUDA device, else on the CPU; see `Engine`.

    On a GPU the graph is compiled and captured for batches of `GPU_BATCH_SIZE`; the last batch of a call is filled up
    with black pictures, whose answers are dropped. `threads` sets torch's thread count for the whole process, which is
    all that torch offers.
    """

    name: str = "torch"

    def __init__(self, checkpoint: Checkpoint, *, threads: int | None = None, precision: Precision = "auto") -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision: str = precision if precision != "auto" else ("bf16" if _has_bf16(self.device) else "fp32")
        self.shape_HWC = checkpoint.config.preprocessing.shape_HWC
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        graph = ServingGraph(checkpoint, dtype).to(self.device)
        self._graph = graph
        self._lanes = _Lanes(graph, GPU_BATCH_SIZE) if self.device.type == "cuda" else None

    def __call__(self, pixels_BHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        require_pixels(pixels_BHWC, self.shape_HWC)
        if len(pixels_BHWC) == 0:
            return no_answers(self)
        with torch.inference_mode():
            if self._lanes is not None:
                return self._lanes(pixels_BHWC)
            # torch.tensor copies: torch.from_numpy warns about the read-only arrays that Arrow hands out.
            return Answers(*(field.numpy() for field in self._graph(torch.tensor(pixels_BHWC))))


class _Lanes:
    """Runs a graph on a GPU over any number of photos, in batches of one size: bytes travel while the GPU computes.

    A batch goes from its slot's page-locked memory to the slot's memory on the GPU in one stream, and from there
    through the captured graph in another; its answers, some hundred bytes a photo, stay on the GPU until the call's
    end. Only uint8 pixels cross the bus.
    """

    def __init__(self, graph: ServingGraph, batch_size: int) -> None:
        shape = (batch_size, *graph.shape_HWC)
        self._batch_size = batch_size
        self._host = [torch.zeros(shape, dtype=torch.uint8).pin_memory() for _ in range(_SLOTS)]
        self._arrived = [torch.zeros(shape, dtype=torch.uint8, device="cuda") for _ in range(_SLOTS)]
        self._copy_stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._compute_stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._copied: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(_SLOTS)]  # type: ignore[no-untyped-call]
        self._free: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(_SLOTS)]  # type: ignore[no-untyped-call]
        self._input_BHWC = torch.zeros(shape, dtype=torch.uint8, device="cuda")
        self._capture(graph)

    def __call__(self, pixels_NHWC: npt.NDArray[np.uint8]) -> NumpyAnswers:
        parts: list[tuple[Tensor, ...]] = []
        for number, start in enumerate(range(0, len(pixels_NHWC), self._batch_size)):
            slot = number % _SLOTS
            batch_BHWC = pixels_NHWC[start : start + self._batch_size]
            # The slot's page-locked memory may be written again once its last copy is over; no wait for the first use.
            self._copied[slot].synchronize()
            self._host[slot].numpy()[: len(batch_BHWC)] = batch_BHWC
            self._host[slot].numpy()[len(batch_BHWC) :] = 0
            with torch.cuda.stream(self._copy_stream):
                self._copy_stream.wait_event(self._free[slot])
                self._arrived[slot].copy_(self._host[slot], non_blocking=True)
                self._copied[slot].record()
            with torch.cuda.stream(self._compute_stream):
                self._compute_stream.wait_event(self._copied[slot])
                self._input_BHWC.copy_(self._arrived[slot])
                self._free[slot].record()
                self._replay.replay()
                # The next replay writes over the graph's outputs.
                parts.append(tuple(field[: len(batch_BHWC)].clone() for field in self._output))
        self._compute_stream.synchronize()
        return Answers(*(torch.cat(fields).cpu().numpy() for fields in zip(*parts, strict=True)))

    def _capture(self, graph: ServingGraph) -> None:
        """Compile the graph for the one shape, and record its kernels so that a batch is one launch."""
        compiled = torch.compile(graph, dynamic=False)
        with torch.inference_mode(), _on(self._compute_stream):
            for _ in range(3):  # compiles, and lets libraries choose their kernels and workspaces
                compiled(self._input_BHWC)
        self._replay = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._replay, stream=self._compute_stream):
            self._output: tuple[Tensor, ...] = compiled(self._input_BHWC)


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on `stream` that starts after, and is waited for by, what the current stream does."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 there: emulated bf16 is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
