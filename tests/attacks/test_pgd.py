"""PGD against a plain loop over single images, and against torchattacks."""

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import PGD, attack
from hardy.attacks.norms import norm_of, random_start
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat


def reference(net: nn.Module, x: Tensor, y: int, start: Tensor, *, threat: Threat, steps: int, step: float) -> Tensor:
    """One image, line by line: step, ball, box."""
    x_adv = (x + start).clamp(0, 1)
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(leaf[None]), torch.tensor([y])), leaf)
        g = g.sign() if threat.norm == "linf" else g / g.norm()
        delta = x_adv + step * g - x
        if threat.norm == "linf":
            delta = delta.clamp(-threat.eps, threat.eps)
        elif delta.norm() > threat.eps:
            delta = delta * threat.eps / delta.norm()
        x_adv = (x + delta).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("step_size", [None, 0.02])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, step_size: float | None) -> None:
    x, y, threat, steps = x[3:15], y[3:15], Threat(norm, 0.05 if norm == "linf" else 0.4), 6
    got = attack(net, x, y, PGD(steps=steps, step_size=step_size), threat=threat, seed=5, stop="never")
    key = seeding.fold(seeding.keys(seeding.root(5, "attack:pgd"), torch.arange(12)), 0)
    start = random_start(key, 0, (3, 6, 6), eps=torch.full((12,), threat.eps), norm=norm)
    step = 2.5 * threat.eps / steps if step_size is None else step_size
    want = [reference(net, x[i], int(y[i]), start[i], threat=threat, steps=steps, step=step) for i in range(12)]
    torch.testing.assert_close(got.x_adv, torch.stack(want), rtol=0, atol=2e-5)
    assert got.backward_passes.tolist() == [steps] * 12


@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_torchattacks(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, targeted: bool) -> None:
    x, y, steps = x[3:], y[3:], 7
    eps, step = (0.05, 0.011) if norm == "linf" else (0.5, 0.15)
    other = (
        torchattacks.PGD(net, eps=eps, alpha=step, steps=steps, random_start=False)
        if norm == "linf"
        else torchattacks.PGDL2(net, eps=eps, alpha=step, steps=steps, random_start=False)
    )
    targets = (y + 1) % 5 if targeted else None
    if targeted:
        other.set_mode_targeted_by_label(quiet=True)
    want = other(x, y if targets is None else targets)
    mine = PGD(steps=steps, step_size=step, random_start=False)
    got = attack(net, x, y, mine, threat=Threat(norm, eps), targets=targets, stop="never")
    torch.testing.assert_close(got.x_adv, want, rtol=0, atol=5e-6)
    reached = net(want).argmax(dim=1) != y if targets is None else net(want).argmax(dim=1) == targets
    assert torch.equal(got.success, reached)


def test_leaving_early_breaks_at_least_what_the_last_point_breaks(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm
) -> None:
    threat = Threat(norm, 0.03 if norm == "linf" else 0.2)
    early, late = (attack(net, x, y, PGD(stop=stop), threat=threat) for stop in ("first_success", "never"))
    assert (early.success | ~late.success).all()
    assert early.passes["backward"] < late.passes["backward"]
    assert (norm_of(early.x_adv - x, norm=norm) <= threat.eps + 1e-6).all()


def test_restarts_differ_and_add_successes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("linf", 0.02)
    one, many = (attack(net, x, y, PGD(steps=2, restarts=r), threat=threat) for r in (1, 8))
    assert (many.success | ~one.success).all() and many.success.sum() > one.success.sum()
    robust = ~many.success
    assert (many.margin <= one.margin + 1e-5)[robust].all() and (many.margin < one.margin - 1e-5)[robust].any()


def test_targeted_restarts_aim_at_the_most_likely_wrong_classes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("linf", 0.2)
    found = attack(net, x[3:], y[3:], PGD(targeted=True, steps=5), threat=threat, stop="never")
    with torch.no_grad():
        runner_up = net(x[3:]).scatter(1, y[3:, None], -torch.inf).argmax(dim=1)
        assert (net(found.x_adv).argmax(dim=1) == runner_up).float().mean() > 0.8
    assert found.success.float().mean() > 0.8


def test_more_targets_than_wrong_classes_are_not_tried(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = attack(net, x[3:6], y[3:6], PGD(targeted=True, restarts=50, steps=1), threat=Threat("linf", 1e-4))
    assert found.backward_passes.tolist() == [4] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps and restarts must be at least 1"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"l1_share": 0.0}, "l1_share must be in"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        PGD(**wrong)  # type: ignore[arg-type]


def test_l1_steps_move_the_steepest_values_that_the_box_lets_move() -> None:
    w = torch.tensor([4.0, -3.0, 2.0, 1.0, 0.5, 0.1, 0.1, 0.1])
    x = torch.tensor([1.0, 0.5, 0.95, 0.5, 0.5, 0.5, 0.5, 0.5]).reshape(1, 1, 2, 4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-w, w]))  # type: ignore[union-attr, operator]
        net[1].bias.copy_(torch.tensor([100.0, 0.0]))  # type: ignore[union-attr, operator]
    made = PGD(steps=1, step_size=0.4, random_start=False, l1_share=0.25)
    found = attack(net, x, torch.tensor([0]), made, threat=Threat("l1", 1.0), stop="never")
    moved = (
        found.x_adv - x
    ).flatten()  # two of eight: not the first, which is at the border; the third as far as it can
    torch.testing.assert_close(moved, torch.tensor([0, -0.2, 0.05, 0, 0, 0, 0, 0]))
    made = PGD(steps=100, l1_share=0.25)
    found = attack(net, x, torch.tensor([0]), made, threat=Threat("l1", 1.0), stop="never")
    rise = float((found.x_adv - x).flatten() @ w)
    best = 3 * 0.5 + 2 * 0.05 + 1 * 0.45  # the steepest first, each to the border, until the budget is spent
    assert 0.95 * best < rise <= best + 1e-5


def test_l1_breaks_more_with_more_budget_and_stays_inside(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = [attack(net, x, y, PGD(), threat=Threat("l1", eps)).success for eps in (0.2, 0.8, 3.0)]
    assert broken[0].sum() < broken[1].sum() < broken[2].sum()
    assert (broken[2] | ~broken[0]).all()
    found = attack(net, x, y, PGD(), threat=Threat("l1", 3.0))
    assert (norm_of(found.x_adv - x, norm="l1") <= 3 * (1 + 1e-6)).all()
