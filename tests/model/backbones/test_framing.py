"""Which parts of a photo become its views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.backbones.backbone import Preprocessing
from model.backbones.framing import VIEWS, Box, Cut, boxes
from model.checkpoint import Checkpoint
from model.geodecoder import GeoDecoder, GeoDecoderOutput, preprocessing_from_json
from pipeline.locate.locator import BUNDLED_MODEL

SIDES = st.integers(1, 5000)


def covered(parts: list[Box], width_px: int, height_px: int) -> tuple[list[tuple[float, float]], ...]:
    """Where each part begins and ends, across and down."""
    across = [((width_px - x.width_px) * x.across, (width_px - x.width_px) * x.across + x.width_px) for x in parts]
    down = [((height_px - x.height_px) * x.down, (height_px - x.height_px) * x.down + x.height_px) for x in parts]
    return across, down


@given(SIDES, SIDES, st.sampled_from(["letterbox", "squares"]))
def test_nothing_of_a_frame_is_left_out(width_px: int, height_px: int, cut: Cut) -> None:
    parts = boxes(cut, width_px, height_px, 0.875)
    assert len(parts) == VIEWS[cut]
    for spans, side_px in zip(covered(parts, width_px, height_px), (width_px, height_px), strict=True):
        assert min(start for start, _ in spans) == 0
        assert max(end for _, end in spans) == pytest.approx(side_px)
        assert spans[-1][0] <= spans[0][1] + 1e-9, "a gap between the views"


@pytest.mark.parametrize(("width_px", "height_px"), [(300, 200), (200, 300), (400, 200), (200, 200)])
def test_two_squares_are_square_up_to_twice_as_wide_as_high(width_px: int, height_px: int) -> None:
    assert all(x.width_px == x.height_px == 200 for x in boxes("squares", width_px, height_px, 0.875))


def test_a_panorama_s_halves_are_letterboxed() -> None:
    assert boxes("squares", 900, 300, 0.875) == [Box(450, 300, 0), Box(450, 300, 1)]


def test_five_crops_lie_in_the_corners_of_the_whole_frame() -> None:
    across, down = covered(boxes("five-crops", 480, 320, 0.875), 480, 320)
    assert across == [(0, 280), (200, 480), (0, 280), (200, 480), (100, 380)]
    assert down == [(0, 280), (0, 280), (40, 320), (40, 320), (20, 300)]


def test_checkpoints_without_a_framing_keep_the_centre_and_their_ids() -> None:
    bundled = Checkpoint.load(BUNDLED_MODEL)
    assert bundled.config.preprocessing.framing == "centre"
    assert bundled.model_id == "graticule-first-light-bab1c42c1954"
    assert "framing" not in bundled.config.to_json()["preprocessing"]  # so that, saved again, it keeps it


@pytest.mark.parametrize("framing", ["letterbox", "squares"])
def test_a_framing_is_part_of_a_model(framing: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(tiny_checkpoint)
    model = checkpoint.build_model()
    assert isinstance(model, GeoDecoder)
    how = dataclasses.replace(model.config.preprocessing, framing=framing)  # type: ignore[arg-type]
    model.config = dataclasses.replace(model.config, preprocessing=how)
    saved = Checkpoint.save(tmp_path, model, checkpoint.hierarchy, name="tiny")
    assert saved.config.preprocessing == how
    assert saved.model_id != checkpoint.model_id


def test_an_unknown_framing_is_refused() -> None:
    values = Preprocessing(32, 36, framing="squares").to_json()
    assert preprocessing_from_json(values).shape_HWC == (64, 32, 3)
    with pytest.raises(ValueError, match="framing must be one of centre, letterbox, squares, not 'stretched'"):
        preprocessing_from_json(values | {"framing": "stretched"})
    with pytest.raises(ValueError, match="framing must be a text"):
        preprocessing_from_json(values | {"framing": 2})


def test_averaging_logits_is_averaging_log_probabilities() -> None:
    logits_VK = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (6, 5)))
    output = GeoDecoderOutput((logits_VK,), logits_VK[:, :2]).averaged(2)
    each_VK = logits_VK.log_softmax(dim=1)
    mean_BK = torch.stack([each_VK[0::2], each_VK[1::2]]).mean(dim=0)
    torch.testing.assert_close(output.logits[0].softmax(dim=1).double(), mean_BK.softmax(dim=1), rtol=1e-5, atol=1e-6)
    assert output.scene_logits_BS.shape == (3, 2)
