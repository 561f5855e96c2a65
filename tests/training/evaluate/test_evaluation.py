import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.backbones.backbone import Preprocessing
from model.checkpoint import Checkpoint
from model.engines import load_engine
from model.geodecoder import GeoDecoder, GeoDecoderConfig, GeoDecoderOutput
from model.readout import Reading
from model.world import geodesy
from model.world.prior import Prior
from pipeline.decode.photo import DecodeTarget, decode_photo
from training.data.dataset import ArraySource, PhotoStore
from training.data.teacher import Teacher
from training.evaluate.evaluation import (
    BATCH_SIZE,
    TEN_CROPS,
    Truth,
    commonest_cell,
    crops_target,
    fit_reading,
    measure,
    nearest_neighbour,
    network_outputs,
    normalised,
    teacher_features,
)
from training.evaluate.temperatures import LabelledLogits, fitted_temperatures
from training.hierarchy import PartitionConfig, build_hierarchy


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return dataclasses.replace(Checkpoint.load(tiny_checkpoint), reading=Reading((0.5, 0.7, 0.9)))


@pytest.fixture(scope="module")
def pixels_NHWC() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3)).astype(np.uint8)


class WithGaps(ArraySource):
    """Photos of which the first batch can't be read, nor every third one."""

    def batches(self, rows: Sequence[int], batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        for number, (row_B, pixels_BHWC) in enumerate(super().batches(rows, batch_size)):
            good_B = (row_B % 3 != 0) & (number > 0)
            yield row_B[good_B], pixels_BHWC[good_B]


def truth(checkpoint: Checkpoint, count: int) -> Truth:
    rng = np.random.default_rng(1)
    lat_deg_N, lon_deg_N = rng.uniform(-60, 60, count), rng.uniform(-180, 180, count)
    return Truth(lat_deg_N, lon_deg_N, checkpoint.hierarchy.label_NH(lat_deg_N, lon_deg_N))


def test_outputs_are_the_networks_without_what_could_not_be_read(
    checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8]
) -> None:
    assert isinstance(checkpoint.config, GeoDecoderConfig)
    model = GeoDecoder(dataclasses.replace(checkpoint.config, dropout=0.5), checkpoint.hierarchy.class_counts).train()
    found = list(network_outputs(model, WithGaps(pixels_NHWC), range(50)))
    assert [row_B.tolist() for row_B, _, _ in found] == [[row for row in range(BATCH_SIZE, 50) if row % 3]]
    assert model.training
    model.eval()
    (row_B, pixels_BHWC, output), *_ = found
    assert np.array_equal(pixels_BHWC, pixels_NHWC[row_B])
    expected = model(normalised(model, pixels_NHWC[row_B]))
    assert not output.logits[0].requires_grad
    assert all(torch.allclose(mine, its, atol=1e-5) for mine, its in zip(output.logits, expected.logits, strict=True))


def test_ten_crops_are_cut_out_of_the_whole_frame_as_the_field_does_it() -> None:
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (320, 480, 3), np.uint8))
    encoded = io.BytesIO()
    image.save(encoded, "png")
    target = crops_target(Preprocessing(image_size_px=224, resize_px=256, framing="letterbox"), TEN_CROPS)
    crops = decode_photo(encoded.getvalue(), target).pixels_HWC.reshape(5, 224, 224, 3).astype(int)
    resized = np.asarray(image.resize((384, 256), Image.Resampling.BILINEAR)).astype(int)
    for crop, (top, left) in zip(crops, [(0, 0), (0, 160), (32, 0), (32, 160), (16, 80)], strict=True):
        assert np.abs(crop - resized[top : top + 224, left : left + 224]).max() <= 1


def test_ten_crops_average_logits_not_probabilities(checkpoint: Checkpoint) -> None:
    five_BHWC = np.random.default_rng(3).integers(0, 256, (3, 5 * 32, 32, 3)).astype(np.uint8)
    model = checkpoint.build_model()
    ((_, _, output),) = network_outputs(model, ArraySource(five_BHWC), range(3), crops=10)
    crops = [five_BHWC[:, start : start + 32] for start in range(0, 160, 32)]
    crops += [np.ascontiguousarray(crop[:, :, ::-1]) for crop in crops]
    each = [model(normalised(model, crop)) for crop in crops]
    for level, logits_BK in enumerate(output.logits):
        assert torch.allclose(logits_BK, sum(x.logits[level] for x in each) / 10, atol=1e-5)
    assert torch.allclose(output.scene_logits_BS, sum(x.scene_logits_BS for x in each) / 10, atol=1e-5)
    assert not torch.allclose(output.logits[0], each[4].logits[0], atol=1e-3)


def test_without_an_engine_the_same_is_said_as_by_one(checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8]) -> None:
    known = truth(checkpoint, 50)
    rows = list(range(10, 50))
    by_engine = measure(
        checkpoint, ArraySource(pixels_NHWC), rows, known, load_engine("torch", checkpoint, precision="fp32")
    )
    by_logits = measure(checkpoint, ArraySource(pixels_NHWC), rows, known, None)
    for mine, its in zip(by_logits.said, by_engine.said, strict=True):
        assert np.allclose(mine, its, rtol=1e-4, atol=1e-3)
    assert by_engine.said.row_N.tolist() == rows
    said = by_engine.said
    # What it is judged by is the same answer: the level's confidence, and the truth within the radius or not.
    answered = load_engine("torch", checkpoint, precision="fp32")(pixels_NHWC[rows])
    assert np.allclose(by_engine.after.confidence_NH, answered.level_probability_BH, rtol=1e-4)
    error_km_N = geodesy.haversine_km(said.lat_deg_N, said.lon_deg_N, known.lat_deg_N[rows], known.lon_deg_N[rows])
    clear_N = np.abs(error_km_N - said.radius_km_N) > 0.1
    assert np.array_equal((by_engine.after.mass_nearer_N < 0.9)[clear_N], (error_km_N <= said.radius_km_N)[clear_N])
    # Before: at temperature 1, which is higher than this checkpoint's, so less sure.
    assert (by_engine.before.confidence_NH < by_engine.after.confidence_NH).all()


def test_what_cannot_be_measured_is_refused(checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="none of the photos could be read"):
        measure(checkpoint, WithGaps(pixels_NHWC), range(20), truth(checkpoint, 50), None)

    def broken(pixels_BHWC: NDArray[np.uint8]) -> object:
        answers = load_engine("torch", checkpoint, precision="fp32")(pixels_BHWC)
        return answers._replace(finite_B=answers.finite_B & (np.arange(len(pixels_BHWC)) > 1))

    with pytest.raises(ValueError, match="2 of 20 photos are no finite numbers"):
        measure(checkpoint, ArraySource(pixels_NHWC), range(20), truth(checkpoint, 50), broken)  # type: ignore[arg-type]


def test_a_reading_is_fitted_to_the_photos_that_can_be_read(
    checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8]
) -> None:
    model, known, hierarchy = checkpoint.build_model(), truth(checkpoint, 50), checkpoint.hierarchy
    assert isinstance(model, GeoDecoder)
    with torch.no_grad():
        for classifier in model.classifiers:
            classifier.weight.mul_(20)  # type: ignore[operator]
    rows = [row for row in range(BATCH_SIZE, 50) if row % 3]
    output: GeoDecoderOutput = model(normalised(model, pixels_NHWC[rows]))
    batch = LabelledLogits(tuple(x.detach() for x in output.logits), torch.from_numpy(known.label_NH[rows]))
    plain, groups = Reading.plain(3), np.arange(50)
    fit = fit_reading(model, WithGaps(pixels_NHWC), known, groups, range(50), hierarchy, plain, None)
    assert fit.reading.temperatures == pytest.approx(fitted_temperatures([batch], hierarchy), rel=1e-2)
    assert min(fit.reading.temperatures) > 1.5  # surely wrong, as random weights are
    assert fit.after.nll_NH.shape == (len(rows), 3)
    prior = Prior.of(known.lat_deg_N, known.lon_deg_N)
    with_prior = fit_reading(model, WithGaps(pixels_NHWC), known, groups, range(50), hierarchy, plain, prior)
    assert with_prior.reading.is_prior  # for random weights know nothing


def test_too_few_photos_to_fit_a_radius_to_are_refused(checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8]) -> None:
    model, known, groups = checkpoint.build_model(), truth(checkpoint, 50), np.arange(50)
    for rows, readable in ((range(0), 0), (range(8), 8)):
        with pytest.raises(ValueError, match=f"{readable} held-out photos could be read, and it takes 9 .*--split"):
            fit_reading(
                *(model, ArraySource(pixels_NHWC), known, groups, rows, checkpoint.hierarchy, Reading.plain(3), None)
            )
    rows = range(BATCH_SIZE + 12)  # of which the first batch, and then every third, can't be read
    with pytest.raises(ValueError, match=r"8 held-out .* or more photos"):
        fit_reading(model, WithGaps(pixels_NHWC), known, groups, rows, checkpoint.hierarchy, Reading.plain(3), None)


def test_many_photos_are_thinned_evenly_before_they_fill_the_memory(
    checkpoint: Checkpoint, pixels_NHWC: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Remembering(ArraySource):
        asked: Sequence[int] = ()

        def batches(
            self, rows: Sequence[int], batch_size: int
        ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
            self.asked = rows
            return super().batches(rows, batch_size)

    monkeypatch.setattr("training.evaluate.evaluation.MOST_TO_CALIBRATE", 13)
    source, known = Remembering(pixels_NHWC), truth(checkpoint, 50)
    model, plain = checkpoint.build_model(), Reading.plain(3)
    fit_reading(model, source, known, np.arange(50), range(1, 50), checkpoint.hierarchy, plain, None)
    assert source.asked == list(range(1, 50, 4))


def test_the_teachers_nearest_neighbour_of_a_photo_is_in_its_town(archive: Path, teacher_file: Path) -> None:
    names = sorted(path.name for path in archive.glob("*.png"))
    store = PhotoStore([str(archive / name) for name in names], DecodeTarget(16, 16))
    teacher = Teacher(teacher_file, threads=1)
    asked, known = list(range(0, 36, 3)), [row for row in range(36) if row % 3]
    found_N, features_ND = teacher_features(teacher, store, asked)
    known_M, known_MD = teacher_features(teacher, store, known)
    assert found_N.tolist() == asked
    assert known_M.tolist() == known
    nearest_N = known_M[nearest_neighbour(features_ND, known_MD)]
    assert [names[row][:3] for row in nearest_N] == [names[row][:3] for row in asked]


def test_the_commonest_cell_is_where_most_photos_are() -> None:
    hierarchy = build_hierarchy([10.0] * 3 + [-30.0] * 9, [20.0] * 3 + [100.0] * 9, PartitionConfig(0, (20, 1)))
    assert commonest_cell(hierarchy) == pytest.approx((-30.0, 100.0))
