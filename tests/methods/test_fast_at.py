"""Fast adversarial training: one step of 1.25 eps from a random point of the ball."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hardy import seeding
from hardy.errors import ParameterError
from hardy.inserts import passes_per_image
from hardy.methods.fast_at import CARD, FastAdversarialTraining
from hardy.objective import Objective

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(6))


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).double()


def test_is_one_signed_step_from_a_random_point_clipped_to_ball_and_box(net: nn.Sequential) -> None:
    x, y = torch.rand(6, 1, 5, 5, dtype=torch.float64), torch.arange(6) % 3
    held = FastAdversarialTraining(eps=0.2, alpha=1.25).attach(net, example=x, seed=0).insert
    u = seeding.uniform(seeding.fold(KEY, held.root), 0, x.shape[1:]).double()
    start = (x + (2 * u - 1) * 0.2).clamp(0, 1).requires_grad_()
    F.cross_entropy(copy.deepcopy(net).eval()(start), y).backward()
    assert start.grad is not None
    delta = (start.detach() - x + 0.25 * start.grad.sign()).clamp(-0.2, 0.2)
    want = (x + delta).clamp(0, 1)
    got = held.inputs(x, y, seeding.fold(KEY, held.root))[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert 0.1 < ((got - x).abs() > 0.2 - 1e-9).double().mean() < 1  # most at the border, none beyond
    assert (got - x).abs().max() <= 0.2 + 1e-12
    assert passes_per_image([held]) == (2, 2)


def test_the_loss_is_that_of_the_adversarial_images(net: nn.Sequential) -> None:
    x, y = torch.rand(6, 1, 5, 5, dtype=torch.float64), torch.arange(6) % 3
    plain = Objective(copy.deepcopy(net))(x, y, KEY)[1]["task"]
    FastAdversarialTraining(eps=0.2).attach(net, example=x, seed=0)
    assert Objective(net)(x, y, KEY)[1]["task"] > plain + 0.01


def test_says_what_can_happen_to_it_and_refuses_bad_values() -> None:
    assert any("Catastrophic overfitting" in note for note in CARD.notes)
    assert FastAdversarialTraining().step_size == pytest.approx(10 / 255)
    for fields in ({"eps": 0.0}, {"alpha": 0.0}, {"alpha": float("inf")}, {"eps": 2.0}):
        with pytest.raises(ParameterError, match="FastAdversarialTraining: eps"):
            FastAdversarialTraining(**fields)
