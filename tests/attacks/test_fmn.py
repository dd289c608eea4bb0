"""FMN against a plain loop, closed-form optima of affine nets in and at the border of the box, and Foolbox."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.attacks.fmn import FMN
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat


def far(norm: Norm) -> Threat:
    """More than the box: the ball decides nothing."""
    return Threat(norm, 1.0 if norm == "linf" else 20.0)


def affine(x: Tensor, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of two classes with boundary near gray, its labels of ``x``, and the direction away from class 0."""
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2)).eval()
    weight = torch.randn(2, x[0].numel(), generator=g)
    net[1].weight.data, net[1].bias.data = weight, -weight.sum(dim=1) / 2
    return net, net(x).detach().argmax(dim=1), weight[1] - weight[0]


def drive(spec: FMN, net: nn.Module, x: Tensor, y: Tensor, *, norm: Norm) -> Tensor:
    """Run all rows together without the engine, in the dtype of ``x``: float64 rounds too little to turn a verdict."""
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    threat = Ball(norm, torch.full_like(x[:, 0, 0, 0], 20.0))
    state = spec.start(x, goal, threat, torch.zeros_like(y))
    out, done = x, torch.zeros_like(y, dtype=torch.bool)
    while not done.all():
        query = spec.ask(state)
        leaf = query.x.clone().requires_grad_()
        z = net(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, goal).sum(), leaf)
        state = spec.tell(state, z.detach(), g)
        out = torch.where(done[:, None, None, None], out, spec.result(state))
        done |= spec.finished(state)
    return out


def reference(net: nn.Module, x: Tensor, y: int, norm: Norm, spec: FMN) -> tuple[Tensor, float]:
    """One image, line by line."""
    order, dual = (math.inf, 1) if norm == "linf" else (2, 2)
    delta, radius, best, nearest = torch.zeros_like(x), math.inf, torch.zeros_like(x), math.inf
    worst = torch.maximum(x, 1 - x).flatten().norm(order)
    for i in range(spec.steps):
        cosine = (1 + math.cos(math.pi * i / spec.steps)) / 2
        alpha = spec.step_size / 100 + (spec.step_size - spec.step_size / 100) * cosine
        gamma = 0.001 + (spec.gamma - 0.001) * cosine
        leaf = (x + delta).requires_grad_()
        z = net(leaf[None])[0]
        margin = torch.cat([z[:y], z[y + 1 :]]).max() - z[y]
        (g,) = torch.autograd.grad(margin, leaf)
        length = float(delta.flatten().norm(order))
        if margin >= 1e-5 * z.abs().max():
            if length <= nearest:
                best, nearest = delta, length
            radius = min(radius * (1 - gamma), nearest)
        elif nearest < math.inf:
            radius = radius * (1 + gamma)
        else:
            radius = length + float((margin.abs() + 2e-5 * z.abs().max()).detach() / g.flatten().norm(dual))
        radius = min(radius, float(worst))
        delta = (x + delta + alpha * g / g.norm()).clamp(0, 1) - x
        delta = delta.clamp(-radius, radius) if norm == "linf" else delta * min(1, radius / float(delta.norm()))
    return best, nearest


@pytest.mark.parametrize("spec", [FMN(steps=30), FMN(steps=12, step_size=0.3, gamma=0.2)])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, spec: FMN) -> None:
    net, x, y = copy.deepcopy(net).double(), x[3:11].double(), y[3:11]
    got = drive(spec, net, x, y, norm=norm)
    for i in range(8):
        best, nearest = reference(net, x[i], int(y[i]), norm, spec)
        assert nearest < math.inf
        torch.testing.assert_close(got[i] - x[i], best, rtol=0, atol=1e-7)


def test_finds_the_boundary_of_an_affine_net(norm: Norm) -> None:
    x = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    net, y, away = affine(x)
    z = net(x).detach()
    optimum = (z[:, 0] - z[:, 1]).abs() / away.norm(p=1 if norm == "linf" else 2)
    found = attack(net, x, y, FMN(), threat=far(norm))
    ratio = norm_of(found.x_adv - x, norm=norm) / optimum
    assert found.success.all() and ratio.min() > 1 - 1e-5 and ratio.max() < 1.002


def test_finds_the_boundary_where_half_the_pixels_cannot_move() -> None:
    """In black-and-white images a step along the gradient leaves the box at about half the pixels."""
    x = (torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    net, y, away = affine(x)
    z = net(x).detach()
    push = torch.where(y == 0, 1.0, -1.0)[:, None] * away
    free = torch.where(x.flatten(1) == 0, push > 0, push < 0)  # the optimum moves these along the gradient
    optimum = (z[:, 0] - z[:, 1]).abs() / (push * free).norm(dim=1)
    found = attack(net, x, y, FMN(), threat=far("l2"))
    ratio = norm_of(found.x_adv - x, norm="l2") / optimum
    assert found.success.all() and ratio.min() > 1 - 1e-5 and ratio.max() < 1.01


def test_results_have_a_margin_that_other_batch_shapes_keep() -> None:
    x = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    net, y, _ = affine(x)
    found = attack(net, x, y, FMN(), threat=far("l2"))
    largest = net(found.x_adv).detach().abs().amax(dim=1)
    assert (found.margin <= -0.9e-5 * largest).all()


def test_the_nearest_point_is_kept_and_never_gets_farther(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    x, y, spec = x[3:11], y[3:11], FMN(steps=25)
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    state = spec.start(x, goal, Ball(norm, torch.full((8,), 20.0)), torch.arange(8))
    while not spec.finished(state).all():
        leaf = spec.ask(state).x.clone().requires_grad_()
        z = net(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, goal).sum(), leaf)
        told = spec.tell(state, z.detach(), g)
        assert (told.nearest <= state.nearest).all()
        assert told.x_adv.min() >= 0 and told.x_adv.max() <= 1
        assert (norm_of(told.x_adv - x, norm=norm) <= told.radius + 1e-5).all()
        state = told
    torch.testing.assert_close(norm_of(spec.result(state) - x, norm=norm), state.nearest)


def test_a_row_alone_equals_the_row_in_a_batch(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    spec, rows = FMN(steps=15), torch.randperm(20)
    whole = attack(net, x[3:23], y[3:23], spec, threat=far(norm))
    parts = attack(net, x[3:23][rows], y[3:23][rows], spec, threat=far(norm), rows=rows, batch_size=7)
    assert torch.equal(whole.success[rows], parts.success)
    torch.testing.assert_close(whole.x_adv[rows], parts.x_adv, rtol=0, atol=1e-3)


def test_a_net_without_gradients_moves_nothing(norm: Norm) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    net[1].weight.data.zero_()
    net[1].bias.data = torch.tensor([1.0, 0.0])
    x, y = torch.full((2, 3, 4, 4), 0.25), torch.zeros(2, dtype=torch.int64)
    found = attack(net, x, y, FMN(steps=3), threat=Threat(norm, 0.5))
    assert torch.equal(found.x_adv, x) and not found.success.any() and found.margin.tolist() == [1, 1]


def test_equals_foolbox_in_linf(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Foolbox's l2 version does not project (it divides the norm by itself), so only linf can be compared."""
    foolbox = pytest.importorskip("foolbox")
    x, y = x[3:], y[3:]
    judged = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.LInfFMNAttack(steps=50).run(judged, x, foolbox.criteria.Misclassification(y))
    mine = attack(net, x, y, FMN(steps=50), threat=far("linf"))
    want, got = (norm_of(found - x, norm="linf") for found in (theirs, mine.x_adv))
    assert mine.success.all()
    assert ((got / want - 1).abs() < 1e-3).float().mean() > 0.95 and abs(got.median() / want.median() - 1) < 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"step_size": 0.0}, "step_size must be above 0; got 0.0"),
        ({"gamma": 1.0}, r"gamma must be in \(0, 1\); got 1.0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        FMN(**wrong)  # type: ignore[arg-type]
