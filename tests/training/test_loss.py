import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from model.world import geodesy
from training.loss import distillation_loss, levels_loss, masked_cross_entropy, nearness


def test_levels_loss_is_the_mean_of_smoothed_cross_entropies() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(5, 4), torch.randn(5, 9))
    label_BH = torch.tensor([[0, 8], [1, 3], [2, 0], [3, 1], [0, 0]])
    expected = sum(cross_entropy(x, label_BH[:, h], label_smoothing=0.1) for h, x in enumerate(logits)) / 2
    assert levels_loss(logits, label_BH, 0.1) == pytest.approx(expected.item())


def test_a_photo_without_a_label_says_nothing_about_that_level() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 6, requires_grad=True)
    label_B = torch.tensor([2, -1, 5, -1])
    loss = masked_cross_entropy(logits, label_B, 0.1)
    expected = cross_entropy(logits[[0, 2]], label_B[[0, 2]], label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all()
    assert (logits.grad[[0, 2]] != 0).any()


def test_no_labels_at_all_cost_nothing_and_are_finite() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.full((3,), -1))
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_right_answers_cost_least() -> None:
    sure = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]])
    right, wrong = torch.tensor([[0], [1]]), torch.tensor([[1], [2]])
    assert levels_loss([sure], right, 0.0) < 0.01 < levels_loss([sure], wrong, 0.0)
    assert float(levels_loss([torch.zeros(2, 3)], right, 0.0)) == pytest.approx(math.log(3))


def test_saying_the_teachers_mean_costs_one() -> None:
    torch.manual_seed(0)
    teacher_BD = torch.randn(4000, 16)
    assert float(distillation_loss(torch.zeros(4000, 16), teacher_BD)) == pytest.approx(1, abs=0.05)
    assert float(distillation_loss(teacher_BD, teacher_BD)) == 0


def test_parts_of_a_batch_add_up_to_the_whole_when_they_know_its_counts() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(9, 4), torch.randn(9, 7)]
    label_BH = torch.stack([torch.randint(-1, 4, (9,)), torch.randint(-1, 7, (9,))], dim=1)
    count_H = (label_BH >= 0).sum(dim=0)
    parts = [slice(0, 2), slice(2, 3), slice(3, 9)]
    total = sum(levels_loss([x[part] for x in logits], label_BH[part], 0.1, count_H) for part in parts)
    assert float(total) == pytest.approx(float(levels_loss(logits, label_BH, 0.1)), rel=1e-5)
    ours, theirs = torch.randn(9, 5), torch.randn(9, 5)
    pieces = sum(distillation_loss(ours[part], theirs[part], torch.tensor(9)) for part in parts)
    assert float(pieces) == pytest.approx(float(distillation_loss(ours, theirs)), rel=1e-5)


def test_levels_count_by_their_weights() -> None:
    torch.manual_seed(0)
    logits, label_BH = [torch.randn(5, 3), torch.randn(5, 4)], torch.randint(0, 3, (5, 2))
    one, other = (float(levels_loss([x], label_BH[:, h : h + 1], 0.0)) for h, x in enumerate(logits))
    weighted = levels_loss(logits, label_BH, 0.0, weight_H=(3.0, 1.0))
    assert float(weighted) == pytest.approx((3 * one + other) / 4, rel=1e-5)
    assert float(levels_loss(logits, label_BH, 0.0, added_up=True)) == pytest.approx(one + other, rel=1e-5)
    weighted = levels_loss(logits, label_BH, 0.0, weight_H=(3.0, 1.0), added_up=True)
    assert float(weighted) == pytest.approx(3 * one + other, rel=1e-5)


def test_nearness_falls_by_e_every_so_many_kilometres() -> None:
    lat_deg_K, lon_deg_K = np.array([10.0, 12.0, -60.0]), np.array([20.0, 20.0, 179.0])
    photo, cells = geodesy.unit_vectors_N3([10.5], [20.0]), geodesy.unit_vectors_N3(lat_deg_K, lon_deg_K)
    near_1K = nearness(torch.from_numpy(photo).float(), torch.from_numpy(cells).float(), 150.0)
    distance_km_K = geodesy.haversine_km(10.5, 20.0, lat_deg_K, lon_deg_K)
    expected_K = np.exp(-distance_km_K / 150.0) / np.exp(-distance_km_K / 150.0).sum()
    assert near_1K[0].tolist() == pytest.approx(expected_K.tolist(), abs=2e-3)


def test_smoothing_by_distance_prefers_the_near_mistake() -> None:
    near_1K = torch.tensor([[0.6, 0.4, 0.0]])
    label_B, near_wrong, far_wrong = torch.tensor([0]), torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0]])
    assert masked_cross_entropy(near_wrong, label_B, 0.1, None, near_1K) < masked_cross_entropy(
        far_wrong, label_B, 0.1, None, near_1K
    )
    assert float(masked_cross_entropy(near_wrong, label_B, 0.1)) == pytest.approx(
        float(masked_cross_entropy(far_wrong, label_B, 0.1))
    )
    unknown = masked_cross_entropy(near_wrong, torch.tensor([-1]), 0.1, None, near_1K)
    assert float(unknown) == 0
