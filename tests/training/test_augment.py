import pytest
import torch

from training.augment import AugmentConfig, augment, resize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 6, height: int = 40, width: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), generator=generator(1)).to(torch.uint8)


def test_views_have_the_size_and_range_asked_for_and_differ() -> None:
    rgb_BCSS = augment(photos(), 24, AugmentConfig(), generator())
    assert rgb_BCSS.shape == (6, 3, 24, 24)
    assert rgb_BCSS.dtype == torch.float32
    assert rgb_BCSS.min() >= 0
    assert rgb_BCSS.max() <= 1
    same_photo = photos(1).expand(6, -1, -1, -1)
    views = augment(same_photo, 24, AugmentConfig(), generator())
    assert (views[0] - views[1]).abs().max() > 0.05


def test_one_generator_state_one_set_of_views() -> None:
    assert torch.equal(
        augment(photos(), 24, AugmentConfig(), generator(5)), augment(photos(), 24, AugmentConfig(), generator(5))
    )


def test_without_any_strength_a_photo_stays_as_it_is() -> None:
    none = AugmentConfig(least_area=1, most_stretch=1, mirror=False, colour=0)
    views = augment(photos(), 40, none, generator())
    assert torch.allclose(views, photos().permute(0, 3, 1, 2) / 255, atol=1e-6)


def test_about_half_are_mirrored() -> None:
    mirror = AugmentConfig(least_area=1, most_stretch=1, mirror=True, colour=0)
    photo = photos(1).expand(100, -1, -1, -1)
    views, plain = augment(photo, 40, mirror, generator()), photos(1).permute(0, 3, 1, 2) / 255
    same = (views - plain).abs().amax(dim=(1, 2, 3)) < 1e-6
    mirrored = (views - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert (same ^ mirrored).all()
    assert 30 < int(mirrored.sum()) < 70


def test_crops_lie_inside_photos_that_are_not_square() -> None:
    for seed in range(20):
        assert augment(photos(4, 33, 71), 16, AugmentConfig(least_area=0.05), generator(seed)).isfinite().all()


def test_shrinking_smooths() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    assert torch.allclose(resize(stripes, 16)[..., 2:-2, 2:-2], torch.tensor(0.5), atol=0.02)


@pytest.mark.parametrize("values", [{"least_area": 0}, {"least_area": 1.1}, {"most_stretch": 0.9}, {"colour": 1.0}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="least_area"):
        AugmentConfig(**values)  # type: ignore[arg-type]
