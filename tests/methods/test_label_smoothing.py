"""Label smoothing against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hardy.errors import ParameterError
from hardy.methods.label_smoothing import CARD, LabelSmoothing, smoothed_cross_entropy
from hardy.objective import Objective
from hardy.surgery import attachments


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 6), k=st.integers(1, 12), smoothing=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_equals_the_formula(n: int, k: int, smoothing: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(n, k, generator=g, dtype=torch.float64) * 5, torch.randint(k, (n,), generator=g)
    got = smoothed_cross_entropy(logits, y, smoothing=smoothing)
    for i in range(n):
        log_p = [float(z) - math.log(sum(math.exp(float(v)) for v in logits[i])) for z in logits[i]]
        q = [(1 - smoothing) * (c == int(y[i])) + smoothing / k for c in range(k)]  # section 7: q' = (1 - e) d + e u
        assert math.isclose(
            float(got[i]), -sum(a * b for a, b in zip(q, log_p, strict=True)), rel_tol=1e-9, abs_tol=1e-9
        )


def test_soft_labels_are_smoothed_too() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), 1)
    want = -((0.7 * soft + 0.3 / 5) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(smoothed_cross_entropy(logits, soft, smoothing=0.3), want)
    hard = torch.tensor([0, 3, 2, 2])
    torch.testing.assert_close(
        smoothed_cross_entropy(logits, hard, smoothing=0.3),
        smoothed_cross_entropy(logits, nn.functional.one_hot(hard, 5).float(), smoothing=0.3),
    )


def test_the_smallest_loss_is_at_the_smoothed_label() -> None:
    q = torch.tensor([[0.9 + 0.1 / 4, 0.1 / 4, 0.1 / 4, 0.1 / 4]], dtype=torch.float64)
    logits = q.log().requires_grad_()
    (g,) = torch.autograd.grad(smoothed_cross_entropy(logits, torch.tensor([0]), smoothing=0.1).sum(), logits)
    assert g.abs().max() < 1e-12


def test_attach_defines_the_task_loss_in_training_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    x, y = torch.rand(6, 3, 2, 2), torch.arange(6) % 5
    with LabelSmoothing(smoothing=0.4).attach(model, example=x, seed=0) as a:
        assert a.sites == () and list(model.state_dict()) == ["1.weight", "1.bias"]
        objective = Objective(model)
        logits, losses = objective(x, y)
        torch.testing.assert_close(losses["task"], smoothed_cross_entropy(logits, y, smoothing=0.4).mean())
        torch.testing.assert_close(objective.eval()(x, y)[1]["task"], nn.functional.cross_entropy(logits, y))
    torch.testing.assert_close(objective.train()(x, y)[1]["task"], nn.functional.cross_entropy(logits, y))
    assert attachments(model) == []


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_a_weight_out_of_range_is_an_error(smoothing: float) -> None:
    with pytest.raises(ParameterError, match=r"LabelSmoothing: smoothing must be in \[0, 1\]; got"):
        LabelSmoothing(smoothing=smoothing)


def test_says_what_it_is() -> None:
    assert CARD.kind == "loss" and not CARD.live
