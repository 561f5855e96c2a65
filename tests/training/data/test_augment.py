import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from training.data.augment import RANDOM_NUMBERS, AugmentConfig, _turn, _turn_hues, augment, random_numbers, resize

NONE = AugmentConfig(least_area=1, most_stretch=1, mirror=False, colour=0)


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return random_numbers(seed, np.arange(count))


def photos(count: int = 6, height: int = 40, width: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator).to(torch.uint8)


def test_views_have_the_size_and_range_asked_for_and_differ() -> None:
    rgb_BCSS = augment(photos(), 24, AugmentConfig(), numbers(6))
    assert rgb_BCSS.shape == (6, 3, 24, 24)
    assert rgb_BCSS.dtype == torch.float32
    assert rgb_BCSS.min() >= 0
    assert rgb_BCSS.max() <= 1
    views = augment(photos(1).expand(6, -1, -1, -1), 24, AugmentConfig(), numbers(6))
    assert (views[0] - views[1]).abs().max() > 0.05


def test_a_view_hangs_on_its_draw_alone_and_not_on_the_batch() -> None:
    together = augment(photos(), 24, AugmentConfig(), numbers(6, seed=5))
    alone = torch.cat(
        [
            augment(photos()[i : i + 1], 24, AugmentConfig(), random_numbers(5, np.array([i], np.int64)))
            for i in range(6)
        ]
    )
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together, augment(photos(), 24, AugmentConfig(), numbers(6, seed=6)), atol=0.01)


def test_random_numbers_are_uniform_and_independent() -> None:
    random_NU = random_numbers(3, np.arange(20_000)).numpy()
    assert random_NU.shape == (20_000, RANDOM_NUMBERS)
    assert random_NU.min() >= 0
    assert random_NU.max() < 1
    assert np.allclose(random_NU.mean(axis=0), 0.5, atol=0.01)
    assert np.allclose(random_NU.var(axis=0), 1 / 12, atol=0.002)
    between_columns = np.corrcoef(random_NU.T) - np.eye(RANDOM_NUMBERS)
    between_draws = np.corrcoef(random_NU[:-1, 0], random_NU[1:, 0])[0, 1]
    between_seeds = np.corrcoef(random_NU[:, 0], random_numbers(4, np.arange(20_000))[:, 0].numpy())[0, 1]
    assert max(np.abs(between_columns).max(), abs(between_draws), abs(between_seeds)) < 0.03


@pytest.mark.parametrize("size_px", [16, 24, 40, 64])
def test_a_whole_photo_is_resized_as_torch_does_it(size_px: int) -> None:
    expected = interpolate(
        photos(3, 40, 56).permute(0, 3, 1, 2) / 255, (size_px, size_px), mode="bilinear", antialias=True
    )
    assert torch.allclose(augment(photos(3, 40, 56), size_px, NONE, numbers(3)), expected, atol=1e-5)


def test_without_any_strength_a_photo_stays_as_it_is() -> None:
    assert torch.allclose(augment(photos(), 40, NONE, numbers(6)), photos().permute(0, 3, 1, 2) / 255, atol=1e-6)


def test_about_half_are_mirrored() -> None:
    mirror = AugmentConfig(least_area=1, most_stretch=1, mirror=True, colour=0)
    views = augment(photos(1).expand(100, -1, -1, -1), 40, mirror, numbers(100))
    plain = photos(1).permute(0, 3, 1, 2) / 255
    same = (views - plain).abs().amax(dim=(1, 2, 3)) < 1e-6
    mirrored = (views - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert (same ^ mirrored).all()
    assert 30 < int(mirrored.sum()) < 70


def test_crops_lie_inside_photos_that_are_not_square() -> None:
    """A white photo stays white: nothing from outside it, and no weight missing."""
    white = torch.full((50, 33, 71, 3), 255, dtype=torch.uint8)
    views = augment(white, 16, AugmentConfig(least_area=0.05, colour=0), numbers(50))
    assert torch.allclose(views, torch.ones(()), atol=1e-5)


def test_crops_show_at_least_the_area_asked_for() -> None:
    """The picture's columns are numbered by their brightness, so a view's range tells its width."""
    ramp = torch.arange(200, dtype=torch.uint8)[None, None, :, None].expand(400, 200, 200, 3)
    config = AugmentConfig(least_area=0.49, most_stretch=1, mirror=False, colour=0)
    views = augment(ramp, 50, config, numbers(400)) * 255
    width = (views[:, 0, 0, -1] - views[:, 0, 0, 0]) * 50 / 49
    assert float(width.min()) > 0.69 * 200 - 3
    assert float(width.max()) > 0.95 * 200
    assert float(views[:, 0, 0, 0].max()) > 40  # and it moves


def test_shrinking_smooths() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert torch.allclose(resize(stripes, 16)[..., 2:-2, 2:-2], torch.tensor(0.5), atol=0.02)


def test_crops_of_one_size_have_it() -> None:
    """As the paper cuts 224 of 256 pixels, anywhere: a view's range of brightness tells its width."""
    ramp = torch.arange(128, dtype=torch.uint8)[None, None, :, None].expand(50, 128, 128, 3)
    share = (224 / 256) ** 2
    config = AugmentConfig(least_area=share, most_area=share, most_stretch=1, mirror=False, colour=0)
    views = augment(ramp, 112, config, numbers(50)) * 255
    assert torch.allclose(views[:, 0, 0, -1] - views[:, 0, 0, 0], torch.tensor(111.0), atol=0.6)
    assert float(views[:, 0, 0, 0].max()) > 12


def test_photos_turn_about_their_middle_by_up_to_the_angle_either_way() -> None:
    """A white line from the middle to the right points elsewhere afterwards, also in a photo that is not square."""
    for height, width in ((81, 81), (61, 121)):
        line = torch.zeros((60, height, width, 3), dtype=torch.uint8)
        middle_y, middle_x = height // 2, width // 2
        line[:, middle_y, middle_x : middle_x + 25] = 255
        config = AugmentConfig(least_area=1, most_stretch=1, mirror=False, colour=0, rotation_deg=15)
        random_BU = numbers(60)
        turned_BCHW = _turn(line.permute(0, 3, 1, 2) / 255, config.rotation_deg * (2 * random_BU[:, 8] - 1))
        y_H1, x_W = torch.arange(height)[:, None] - middle_y, torch.arange(width) - middle_x
        light_B = turned_BCHW[:, 0].sum(dim=(1, 2))
        away_y_B, away_x_B = ((turned_BCHW[:, 0] * axis).sum(dim=(1, 2)) / light_B for axis in (y_H1, x_W))
        angle_deg_B = torch.rad2deg(torch.atan2(away_y_B, away_x_B))
        assert torch.allclose(torch.hypot(away_x_B, away_y_B), torch.tensor(12.0), atol=0.4)
        assert 12 < float(angle_deg_B.max()) < 15.5
        assert -15.5 < float(angle_deg_B.min()) < -12
        # The view is of the turned photo: white ones have black corners.
        white = torch.full((4, height, width, 3), 255, dtype=torch.uint8)
        assert float(augment(white, 40, config, random_BU[:4]).min()) < 0.05


def test_hues_turn_as_hsv_has_them_and_greys_stay() -> None:
    colours_8SS3 = torch.rand((8, 5, 5, 3), generator=torch.Generator().manual_seed(2))
    share_8 = torch.linspace(-0.5, 0.5, 8)
    turned = _turn_hues(colours_8SS3.permute(0, 3, 1, 2), share_8).permute(0, 2, 3, 1)
    for photo, share in enumerate(share_8.tolist()):
        for before, after in zip(colours_8SS3[photo].reshape(-1, 3), turned[photo].reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
            expected = colorsys.hsv_to_rgb((hue + share) % 1, saturation, value)
            assert after.tolist() == pytest.approx(expected, abs=1e-5)
    grey = torch.full((1, 3, 2, 2), 0.4)
    assert torch.allclose(_turn_hues(grey, torch.tensor([0.3])), grey)
    views = augment(photos(), 24, replace(NONE, hue=0.1), numbers(6))
    assert (views - augment(photos(), 24, NONE, numbers(6))).abs().amax(dim=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize(
    "values",
    [
        {"least_area": 0},
        {"least_area": 1.1},
        {"least_area": 0.5, "most_area": 0.4},
        {"most_stretch": 0.9},
        {"colour": 1.0},
        {"hue": 0.6},
        {"rotation_deg": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"change these recipe\.augment settings"):
        AugmentConfig(**values)  # type: ignore[arg-type]
