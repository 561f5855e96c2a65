import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from training.loss import distillation_loss, levels_loss, masked_cross_entropy


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
