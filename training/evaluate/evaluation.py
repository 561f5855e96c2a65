"""How well a model places photos it has not seen, beside what costs nothing to say: by the serving engine and decode.

Shapes: N photos, B batch, H levels, K cells of one level, M photos that were trained on, D width of features.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.backbones.backbone import Preprocessing
from model.backbones.framing import FIVE_CROPS
from model.checkpoint import Checkpoint
from model.engines import Engine, NumpyAnswers
from model.geodecoder import GeoDecoder, GeoDecoderOutput
from model.networks import Network
from model.readout import Answers, Reading, ReadOut
from model.world import geodesy
from model.world.hierarchy import Hierarchy
from model.world.prior import Prior
from pipeline.decode.photo import DecodeTarget
from training.data.augment import resize
from training.data.dataset import Inputs, InputSource, PhotoSource
from training.data.teacher import Teacher
from training.evaluate import calibration
from training.evaluate.calibration import FEWEST_PHOTOS, Fit, Judge, Judged
from training.evaluate.temperatures import LabelledLogits

log = logging.getLogger(__name__)

BATCH_SIZE = 32
TEN_CROPS = 10
MOST_TO_CALIBRATE = 4096
_TELL_S = 10.0
_CONSTANTS = 1000
_LEAST = 1e-12
"""In place of a mean probability of nothing."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Where photos were taken, by their rows in the store, and in which cells: `label_NH`, -1 for none."""

    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    label_NH: NDArray[np.int64]


class Predictions(NamedTuple):
    """What an engine says of the photos that could be read: `row_N` are their rows in the store."""

    row_N: NDArray[np.int64]
    best_NH: NDArray[np.int64]
    lat_deg_N: NDArray[np.float64]
    lon_deg_N: NDArray[np.float64]
    radius_km_N: NDArray[np.float64]
    mass_within_N4: NDArray[np.float64]
    scene_N: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Measured:
    """What the model says of photos, how sure it is as it is read (`after`) and by its bare logits (`before`).

    `prior` is judged by the prior alone: the model's own, or the world's where it has none. `blind_nll_NH` is minus the
    logarithm of the mean of the model's answers to all the other photos, for the cell that a photo lies in; NaN as in
    `Judged`. A model that is no better than that does not tell photos apart.
    """

    said: Predictions
    before: Judged
    after: Judged
    prior: Judged
    blind_nll_NH: NDArray[np.float64]


def measure(
    checkpoint: Checkpoint, store: PhotoSource, rows: Sequence[int], truth: Truth, engine: Engine | None, crops: int = 1
) -> Measured:
    """Place the photos of some rows, and judge how sure the model was of them.

    Predictions are the engine's; without one they come from the torch model's logits through the same read-out, as
    they must with ten crops, since an engine ends in answers. How sure it was always comes from those logits (fp32),
    because no engine tells what it would have said if it were read otherwise. A batch's logits are dropped once judged.

    Raises ValueError as the store does, if no photo could be read, and for answers that are no finite numbers.
    """
    assert engine is None or crops == 1
    hierarchy = checkpoint.hierarchy
    plain = Reading.plain(len(hierarchy.levels), checkpoint.reading.point)
    plain = dataclasses.replace(plain, combination=checkpoint.reading.combination)
    judge, *others = (Judge(hierarchy, reading) for reading in (checkpoint.reading, plain, prior_reading(checkpoint)))
    read_out = judge.read_out
    parts: list[tuple[Predictions, list[Judged]]] = []
    answered = [np.zeros(count) for count in hierarchy.class_counts]
    model = checkpoint.build_model().to("cuda" if torch.cuda.is_available() else "cpu")
    for row_B, inputs, output in network_outputs(model, store, rows, crops):
        answers = (
            engine(inputs.astype(np.uint8, copy=False))
            if engine
            else Answers(*(field.numpy() for field in read_out(output)))
        )
        said = _predictions(row_B, answers, hierarchy)
        true_B = truth.label_NH[row_B], truth.lat_deg_N[row_B], truth.lon_deg_N[row_B]
        joints = read_out.log_probabilities(output.logits)
        parts.append((said, [judge.of(joints, *true_B), *(other(output.logits, *true_B) for other in others)]))
        for sum_K, log_BK in zip(answered, joints, strict=True):
            sum_K += log_BK.double().exp().sum(dim=0).numpy()
    if not parts:
        raise ValueError("none of the photos could be read")
    said = Predictions(*map(np.concatenate, zip(*(said for said, _ in parts), strict=True)))
    after, before, prior = (
        Judged(*map(np.concatenate, zip(*judged, strict=True)))
        for judged in zip(*(judged for _, judged in parts), strict=True)
    )
    return Measured(said, before, after, prior, _blind_nll_NH(answered, truth.label_NH[said.row_N], after.nll_NH))


def _blind_nll_NH(
    answered: Sequence[NDArray[np.float64]], label_NH: NDArray[np.int64], nll_NH: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`answered`: the sum over all photos of the probability of each cell of each level."""
    others = len(label_NH) - 1
    if not others:
        return np.full_like(nll_NH, np.nan)
    of_all_NH = np.stack([sum_K[label_N] for sum_K, label_N in zip(answered, label_NH.T, strict=True)], axis=1)
    mean_NH = np.maximum(of_all_NH - np.exp(-nll_NH), _LEAST) / others
    return np.where(np.isnan(nll_NH), np.nan, -np.log(mean_NH))


def prior_reading(checkpoint: Checkpoint) -> Reading:
    """Return how a model would be read if its network had no say: by its own prior, or the world's if it has none."""
    levels = len(checkpoint.hierarchy.levels)
    prior = checkpoint.reading.prior or Prior.world().levels(checkpoint.hierarchy)
    return dataclasses.replace(
        Reading.plain(levels, checkpoint.reading.point), prior=prior, prior_share=(1.0,) * levels
    )


def prior_point(checkpoint: Checkpoint) -> tuple[float, float]:
    """Return (lat_deg, lon_deg) of the answer that the prior alone gives to every photo."""
    hierarchy = checkpoint.hierarchy
    nothing = tuple(torch.zeros(1, count) for count in hierarchy.class_counts)
    read_out = ReadOut(hierarchy, prior_reading(checkpoint))
    cell = int(read_out(GeoDecoderOutput(nothing, torch.zeros(1, 1))).point_index_B)
    return float(hierarchy.levels[-1].lat_deg_K[cell]), float(hierarchy.levels[-1].lon_deg_K[cell])


def best_constant(lat_deg_N: NDArray[np.float64], lon_deg_N: NDArray[np.float64]) -> tuple[float, float]:
    """Return (lat_deg, lon_deg) of that photo's place which is least far away from all photos on average.

    Only who knows where the photos are can say it: what a single answer could reach at best. Of many photos, a thousand
    are tried, evenly taken.
    """
    tried = np.unique(np.linspace(0, len(lat_deg_N) - 1, _CONSTANTS).round().astype(int))
    mean_km = [geodesy.haversine_km(lat_deg_N[row], lon_deg_N[row], lat_deg_N, lon_deg_N).mean() for row in tried]
    best = int(tried[int(np.argmin(mean_km))])
    return float(lat_deg_N[best]), float(lon_deg_N[best])


def _predictions(row_B: NDArray[np.int64], answers: NumpyAnswers, hierarchy: Hierarchy) -> Predictions:
    if not answers.finite_B.all():
        raise ValueError(
            f"the network's answers for {(~answers.finite_B).sum()} of {len(row_B)} photos are no finite numbers: "
            "its training diverged, or the engine's precision is too low (try --engine torch)"
        )
    finest, point_B = hierarchy.levels[-1], answers.point_index_B
    return Predictions(
        row_N=row_B,
        best_NH=answers.level_index_BH.astype(np.int64),
        lat_deg_N=finest.lat_deg_K[point_B],
        lon_deg_N=finest.lon_deg_K[point_B],
        radius_km_N=answers.radius_km_B.astype(np.float64),
        mass_within_N4=answers.mass_within_B4.astype(np.float64),
        scene_N=answers.scene_index_B.astype(np.int64),
    )


def commonest_cell(hierarchy: Hierarchy) -> tuple[float, float]:
    """Return (lat_deg, lon_deg) of the coarsest level's cell with most training photos: the answer that needs no photo.

    The coarsest level, because its commonest cell holds more photos than any other and so is right most often."""
    level = hierarchy.levels[0]
    row = int(np.argmax(level.photo_count_K))
    return float(level.lat_deg_K[row]), float(level.lon_deg_K[row])


def teacher_features(
    teacher: Teacher, store: PhotoSource, rows: Sequence[int]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Return (row_N, features_ND), features of length 1, of the photos that could be read."""
    found, features = [], []
    for row_B, pixels_BHWC in store.batches(rows, BATCH_SIZE):
        if not len(row_B):
            continue
        rgb_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 255
        found.append(row_B)
        features.append(torch.nn.functional.normalize(teacher(resize(rgb_BCHW, teacher.size_px)), dim=1))
    if not found:
        raise ValueError("none of the photos could be read")
    return np.concatenate(found), torch.cat(features)


def nearest_neighbour(features_ND: torch.Tensor, known_MD: torch.Tensor) -> NDArray[np.int64]:
    """Return for each photo which of the M known ones has the most similar features (of length 1: by cosine)."""
    return (features_ND @ known_MD.T).argmax(dim=1).numpy()


def network_outputs(
    model: Network, store: InputSource, rows: Sequence[int], crops: int = 1
) -> Iterator[tuple[NDArray[np.int64], Inputs, GeoDecoderOutput]]:
    """Yield (row_B, inputs, logits) of the photos of some rows, by the torch model in fp32, wherever it is.

    `store` has photos, or the tokens that the model's backbone has made of them.

    The logits are on the CPU. Where a photo has several views, or ten crops (then `store` must decode to five), each
    chooses its own scene's queries, and the logits, of cells and of scenes, are the means over all. Batches are never
    empty.
    """
    was_training = model.training
    model.eval()
    try:
        for row_B, inputs in store.batches(rows, BATCH_SIZE):
            if len(row_B):
                yield row_B, inputs, _output(model, inputs, crops)
    finally:
        model.train(was_training)


@torch.no_grad()
def _output(model: Network, inputs: Inputs, crops: int) -> GeoDecoderOutput:
    if inputs.dtype == np.float16:
        assert isinstance(model, GeoDecoder), "only a network with a backbone goes on from tokens"
        assert crops == 1, "tokens are of the views that are served"
        return model.forward_views(torch.from_numpy(inputs).float())
    pixels_BHWC = inputs.astype(np.uint8, copy=False)
    if crops == TEN_CROPS:
        pixels_BHWC = np.concatenate([pixels_BHWC, pixels_BHWC[:, :, ::-1]], axis=1)
    size_px = model.config.preprocessing.image_size_px
    views = pixels_BHWC.shape[1] // size_px
    assert views == (crops if crops == TEN_CROPS else model.config.preprocessing.views)
    squares_SSC = pixels_BHWC.reshape(-1, size_px, size_px, 3)
    parts = [squares_SSC[start : start + BATCH_SIZE] for start in range(0, len(squares_SSC), BATCH_SIZE)]
    outputs = [model(normalised(model, part_SSC)) for part_SSC in parts]
    return GeoDecoderOutput(
        tuple(torch.cat(level).cpu() for level in zip(*(output.logits for output in outputs), strict=True)),
        torch.cat([output.scene_logits_BS for output in outputs]).cpu(),
    ).averaged(views)


def normalised(model: Network, pixels_BHWC: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 views of the model's size as it takes them, pixels_BCYX, on its device."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return as_input(model.config.preprocessing, pixels_BHWC, device)


def as_input(preprocessing: Preprocessing, pixels_BHWC: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return uint8 photos as pixels_BCYX, with a model's mean and standard deviation."""
    rgb_BHWC = torch.tensor(pixels_BHWC, device=device).float() / 255
    mean_C = torch.tensor(preprocessing.mean_rgb, device=device)
    std_C = torch.tensor(preprocessing.std_rgb, device=device)
    return ((rgb_BHWC - mean_C) / std_C).permute(0, 3, 1, 2)


def crops_target(preprocessing: Preprocessing, crops: int) -> DecodeTarget:
    """Return how photos are to be decoded for a model's own framing, or for ten crops.

    Ten crops are the field's (Krizhevsky et al., NeurIPS 2012): the shorter side is resized to `resize_px`; the four
    corners and the centre of the whole frame are cut out, `image_size_px` squared each, then mirrored.
    """
    target = DecodeTarget.of(preprocessing)
    return dataclasses.replace(target, framing=FIVE_CROPS) if crops == TEN_CROPS else target


def fit_reading(
    model: Network,
    store: InputSource,
    truth: Truth,
    group_N: NDArray[np.int64],
    rows: Sequence[int],
    hierarchy: Hierarchy,
    before: Reading,
    prior: Prior | None,
) -> Fit:
    """Return how the network is to be read, fitted on the photos of some rows: `calibration.fit_reading` says how.

    At most `MOST_TO_CALIBRATE` photos are used, evenly taken from `rows`, since all logits are kept: 4 bytes for each
    photo and class, so 1 GB for those photos and the paper's 63 thousand classes. Raises ValueError where fewer than
    `calibration.FEWEST_PHOTOS` of them could be read: a radius fitted to those would promise what nobody knows.
    """
    if len(rows) > MOST_TO_CALIBRATE:
        rows = [rows[index] for index in np.linspace(0, len(rows) - 1, MOST_TO_CALIBRATE).round().astype(int)]
    row_N, batches = labelled_logits(model, store, truth.label_NH, rows)
    if len(row_N) < FEWEST_PHOTOS:
        raise ValueError(
            f"{len(row_N)} held-out photos could be read, and it takes {FEWEST_PHOTOS} to fit confidence and radius:"
            " give a larger --split.validation-share, or more photos"
        )
    position = truth.lat_deg_N[row_N], truth.lon_deg_N[row_N]
    return calibration.fit_reading(batches, *position, group_N[row_N], hierarchy, before, prior)


def labelled_logits(
    model: Network, store: InputSource, label_NH: NDArray[np.int64], rows: Sequence[int]
) -> tuple[NDArray[np.int64], list[LabelledLogits]]:
    """Return row_N of the photos that could be read, and their logits with labels, in batches, in that order."""
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    batches: list[LabelledLogits] = []
    begin_s = told_s = time.monotonic()
    for row_B, _, output in network_outputs(model, store, rows):
        found.append(row_B)
        batches.append(LabelledLogits(output.logits, torch.from_numpy(label_NH[row_B])))
        if time.monotonic() > told_s + _TELL_S:
            told_s, done = time.monotonic(), sum(map(len, found))
            log.info("%d of %d photos have their logits, %.1f/s", done, len(rows), done / (told_s - begin_s))
    return np.concatenate(found), batches
