"""TRADES: loss and gradient of the formula in the paper, written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import ParameterError
from hardy.methods.trades import TRADES
from hardy.objective import Objective

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(5))
SPEC = TRADES(beta=3.0, eps=0.1, steps=3, step_size=0.05)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    conv = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus(), nn.AvgPool2d(3))
    net = nn.Sequential(*conv, nn.Flatten(), nn.Linear(32, 4)).double()
    net(3 * torch.rand(16, 3, 6, 6, dtype=torch.float64))
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(5) % 4


def divergence(p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (p.log() - log_q)).sum()


def searched(net: nn.Module, x: Tensor, key: Tensor) -> Tensor:
    net = copy.deepcopy(net).eval()
    clean = net(x).softmax(1).detach()
    x_adv = x + 0.001 * seeding.normal(key, 0, x.shape[1:])
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(divergence(clean, net(x_adv).log_softmax(1)), x_adv)
        moved = x_adv.detach() + 0.05 * g.sign()
        x_adv = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
    return x_adv


def test_loss_and_gradient_are_those_of_the_formula(x: Tensor, y: Tensor) -> None:
    model = make()
    reference = copy.deepcopy(model)
    held = SPEC.attach(model, example=x, seed=0).insert
    clean = reference(x)
    x_adv = searched(reference, x, seeding.fold(KEY, held.root))  # the batch norm has seen the clean pass
    assert (x_adv - x).abs().max() > 0.09
    moved = reference(x_adv)
    task, term = F.cross_entropy(clean, y), 3 * divergence(clean.softmax(1), moved.log_softmax(1)) / 5
    (task + term).backward()
    _, losses = Objective(model)(x, y, KEY)
    assert list(losses) == ["task", "trades"] and losses["trades"] > 0.01
    torch.testing.assert_close(losses["task"], task, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses["trades"], term, rtol=1e-9, atol=1e-12)
    (losses["task"] + losses["trades"]).backward()
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(model[1].running_var, reference[1].running_var)
    assert int(model[1].num_batches_tracked) == int(reference[1].num_batches_tracked)


def test_under_autocast_the_weights_get_the_gradients_of_full_precision(x: Tensor, y: Tensor) -> None:
    grads = []
    for autocast in (False, True):
        model = make().float()
        SPEC.attach(model, example=x.float(), seed=0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            _, losses = Objective(model)(x.float(), y, KEY)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert grads[0].shape == grads[1].shape
    assert F.cosine_similarity(grads[0], grads[1], dim=0) > 0.95


def test_weight_0_is_the_plain_loss_and_bad_ones_are_refused(x: Tensor, y: Tensor) -> None:
    model = make()
    TRADES(beta=0.0, steps=1).attach(model, example=x, seed=0)
    assert Objective(model)(x, y, KEY)[1]["trades"] == 0
    with pytest.raises(ParameterError, match="TRADES: beta must be in"):
        TRADES(beta=-1.0)
