"""What an answer costs beside the network that it is read out of: prior, mixture, radius, countries, information.

`python -m jobs.benchmark readout` is the command.

Shapes: B batch · H, W height and width · C 3 colours.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jobs.benchmark.engine import random_checkpoint
from jobs.benchmark.figure import Figure
from model.checkpoint import Checkpoint
from model.engines.export import ServingGraph
from model.engines.openvino_engine import core, openvino_graph
from pipeline.locate.locator import model_folder

_MOST = 1.02


class _NetworkAlone(ServingGraph):
    """pixels_BHWC → the network's own logits, of which nothing is read out."""

    def forward(self, pixels_BHWC: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every level and of the scenes."""
        normalised_BHWC = (pixels_BHWC.float() / 255.0 - self.mean_C) / self.std_C
        output = self.network(normalised_BHWC.permute(0, 3, 1, 2).to(self.network_dtype)).averaged(self.views)
        return (*output.logits, output.scene_logits_BS)


@dataclass(frozen=True)
class ReadOutBenchmark:
    """How much longer OpenVINO takes for answers than for the network's logits alone, in turn on the same pixels."""

    networks: tuple[Literal["paper_swin_b", "small", "trained"], ...] = ("paper_swin_b", "small", "trained")
    """`trained` is --model's; the others have random weights and as many cells as the paper's training set gives."""
    model: str = "bundled"
    """The trained one."""
    batch_size: int = 8
    repeats: int = 15
    """Both are timed this often in turn, and the median of the ratios counts: the machine may be busy."""
    training_photos: int = 4_720_000
    """Synthetic photos that the cells of random networks are made from."""

    def measure(self) -> list[Figure]:
        """Print the ratio for each network; return the figures."""
        if min(self.batch_size, self.repeats) < 1 or not self.networks:
            raise ValueError("give networks, and a batch size and repeats of 1 or more")
        figures = []
        print(f"{'network':<16}{'cells':>8}{'alone, ms':>11}{'whole, ms':>11}{'ratio':>8}")
        for name in self.networks:
            with tempfile.TemporaryDirectory(prefix="graticule-bench-") as folder:
                if name == "trained":
                    checkpoint = Checkpoint.load(model_folder(self.model))
                else:
                    checkpoint = random_checkpoint(name, Path(folder), self.training_photos)
                alone_s, whole_s = self._times(checkpoint)
            ratio = float(np.median(whole_s / alone_s))
            alone_ms, whole_ms = (1e3 * float(np.median(times)) / self.batch_size for times in (alone_s, whole_s))
            cells = checkpoint.hierarchy.class_counts[-1]
            print(f"{name:<16}{cells:>8,}{alone_ms:>11.2f}{whole_ms:>11.2f}{ratio:>8.3f}", flush=True)
            figures.append(
                Figure(f"read-out, {name}", "answers ÷ logits", whole_ms, alone_ms, ratio, "ms a photo", most=_MOST)
            )
        return figures

    def _times(self, checkpoint: Checkpoint) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the seconds of each repeat: of the network alone, and of the whole graph."""
        shape_HWC = checkpoint.config.preprocessing.shape_HWC
        pixels_BHWC = np.random.default_rng(0).integers(0, 256, (self.batch_size, *shape_HWC), dtype=np.uint8)
        requests = [_compiled(kind(checkpoint)) for kind in (_NetworkAlone, ServingGraph)]
        seconds = np.zeros((self.repeats, 2))
        for repeat in range(-1, self.repeats):  # the first is to warm up
            for which, request in enumerate(requests):
                start_s = time.perf_counter()
                request.infer([pixels_BHWC])
                if repeat >= 0:
                    seconds[repeat, which] = time.perf_counter() - start_s
        return seconds[:, 0], seconds[:, 1]


def _compiled(graph: ServingGraph) -> Any:
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    return core().compile_model(openvino_graph(graph), "CPU", settings).create_infer_request()
