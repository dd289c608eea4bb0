"""Losses against slow loops over single rows, and against the code of AutoAttack."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardy.attacks.goal import Goal
from hardy.attacks.losses import Loss, cross_entropy, difference_of_logits_ratio, logit_margin
from hardy.errors import ParameterError

LOSSES = [cross_entropy, difference_of_logits_ratio, logit_margin]


def rows(seed: int, n: int = 12, k: int = 6) -> tuple[Tensor, Goal]:
    """Float64 logits; half of the rows aim at a class, half of these must hit it."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(k, (n,), generator=g)
    target = torch.where(torch.arange(n) % 2 == 0, label, (label + torch.randint(1, k, (n,), generator=g)) % k)
    logits = 3 * torch.randn(n, k, generator=g, dtype=torch.float64)
    return logits, Goal(label, target, torch.arange(n) % 4 == 3)


def slow(name: str, z: list[float], label: int, target: int) -> float:
    """One row in plain Python, as the papers write it."""
    order = sorted(z, reverse=True)
    if name == "cross_entropy":
        log_sum = torch.tensor(z, dtype=torch.float64).logsumexp(0).item()
        return log_sum - z[label] if label == target else z[target] - log_sum
    if name == "logit_margin":
        best = max(v for i, v in enumerate(z) if i != target)
        return best - z[label] if label == target else z[target] - best
    if label == target:
        return -(z[label] - max(v for i, v in enumerate(z) if i != label)) / (order[0] - order[2])
    return -(z[label] - z[target]) / (order[0] - 0.5 * (order[2] + order[3]))


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@given(st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_equals_the_formula_row_by_row(loss: Loss, seed: int) -> None:
    logits, goal = rows(seed)
    name = loss.__name__
    want = [
        slow(name, z, a, t) for z, a, t in zip(logits.tolist(), goal.label.tolist(), goal.target.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss(logits, goal), torch.tensor(want, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradients_are_right_and_rows_do_not_mix(loss: Loss) -> None:
    logits, goal = rows(1, n=8)
    assert torch.autograd.gradcheck(lambda z: loss(z, goal), (logits.clone().requires_grad_(),))
    order = torch.tensor([5, 0, 7])
    some = Goal(goal.label[order], goal.target[order], goal.must_hit[order])
    assert torch.equal(loss(logits[order], some), loss(logits, goal)[order])


@given(st.integers(0, 2**32), st.floats(1e-3, 1e3), st.floats(-50, 50))
@settings(max_examples=25, deadline=None)
def test_dlr_sees_neither_scale_nor_shift(seed: int, scale: float, shift: float) -> None:
    logits, goal = rows(seed)
    want = difference_of_logits_ratio(logits, goal)
    torch.testing.assert_close(difference_of_logits_ratio(scale * logits + shift, goal), want, rtol=1e-6, atol=1e-6)
    assert (want[goal.label == goal.target] >= -1).all()


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_margins_are_positive_where_the_row_has_what_it_wants(seed: int) -> None:
    logits, goal = rows(seed)
    strict = Goal(goal.label, goal.target, goal.target != goal.label)
    assert torch.equal(logit_margin(logits, goal) > 0, strict.reached(logits))
    torch.testing.assert_close(logit_margin(logits, strict), -strict.margin(logits))
    away = goal.label == goal.target
    assert torch.equal((difference_of_logits_ratio(logits, goal) > 0)[away], strict.reached(logits)[away])


def test_equals_autoattack() -> None:
    module = pytest.importorskip("pyautoattack.autopgd_base")
    logits, goal = rows(2, n=200, k=10)
    other = module.APGDAttack_targeted(None, eps=1.0, device="cpu")
    other.y_target = goal.target
    away = other.dlr_loss(logits, goal.label)
    want = torch.where(goal.label == goal.target, away, other.dlr_loss_targeted(logits, goal.label))
    torch.testing.assert_close(difference_of_logits_ratio(logits, goal), want)
    towards = goal.label != goal.target
    torch.testing.assert_close(
        cross_entropy(logits, goal)[towards], other.ce_loss_targeted(logits, goal.label)[towards]
    )
    torch.testing.assert_close(
        cross_entropy(logits, goal)[~towards], F.cross_entropy(logits, goal.label, reduction="none")[~towards]
    )


def test_too_few_classes_are_errors_that_name_another_loss() -> None:
    label, never = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool)
    away, towards = Goal(label, label, never), Goal(label, 1 - label, never)
    with pytest.raises(ParameterError, match=r'at least 3 outputs.*; got 2\. Use "ce" or "margin"'):
        difference_of_logits_ratio(torch.randn(2, 2), away)
    with pytest.raises(ParameterError, match=r"targeted DLR loss: the model must have at least 4 outputs; got 3"):
        difference_of_logits_ratio(torch.randn(2, 3), towards)
    z = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    torch.testing.assert_close(difference_of_logits_ratio(z, away), torch.tensor([-2 / 3, 2 / 3]))
    for loss in (cross_entropy, logit_margin):
        assert loss(torch.randn(2, 2), towards).isfinite().all()


def test_equal_logits_give_a_finite_loss_and_gradient() -> None:
    z = torch.zeros(2, 5, requires_grad=True)
    goal = Goal(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.zeros(2, dtype=torch.bool))
    loss = difference_of_logits_ratio(z, goal)
    loss.sum().backward()
    assert not loss.any() and z.grad is not None and z.grad.isfinite().all()
