"""SPSA against a plain loop with torch's Adam, the corner of a linear net, and torchattacks."""

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import PGD, attack, spsa
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.spsa import SPSA
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.threats import Threat


def reference(net: nn.Module, x: Tensor, y: int, key: Tensor, *, eps: float, spec: SPSA) -> Tensor:
    """One image, one pair at a time."""
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=spec.step_size)

    def margin(point: Tensor) -> Tensor:
        z = net(point[None])[0].detach()
        return z[y] - torch.cat([z[:y], z[y + 1 :]]).max()

    for step in range(spec.steps):
        total = torch.zeros_like(x)
        for pair in range(spec.samples):
            u = seeding.uniform(seeding.fold(seeding.fold(key, step), pair), 0, x.shape)[0]
            v = torch.where(u < 0.5, -1.0, 1.0)
            here = x + delta.detach()
            rise = margin(here + spec.delta * v) - margin(here - spec.delta * v)
            total += rise / (2 * spec.delta) / v
        if spec.adam:
            delta.grad = total / spec.samples
            adam.step()
        else:
            delta.data -= spec.step_size * total.sign()
        delta.data = (x + delta.data.clamp(-eps, eps)).clamp(0, 1) - x
    return x + delta.detach()


@pytest.mark.parametrize("adam", [True, False])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, adam: bool) -> None:
    spec, eps = SPSA(steps=3, samples=19, delta=0.02, adam=adam, stop="never"), 0.03
    got = attack(net, x[3:6], y[3:6], spec, threat=Threat("linf", eps), seed=5)
    key = seeding.fold(seeding.keys(seeding.root(5, "attack:spsa"), torch.arange(3)), 0)
    want = [reference(net, x[3 + i], int(y[3 + i]), key[i : i + 1], eps=eps, spec=spec) for i in range(3)]
    off = (got.x_adv - torch.stack(want)).abs()
    assert (off < 1e-4).float().mean() > 0.99  # rounding decides the sign of a slope of nearly zero
    assert got.backward_passes.tolist() == [0] * 3
    assert got.forward_passes.tolist() == [2 + 3 * 2 * 19 + 2] * 3  # twice predicted, pairs, the point of steps 2 and 3


def test_the_estimate_is_unbiased_with_the_known_variance() -> None:
    """On a linear net an estimate is (v . g) v, whose values have mean g_i and variance ||g||^2 - g_i^2."""
    slope, n = torch.tensor([1.0, -2.0, 0.5, 3.0]), 4000
    x, zeros = torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.int64)
    goal, spec = Goal(zeros, zeros, zeros.bool()), SPSA(steps=9, samples=20)
    state = spec.start(x, goal, Ball("linf", torch.ones(n)), seeding.keys(0, torch.arange(n)))
    query = spec.ask(state)
    assert not query.gradient and len(query.x) == 2 * 16 * n
    logits = torch.stack([query.x.flatten(1) @ slope, torch.zeros(len(query.x))], dim=1)
    found = spec.tell(state, logits, None).total.flatten(1) / 16
    error = ((slope.square().sum() - slope.square()) / 16 / n).sqrt()
    assert ((found.mean(dim=0) - slope).abs() < 4.5 * error).all()
    assert ((found.var(dim=0) / (error**2 * n) - 1).abs() < 4.5 * (3 / n) ** 0.5).all()


@pytest.mark.parametrize("adam", [True, False])
def test_reaches_the_corner_of_a_linear_net(adam: bool) -> None:
    weight = torch.linspace(-1, 1, 27).sign() * (1 + torch.linspace(0, 1, 27))
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 2)).eval()
    net[1].weight.data, net[1].bias.data = torch.stack([weight, -weight]), torch.tensor([50.0, 0.0])
    x, y, eps = torch.full((5, 3, 3, 3), 0.5), torch.zeros(5, dtype=torch.int64), 0.1
    found = attack(net, x, y, SPSA(steps=16, samples=128, adam=adam), threat=Threat("linf", eps))
    at_corner = (found.x_adv - x + eps * weight.sign().reshape(3, 3, 3)).abs() < 1e-5
    assert at_corner.float().mean() > 0.9 and not found.success.any()
    assert (net(x).detach()[:, 0] - net(x).detach()[:, 1] - found.margin > 0.97 * 2 * eps * weight.abs().sum()).all()


def test_needs_no_gradient(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Cut(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return net(points.detach())

    threat, cut = Threat("linf", 0.1), Cut().eval()
    by_gradient = attack(cut, x[3:], y[3:], PGD(random_start=False), threat=threat)
    found = attack(cut, x[3:], y[3:], SPSA(steps=20, samples=32), threat=threat)
    assert not by_gradient.success.any() and found.success.float().mean() > 0.5
    assert found.passes["backward"] == 0


def test_breaks_as_many_as_torchattacks(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x, y = x[3:], y[3:]
    for eps in (0.02, 0.05):
        theirs = torchattacks.SPSA(net, eps=eps, nb_iter=8, nb_sample=64)(x, y)
        with torch.no_grad():
            want = net(theirs).argmax(dim=1) != y
        mine = attack(net, x, y, SPSA(steps=8), threat=Threat("linf", eps), stop="never")
        assert (mine.success == want).float().mean() > 0.9
        assert abs(mine.success.float().mean() - want.float().mean()) < 0.1


def test_rows_do_not_depend_on_their_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat, spec, rows = Threat("linf", 0.04), SPSA(steps=3, samples=20), torch.randperm(10)
    whole = attack(net, x[3:13], y[3:13], spec, threat=threat)
    parts = attack(net, x[3:13][rows], y[3:13][rows], spec, threat=threat, rows=rows, batch_size=3)
    assert torch.equal(whole.success[rows], parts.success)
    kept = ~parts.success
    torch.testing.assert_close(whole.x_adv[rows][kept], parts.x_adv[kept], rtol=0, atol=1e-3)


def test_how_many_pairs_are_asked_at_once_changes_nothing(
    net: nn.Module, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threat, spec = Threat("linf", 0.04), SPSA(steps=3, samples=20, stop="never")
    once = attack(net, x[3:9], y[3:9], spec, threat=threat)
    monkeypatch.setattr(spsa, "PAIRS", 7)
    often = attack(net, x[3:9], y[3:9], spec, threat=threat)
    torch.testing.assert_close(once.x_adv, often.x_adv, rtol=0, atol=1e-3)
    assert once.passes == often.passes


def test_targets_are_hit(net: nn.Module, x: Tensor, y: Tensor) -> None:
    targets, threat = (y + 2) % 5, Threat("linf", 0.15)
    found = attack(net, x[3:], y[3:], SPSA(steps=30, samples=16), threat=threat, targets=targets[3:])
    assert found.success.any() and (norm_of(found.x_adv - x[3:], norm="linf") <= 0.15 + 1e-6).all()
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(dim=1) == targets[3:], found.success)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": 0}, "steps and samples must be at least 1; got 100 and 0"),
        ({"delta": 0.0}, "delta and step_size must be above 0; got 0.0 and 0.01"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SPSA(**wrong)  # type: ignore[arg-type]
