"""VMI-FGSM against a plain loop with the same draws, torchattacks in distribution and a closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import attack
from hardy.attacks._momentum import Path as Walk
from hardy.attacks.goal import Goal
from hardy.attacks.state import Ball, concat, select
from hardy.attacks.vmi_fgsm import VMIFGSM
from hardy.errors import ParameterError
from hardy.threats import Threat


def goal_of(y: Tensor) -> Goal:
    return Goal(label=y, target=y, must_hit=torch.zeros_like(y, dtype=torch.bool))


def move(spec: VMIFGSM, net: nn.Module, state: Walk, y: Tensor) -> Walk:
    """One round, without the engine."""
    query = spec.ask(state)
    leaf = query.x.clone().requires_grad_()
    z = net(leaf)
    (g,) = torch.autograd.grad(spec.loss(z, select(goal_of(y), query.row)).sum(), leaf)
    return spec.tell(state, z.detach(), g)


def begin(spec: VMIFGSM, x: Tensor, y: Tensor, eps: float, key: Tensor) -> Walk:
    return spec.start(x, goal_of(y), Ball("linf", torch.full((len(x),), eps, dtype=torch.float64)), key)


def path(spec: VMIFGSM, net: nn.Module, x: Tensor, y: Tensor, *, eps: float, key: Tensor) -> list[Tensor]:
    """All points in float64, without the engine."""
    state, out = begin(spec, x, y, eps, key), []
    while not spec.finished(state).all():
        state = move(spec, net, state, y)
        out.append(spec.result(state))
    return out


@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, decay: float) -> None:
    exact, x, y, eps, spec = (
        copy.deepcopy(net).double(),
        x[3:8].double(),
        y[3:8],
        0.08,
        VMIFGSM(neighbors=4, decay=decay),
    )
    key = torch.arange(5) * 17
    got = torch.stack(path(spec, exact, x, y, eps=eps, key=key))

    def gradient(point: Tensor, label: Tensor) -> Tensor:
        leaf = point.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(exact(leaf[None]), label[None]), leaf)[0]

    for i in range(5):
        x_adv, g, v = x[i], torch.zeros_like(x[i]), torch.zeros_like(x[i])
        for t in range(10):
            own, near = gradient(x_adv, y[i]), torch.zeros_like(x[i])
            for j in range(4):
                u = seeding.uniform(seeding.fold(key[i : i + 1], t), j, (3, 6, 6))[0]
                near = near + gradient(x_adv + 1.5 * eps * (2 * u - 1), y[i]) / 4
            g = decay * g + (own + v) / (own + v).abs().mean()
            v = near - own
            x_adv = (x[i] + (x_adv + eps / 10 * g.sign() - x[i]).clamp(-eps, eps)).clamp(0, 1)
            torch.testing.assert_close(got[t, i], x_adv, rtol=0, atol=1e-12)


def test_neighbors_fill_their_cube_and_change_with_row_and_step() -> None:
    spec, x, y = VMIFGSM(), torch.full((8, 1, 5, 5), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    state, seen = begin(spec, x, y, 0.1, torch.arange(8)), []
    for _ in range(10):
        query = spec.ask(state)
        assert query.row.tolist() == [i for i in range(8) for _ in range(21)]
        points = query.x.reshape(8, 21, 25)
        assert torch.equal(points[:, 0], state.x_adv.flatten(1))
        seen.append((points[:, 1:] - points[:, :1]) / 0.15)
        state = spec.tell(state, torch.zeros(168, 2), torch.zeros_like(query.x))
    offset = torch.stack(seen)  # steps, rows, neighbors, pixels
    assert offset.abs().max() <= 1 and offset.abs().max() > 0.999
    assert abs(offset.mean()) < 4 * (1 / 3 / offset.numel()) ** 0.5  # variance of a uniform draw: 1/3
    assert abs(offset.var() - 1 / 3) < 4 * (4 / 45 / offset.numel()) ** 0.5  # of its square: 1/5 - 1/9
    for axis in range(4):
        other = offset.roll(1, dims=axis)
        assert abs((offset * other).mean()) < 4 * (1 / 9 / offset.numel()) ** 0.5


def test_agrees_with_torchattacks_in_distribution(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The two draw different neighbours: means over seeds of each image's final loss differ by chance only."""
    exact, x, y, runs = copy.deepcopy(net).double(), x[3:23].double(), y[3:23], 16
    other = torchattacks.VMIFGSM(exact, eps=0.3, alpha=0.05, steps=5, decay=1.0, N=3, beta=1.5)
    spec, losses = VMIFGSM(steps=5, step_size=0.05, neighbors=3), {"mine": [], "theirs": []}
    with torch.random.fork_rng(), torch.no_grad():
        for seed in range(runs):
            with torch.enable_grad():
                torch.manual_seed(seed)
                theirs = other(x, y)
                mine = path(spec, exact, x, y, eps=0.3, key=seeding.keys(seed, torch.arange(len(x))))[-1]
            for name, points in (("mine", mine), ("theirs", theirs)):
                losses[name].append(F.cross_entropy(exact(points), y, reduction="none"))
    a, b = torch.stack(losses["mine"]).mean(dim=1), torch.stack(losses["theirs"]).mean(dim=1)  # one number per seed
    error = float(((a.var() + b.var()) / runs).sqrt())
    assert error > 0 and abs(float(a.mean() - b.mean())) < 4 * error


def test_reaches_the_corner_on_a_linear_net() -> None:
    """The gradients of the neighbours differ in length only."""
    head = nn.Linear(12, 2).eval()
    net, x = nn.Sequential(nn.Flatten(), head).eval(), torch.full((4, 3, 2, 2), 0.5)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    w = (head.weight[1 - y] - head.weight[y]).detach().reshape(x.shape)
    found = attack(net, x, y, VMIFGSM(), threat=Threat("linf", 0.1), stop="never")
    torch.testing.assert_close(found.x_adv, x + 0.1 * w.sign(), rtol=0, atol=1e-6)
    assert found.backward_passes.tolist() == [10 * 21] * 4


class Bright(nn.Module):
    """Class 1 where a pixel is above a threshold; the gradient points to the mean."""

    def forward(self, x: Tensor) -> Tensor:
        mean, top = x.mean(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(mean), mean - mean.detach() + torch.where(top > 0.62, 1.0, -1.0)], dim=1)


def test_what_fools_at_a_neighbor_outside_the_ball_is_no_success() -> None:
    net, x, y = Bright().eval(), torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    seen: list[Tensor] = []
    net.register_forward_hook(lambda *call: seen.append(call[2].detach().argmax(dim=1)))
    found = attack(net, x, y, VMIFGSM(), threat=Threat("linf", 0.1))
    assert torch.cat(seen).any() and not found.success.any()
    torch.testing.assert_close(found.x_adv, x + 0.1)


def test_rows_of_different_age_share_a_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    exact, x, y, spec = copy.deepcopy(net).double(), x[3:7].double(), y[3:7], VMIFGSM(steps=4, neighbors=3)
    key = torch.tensor([5, 6, 7, 8])
    alone = path(spec, exact, x, y, eps=0.1, key=key)[-1]
    old = begin(spec, x[:2], y[:2], 0.1, key[:2])
    for _ in range(2):
        old = move(spec, exact, old, y[:2])
    both = concat([begin(spec, x[2:], y[2:], 0.1, key[2:]), old])
    for _ in range(2):
        both = move(spec, exact, both, torch.cat([y[2:], y[:2]]))
    assert spec.finished(both).tolist() == [False, False, True, True]
    torch.testing.assert_close(spec.result(both)[2:], alone[:2], rtol=0, atol=1e-12)
    young = select(both, torch.tensor([0, 1]))
    for _ in range(2):
        young = move(spec, exact, young, y[2:])
    torch.testing.assert_close(spec.result(young), alone[2:], rtol=0, atol=1e-12)


def test_verdicts_do_not_depend_on_batches(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat, order, spec = Threat("linf", 0.02), torch.randperm(50), VMIFGSM(steps=5, neighbors=3)
    whole = attack(net, x, y, spec, threat=threat)
    parts = attack(net, x[order], y[order], spec, threat=threat, rows=order, batch_size=7)
    clear = whole.margin[order].abs() > 1e-5
    assert clear.sum() > 40 and torch.equal(whole.success[order][clear], parts.success[clear])
    again = attack(net, x, y, spec, threat=threat, seed=1, stop="never")
    assert not torch.equal(again.x_adv, attack(net, x, y, spec, threat=threat, stop="never").x_adv)


def test_defaults_are_published() -> None:
    assert VMIFGSM() == VMIFGSM(steps=10, step_size=None, decay=1.0, neighbors=20, beta=1.5, stop="first_success")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "VMIFGSM: steps must be at least 1"),
        ({"neighbors": 0}, "neighbors must be at least 1; got 0. Without any: MIFGSM"),
        ({"beta": 0.0}, "beta must be above 0 and finite"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        VMIFGSM(**wrong)  # type: ignore[arg-type]
