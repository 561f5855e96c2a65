"""Photos of two views: each draw of a training sees one of them, what is validated and served the mean of both."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from model import geodecoder
from model.backbones.tower import Tower
from model.geodecoder import GeoDecoder
from pipeline.decode.photo import DecodeTarget
from training.data.augment import AugmentConfig, one_view, random_numbers
from training.data.dataset import ArraySource
from training.evaluate import attention
from training.evaluate.evaluation import network_outputs
from training.fit.loop import Task, TrainingLoop, Upkeep
from training.fit.objective import Labels, Objective
from training.fit.recipe import Recipe
from training.fit.team import Team
from training.fit.tokens import TokenCache
from training.fit.validation import summed_losses
from training.galleries import photo_features

PHOTOS = 12
TWO_BHWC = np.random.default_rng(1).integers(0, 256, (PHOTOS, 64, 32, 3)).astype(np.uint8)
PLACE_N = np.arange(PHOTOS) % 3
LABELS = Labels(np.stack([PLACE_N, PLACE_N], axis=1), np.full(PHOTOS, -1))
ROWS, NONE = np.arange(PHOTOS), np.empty(0, np.int64)
RECIPE = Recipe(epochs=2, batch_size=5, balance=0.0)
FROZEN = dataclasses.replace(RECIPE, backbone_rate=0.0)


def network() -> GeoDecoder:
    torch.manual_seed(0)
    config = geodecoder.tiny()
    preprocessing = dataclasses.replace(config.preprocessing, framing="squares")
    return GeoDecoder(dataclasses.replace(config, preprocessing=preprocessing), (3, 3))


def test_each_view_is_as_likely_whether_it_is_mirrored_or_not() -> None:
    draws = 2000
    random_BU = random_numbers(3, np.arange(draws))
    photo_HWC = torch.cat([torch.zeros(4, 4, 3), torch.ones(4, 4, 3)])
    view_B = one_view(photo_HWC.expand(draws, -1, -1, -1), random_BU)
    assert view_B.shape == (draws, 4, 4, 3)
    second_B = view_B[:, 0, 0, 0]
    assert ((second_B == 0) | (second_B == 1)).all()
    for is_mirrored in (True, False):
        assert abs(float(second_B[(random_BU[:, 4] < 0.5) == is_mirrored].mean()) - 0.5) < 0.06
    assert torch.equal(one_view(view_B, random_BU), view_B)


def test_what_is_validated_is_what_is_served() -> None:
    model = network().eval()
    objective = Objective(model, FROZEN, LABELS).eval()
    ((_, _, served),) = network_outputs(model, ArraySource(TWO_BHWC), range(PHOTOS))
    tokens_BND = objective.tokens(torch.from_numpy(TWO_BHWC))
    assert tokens_BND.shape == (PHOTOS, 2 * model.backbone.tokens, model.backbone.width)
    with torch.no_grad():
        each = [model.forward_tokens(half) for half in tokens_BND.split(model.backbone.tokens, dim=1)]
        for level, logits_BK in enumerate(served.logits):
            torch.testing.assert_close(logits_BK, (each[0].logits[level] + each[1].logits[level]) / 2)
    expected = torch.nn.functional.cross_entropy(served.logits[0], torch.from_numpy(PLACE_N), reduction="sum")
    for inputs in (torch.from_numpy(TWO_BHWC), tokens_BND):
        sums_P3 = summed_losses(LABELS, ROWS, objective.validate(inputs))
        torch.testing.assert_close(sums_P3[0, 0].float(), expected)


def test_trains_on_one_view_a_draw_and_on_the_tokens_of_both(tmp_path: Path) -> None:
    first = network()
    start = {name: x.clone() for name, x in first.state_dict().items()}
    source = ArraySource(TWO_BHWC)
    TrainingLoop(first, Task(RECIPE, LABELS, ROWS, ROWS[:4]), Team(), Upkeep(quiet=True)).run(source, source)
    assert any(not torch.equal(start[name], x) for name, x in first.state_dict().items())

    second = network()
    backbone = second.backbone
    cache = TokenCache.planned(
        str(tmp_path),
        backbone.state_dict(),
        {},
        (2 * backbone.tokens, backbone.width),
        [str(row) for row in ROWS],
        ROWS[:8],
        ROWS[8:],
    )
    task = Task(FROZEN, LABELS, ROWS[:8], ROWS[8:], tokens=cache)
    TrainingLoop(second, task, Team(), Upkeep(quiet=True)).run(source, source)
    ((row_B, _, from_tokens),) = network_outputs(second, cache.validation(), ROWS[8:].tolist())
    ((_, _, from_pixels),) = network_outputs(second, source, row_B.tolist())
    torch.testing.assert_close(from_tokens.logits[0], from_pixels.logits[0], rtol=0.01, atol=0.01)


def test_augmented_views_are_of_one_square() -> None:
    objective = Objective(network(), dataclasses.replace(RECIPE, augment=AugmentConfig(least_area=0.5)), LABELS)
    known_P = torch.from_numpy(LABELS.known_P(ROWS))
    terms = objective(torch.from_numpy(TWO_BHWC), ROWS, random_numbers(0, ROWS), known_P)
    assert bool(terms["levels"].isfinite())


def test_what_is_looked_at_is_shown_of_the_first_square() -> None:
    look = attention.look(network(), TWO_BHWC[0], "a.jpg", "placed")
    assert "the first of its 2 squares" in look.facts


def test_a_gallery_s_row_is_the_mean_direction_of_a_photo_s_views() -> None:
    model = network()
    preprocessing, tower = model.config.preprocessing, Tower(model.backbone).eval()
    assert DecodeTarget.of(preprocessing).shape_HWC == (64, 32, 3)
    _, features_ND = photo_features(tower, preprocessing, ArraySource(TWO_BHWC), range(PHOTOS))
    one = dataclasses.replace(preprocessing, framing="centre")
    halves = [photo_features(tower, one, ArraySource(half), range(PHOTOS))[1] for half in np.split(TWO_BHWC, 2, axis=1)]
    expected_ND = torch.nn.functional.normalize(halves[0] + halves[1], dim=1)
    torch.testing.assert_close(features_ND, expected_ND, rtol=1e-4, atol=1e-5)
