"""What shrinking photos before they are resized costs in answers, beside what moving the crop by a pixel costs.

`python -m jobs.benchmark shrink` is the command; `decode.SHRINK_MARGIN` is to be chosen by it.

Shapes: B photos of a batch · N photos · H, W, C height, width and colours.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.benchmark.figure import Figure
from jobs.demo_photos import write_demo_archive
from model.checkpoint import Checkpoint
from model.readout import ReadOut
from model.world.geodesy import haversine_km
from pipeline import storage
from pipeline.decode.photo import SHRINK_MARGIN, DecodeTarget, decode_photo
from pipeline.locate.locator import model_folder
from pipeline.schema import PhotoError

_BATCH = 32
_FULL, _MOVED = "full decode", "full, crop moved 1 px"


@dataclass(frozen=True)
class ShrinkBenchmark:
    """Share of photos whose finest cell changes when they are shrunk on load, beside the same for a crop moved by one
    pixel of the model's picture: the first must be below the second, or shrinking would be seen in the answers."""

    photos: str | None = None
    """Folder of photos; only those large enough to be shrunk count. The demo's if not given."""
    model: str = "bundled"
    """Checkpoint folder."""
    margins: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)
    """Load at the smallest scale that has so many times the model's pixels."""

    def measure(self) -> list[Figure]:
        """Print a line for each margin; return the figures."""
        if not self.margins or min(self.margins) < 1:
            raise ValueError(f"--margins {' '.join(map(str, self.margins))}: give numbers of 1 or more")
        checkpoint = Checkpoint.load(model_folder(self.model))
        ways = _Ways(checkpoint, self.margins)
        with tempfile.TemporaryDirectory(prefix="graticule-bench-") as made:
            if self.photos is None:
                write_demo_archive(Path(made))
            for entry in storage.list_files(storage.absolute(self.photos or made)):
                ways.take(storage.read_bytes(entry.uri))
        found = ways.answers()
        full_log_NK = found[_FULL]
        if not len(full_log_NK):
            raise ValueError("no photo there is large enough to be shrunk: give --photos a folder with larger ones")
        best_N, rows_N = full_log_NK.argmax(axis=1), np.arange(len(full_log_NK))
        finest = checkpoint.hierarchy.levels[-1]
        print(f"{len(rows_N)} photos that are shrunk first, by {checkpoint.model_id}; changes from a full decode:")
        print(f"{'':<24}{'cell changes':>13}{'mean |Δ log p|':>16}{'mean km':>9}{'photos/s':>10}{'÷ full':>8}")
        changes: dict[str, float] = {}
        for name, log_NK in found.items():
            cell_N = log_NK.argmax(axis=1)
            away_km_N = haversine_km(
                finest.lat_deg_K[best_N], finest.lon_deg_K[best_N], finest.lat_deg_K[cell_N], finest.lon_deg_K[cell_N]
            )
            change = np.abs(log_NK - full_log_NK)[rows_N, best_N].mean()
            changes[name] = float(change)
            line = f"{name:<24}{(cell_N != best_N).mean():>13.2%}{change:>16.4f}{away_km_N.mean():>9.1f}"
            if name != _MOVED:
                speed = ways.cpu_s[_FULL] / ways.cpu_s[name]
                line += f"{len(rows_N) / ways.cpu_s[name]:>10.1f}{speed:>8.2f}"
            print(line)
        return [
            Figure(
                "shrinking on load", f"mean |Δ log p|, {name} ÷ crop moved 1 px", changes[name], changes[_MOVED],
                changes[name] / changes[_MOVED], "log p", most=1,
            )
            for name in found
            if name not in (_FULL, _MOVED)
        ]  # fmt: skip


class _Ways:
    """Photos decoded in each way, and what the model makes of them: `take` photos, then ask for `answers`."""

    def __init__(self, checkpoint: Checkpoint, margins: tuple[float, ...]) -> None:
        size = checkpoint.config.preprocessing
        self._mean_C, self._std_C = torch.tensor(size.mean_rgb), torch.tensor(size.std_rgb)
        self._network = checkpoint.build_model().eval()
        # The network's own answers: mixed with a prior, they would change less.
        own = dataclasses.replace(checkpoint.reading, prior=None, prior_share=())
        self._read_out = ReadOut(checkpoint.hierarchy, own).eval()
        self._px = size.image_size_px
        resize_px = max(size.resize_px, self._px + 2)  # room to move the crop
        self._targets = {
            f"margin {margin:g}{' (ours)' if margin == SHRINK_MARGIN else ''}": DecodeTarget(
                self._px, resize_px, margin
            )
            for margin in margins
        } | {_FULL: DecodeTarget(self._px, resize_px, math.inf)}
        self._wider = DecodeTarget(self._px + 2, resize_px, math.inf)
        self.cpu_s = dict.fromkeys(self._targets, 0.0)
        self._waiting: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in (*self._targets, _MOVED)}
        self._log_K: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self._waiting}

    def take(self, data: bytes) -> None:
        """Decode a photo in each way; it counts if it can be decoded and any way shrinks it."""
        taken_s: dict[str, float] = {}
        pixels_HWC: dict[str, NDArray[np.uint8]] = {}
        try:
            for name, target in self._targets.items():
                start_s = time.process_time()
                pixels_HWC[name] = decode_photo(data, target).pixels_HWC
                taken_s[name] = time.process_time() - start_s
            pixels_HWC[_MOVED] = decode_photo(data, self._wider).pixels_HWC[1:-1, 2:]
        except PhotoError:
            return
        if all(np.array_equal(pixels, pixels_HWC[_FULL]) for name, pixels in pixels_HWC.items() if name != _MOVED):
            return
        for name, pixels in pixels_HWC.items():
            self._waiting[name].append(pixels)
        for name, cpu_s in taken_s.items():
            self.cpu_s[name] += cpu_s
        if len(self._waiting[_FULL]) == _BATCH:
            self._look()

    def answers(self) -> dict[str, NDArray[np.float32]]:
        """Return the finest level's log-probabilities, log_NK, of each way."""
        self._look()
        return {
            name: np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
            for name, parts in self._log_K.items()
        }

    def _look(self) -> None:
        for name, pictures in self._waiting.items():
            if pictures:
                pixels_BHWC = torch.from_numpy(np.stack(pictures))
                normalised_BHWC = (pixels_BHWC / 255 - self._mean_C) / self._std_C
                with torch.inference_mode():
                    output = self._network(normalised_BHWC.permute(0, 3, 1, 2))
                    self._log_K[name].append(self._read_out.log_probabilities(output.logits)[-1].numpy())
                pictures.clear()
