"""What showing a network whole photos costs, and what it changes in how likely the right places are to it.

`python -m jobs.benchmark framing` is the command; `jobs.train.NEW_FRAMING` is to be chosen by it.

Shapes: B photos of a batch · N photos · H levels · V views, of S height and width, C colours.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from jobs import evaluate
from jobs.benchmark.figure import Figure
from model.backbones.framing import Framing
from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoderOutput
from model.readout import Reading
from model.world.prior import Prior
from pipeline import storage
from pipeline.decode.photo import DecodedPhoto, DecodeTarget, decode_photo
from pipeline.locate.locator import model_folder
from pipeline.schema import PhotoError
from training.data.dataset import ArraySource
from training.data.labelled import LabelledPhotos, labelled_photos
from training.data.split import photo_groups
from training.evaluate.calibration import Judge, folds_of
from training.evaluate.evaluation import network_outputs
from training.evaluate.temperatures import LabelledLogits, fitted_temperatures
from training.loss import UNKNOWN
from training.metrics import Bootstrap

_BATCH = 32
_FOLDS = 10
_SQUARE = 1.05
"""Frames up to this are as good as square: their framings hardly differ."""


@dataclass(frozen=True)
class FramingBenchmark:
    """Core time a photo, and the change in the log-likelihood of the right cell, of each framing beside the first.

    Likelihoods are those of network and prior together, at temperatures fitted to the photos of other groups
    (photographers and places), for each framing its own.
    """

    manifest: str
    """Table of photos with positions, as jobs.evaluate takes it."""
    models: tuple[str, ...] = ("bundled",)
    """One model: in every framing, whichever it was trained with. Several, of one hierarchy and one split: each in its
    own, beside the first."""
    root: str = ""
    """Where the table's relative paths lie, if not beside it."""
    only: str = ""
    """A column of 0 and 1: take only the rows of 1."""
    part: Literal["test", "validation", "all"] = "test"
    """The part of the split that the models were trained with, or all photos of a table they never saw."""

    def measure(self) -> list[Figure]:
        """Print a line for each framing; return the figures of their cost."""
        checkpoints = [Checkpoint.load(model_folder(model)) for model in self.models]
        if len({checkpoint.hierarchy.content_hash for checkpoint in checkpoints}) > 1:
            raise ValueError("--models have different hierarchies: give --hierarchy to all of their trainings")
        photos = labelled_photos(self.manifest, self.root, self.only)
        rows, group_N = self._rows(checkpoints, photos)
        ways = _ways(checkpoints)
        seen = _Seen(ways, photos)
        for start in range(0, len(rows), _BATCH):
            seen.take(rows[start : start + _BATCH])
        found = np.array(seen.rows, np.int64)
        if not len(found):
            raise ValueError(f"none of the photos in {self.manifest} could be read: give --root")
        groups = group_N[found]
        nll = {name: _nll_NH(way, seen.batches[name], groups) for name, way in ways.items()}
        is_wide_N = np.array(seen.aspect_N) > _SQUARE
        print(
            f"{len(found)} photos ({self.part}), {is_wide_N.sum()} of them not square, in {len(np.unique(groups))} "
            f"groups, {len(rows) - len(found)} more could not be read; {', '.join(x.model_id for x in checkpoints)}"
        )
        print(f"{'':<24}{'decode':>10}{'network':>10}{'÷ first':>9}   change of log-likelihood, nats a photo")
        first, figures = next(iter(ways)), []
        for name in ways:
            decode_ms, network_ms = (1e3 * seconds[name] / len(found) for seconds in (seen.decode_s, seen.network_s))
            whole_ms = decode_ms + network_ms
            whole_first_ms = 1e3 * (seen.decode_s[first] + seen.network_s[first]) / len(found)
            line = f"{name:<24}{decode_ms:>7.1f} ms{network_ms:>7.1f} ms{whole_ms / whole_first_ms:>9.2f}"
            if name == first:
                print(line)
                continue
            for what, chosen_N in (("all", np.ones(len(found), np.bool_)), ("not square", is_wide_N)):
                print(f"{line}   {what:<11}{_change(nll[first], nll[name], groups, chosen_N)}")
                line = " " * len(line)
            figures += [
                Figure("framing", f"{part}, {name} ÷ {first}", 1e3 * seconds[name] / len(found),
                       1e3 * seconds[first] / len(found), seconds[name] / seconds[first], "core ms")
                for part, seconds in (("decode", seen.decode_s), ("network", seen.network_s))
            ]  # fmt: skip
        print("in brackets 95 % intervals, by resampling groups; above 0 right cells got likelier than by the first")
        return figures

    def _rows(self, checkpoints: list[Checkpoint], photos: LabelledPhotos) -> tuple[list[int], NDArray[np.int64]]:
        """Return the rows that no model was trained on, and every photo's group."""
        parts: dict[tuple[int, ...], Any] = {}
        for model, checkpoint in zip(self.models, checkpoints, strict=True):
            settings = evaluate.Settings(self.manifest, model, root=self.root, only=self.only, part=self.part)
            rows, _, config = evaluate.parts(settings, checkpoint, photos)
            parts[tuple(rows.tolist())] = config
        if len(parts) > 1:
            raise ValueError(f"--models held different photos out for {self.part}: train them with one --split")
        ((chosen, config),) = parts.items()
        return list(chosen), photo_groups(photos.lat_deg_N, photos.lon_deg_N, photos.photographer_N, config)


def _ways(checkpoints: list[Checkpoint]) -> dict[str, Checkpoint]:
    if len(checkpoints) == 1:
        return {framing: _framed(checkpoints[0], framing) for framing in get_args(Framing)}
    ways: dict[str, Checkpoint] = {}
    for number, checkpoint in enumerate(checkpoints, start=1):
        ways[f"{number}: {checkpoint.config.preprocessing.framing}"] = checkpoint
    return ways


def _framed(checkpoint: Checkpoint, framing: Framing) -> Checkpoint:
    preprocessing = dataclasses.replace(checkpoint.config.preprocessing, framing=framing)
    config = dataclasses.replace(checkpoint.config, preprocessing=preprocessing)
    return dataclasses.replace(checkpoint, config=config)


class _Seen:
    """Photos decoded and looked at in each way, in turns, so that all meet the same machine: `take` rows, then read."""

    def __init__(self, ways: dict[str, Checkpoint], photos: LabelledPhotos) -> None:
        self._photos = photos
        self._targets = {name: DecodeTarget.of(way.config.preprocessing) for name, way in ways.items()}
        self._models = {name: way.build_model() for name, way in ways.items()}
        hierarchy = next(iter(ways.values())).hierarchy
        self._label_NH = hierarchy.label_NH(photos.lat_deg_N, photos.lon_deg_N)
        self.decode_s, self.network_s = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
        self.batches: dict[str, list[LabelledLogits]] = {name: [] for name in ways}
        for name, target in self._targets.items():  # what the first call alone takes is nobody's cost
            self._looked(name, np.zeros((_BATCH, *target.shape_HWC), np.uint8))
        self.rows: list[int] = []
        self.aspect_N: list[float] = []

    def take(self, rows: list[int]) -> None:
        """Decode the photos of some rows in each way, and ask the network; those that can't be read are left out."""
        pixels: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self._targets}
        read: list[int] = []
        for row in rows:
            try:
                data = storage.read_bytes(self._photos.uri_N[row])
                decoded = {name: self._decoded(name, data) for name in self._targets}
            except (PhotoError, OSError):
                continue
            read.append(row)
            for name, photo in decoded.items():
                pixels[name].append(photo.pixels_HWC)
            sides = next((photo.width_px, photo.height_px) for photo in decoded.values())
            self.aspect_N.append(max(sides) / min(sides))
        if not read:
            return
        self.rows += read
        label_BH = torch.from_numpy(self._label_NH[read])
        for name in self._models:
            start_s = time.process_time()
            output = self._looked(name, np.stack(pixels[name]))
            self.network_s[name] += time.process_time() - start_s
            self.batches[name].append(LabelledLogits(output.logits, label_BH))

    def _looked(self, name: str, pixels_BHWC: NDArray[np.uint8]) -> GeoDecoderOutput:
        ((_, _, output),) = network_outputs(self._models[name], ArraySource(pixels_BHWC), range(len(pixels_BHWC)))
        return output

    def _decoded(self, name: str, data: bytes) -> DecodedPhoto:
        start_s = time.process_time()
        photo = decode_photo(data, self._targets[name])
        self.decode_s[name] += time.process_time() - start_s
        return photo


def _nll_NH(checkpoint: Checkpoint, batches: list[LabelledLogits], group_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return minus the log-likelihood of each photo's cells, by temperatures that its own group had no part in."""
    hierarchy, combination = checkpoint.hierarchy, checkpoint.reading.combination
    prior = (checkpoint.prior or Prior.world()).levels(hierarchy)
    label_NH = torch.cat([batch.label_BH for batch in batches])
    logits = tuple(torch.cat(level) for level in zip(*(batch.logits for batch in batches), strict=True))
    _, number_N = np.unique(group_N, return_inverse=True)
    fold_N = folds_of(number_N, min(_FOLDS, int(number_N.max()) + 1))
    nll_NH = np.full(label_NH.shape, np.nan)
    nowhere_N = np.zeros(len(label_NH))  # the radius, which positions are for, is not asked about
    for fold in np.unique(fold_N):
        others_N1 = torch.from_numpy(fold_N != fold)[:, None]
        known = LabelledLogits(logits, label_NH.where(others_N1, UNKNOWN))
        temperatures = fitted_temperatures([known], hierarchy, prior, combination)
        judge = Judge(hierarchy, Reading(temperatures, prior, combination=combination))
        rows = np.flatnonzero(fold_N == fold)
        chosen = tuple(level[rows] for level in logits)
        nll_NH[rows] = judge(chosen, label_NH[rows].numpy(), nowhere_N[rows], nowhere_N[rows]).nll_NH
    return nll_NH


def _change(
    first_NH: NDArray[np.float64],
    nll_NH: NDArray[np.float64],
    group_N: NDArray[np.int64],
    chosen_N: NDArray[np.bool_],
) -> str:
    """Return the mean change from coarsest to finest level, in words, of some photos."""
    if not chosen_N.any():
        return "none"
    bootstrap = Bootstrap({"groups": group_N[chosen_N]})
    parts = []
    for level in (0, -1):
        gain = bootstrap.mean((first_NH - nll_NH)[chosen_N, level])
        name = "coarsest" if level == 0 else "finest"
        parts.append(f"{name} {gain.value:+.3f} [{gain.low:+.3f} to {gain.high:+.3f}]")
    return ", ".join(parts)
