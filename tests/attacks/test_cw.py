"""CW against a plain loop with torch's Adam, the closed-form optimum of an affine net, and Foolbox."""

import copy
import math

import pytest
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.attacks.cw import CW
from hardy.attacks.fmn import FMN
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.threats import Threat

FAR = Threat("l2", 20.0)  # more than the diagonal of the box: the ball decides nothing


def affine(classes: int = 3) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """An affine net, gray images far from the box, labels, and the distance to the nearest face of the class."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()
    weight = torch.randn(classes, 48, generator=g)
    net[1].weight.data, net[1].bias.data = weight, -weight.sum(dim=1) / 2
    x = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=g)
    z = net(x).detach()
    y = z.argmax(dim=1)
    gap = z.gather(1, y[:, None]) - z
    length = (weight[y][:, None] - weight).norm(dim=2)
    return net, x, y, torch.where(length > 0, gap / length, torch.inf).amin(dim=1)


def drive(spec: CW, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run all rows together without the engine, in the dtype of ``x``: float64 rounds too little to turn a verdict."""
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    threat = Ball("l2", torch.full_like(x[:, 0, 0, 0], 20.0))
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


def reference(net: nn.Module, x: Tensor, y: int, spec: CW) -> tuple[Tensor, float]:
    """One image, as the authors' code does a batch of one."""
    w0 = torch.atanh((2 * x - 1) * 0.999999)
    centre = (torch.tanh(w0) + 1) / 2
    c, low, high, best, nearest = spec.first_c, 0.0, math.inf, x, math.inf
    for search in range(spec.searches):
        if search == spec.searches - 1 and spec.searches >= 10:
            c = min(high, 1e10)
        w = w0.clone().requires_grad_()
        adam = torch.optim.Adam([w], lr=spec.step_size)
        found, checked = False, math.inf
        for step in range(spec.steps):
            point = (torch.tanh(w) + 1) / 2
            z = net(point[None])[0]
            margin = z[y] - torch.cat([z[:y], z[y + 1 :]]).max()
            loss = (point - centre).square().sum() + c * (margin + spec.confidence).clamp(min=0)
            if margin <= -max(spec.confidence, 1e-5 * float(z.detach().abs().max())):
                found, distance = True, float((point - x).detach().norm())
                if distance < nearest:
                    best, nearest = point.detach(), distance
            adam.zero_grad()
            loss.backward()
            adam.step()
            if spec.abort_early and step % (spec.steps // 10) == 0:
                if loss > 0.9999 * checked:
                    break
                checked = float(loss.detach())
        low, high = (low, min(high, c)) if found else (max(low, c), high)
        c = (low + high) / 2 if high < math.inf else 10 * c
    return best, nearest


@pytest.mark.parametrize(
    "spec",
    [CW(steps=16, searches=3, first_c=0.1, step_size=0.02), CW(steps=20, searches=10, step_size=0.05, confidence=0.05)],
)
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, spec: CW) -> None:
    net, x, y = copy.deepcopy(net).double(), x[3:6].double(), y[3:6]
    got = drive(spec, net, x, y)
    for i in range(3):
        best, nearest = reference(net, x[i], int(y[i]), spec)
        assert nearest < math.inf
        torch.testing.assert_close(got[i], best, rtol=0, atol=1e-7)


def test_finds_the_boundary_of_an_affine_net() -> None:
    net, x, y, optimum = affine(classes=2)
    found = attack(net, x, y, CW(steps=80, searches=3, first_c=0.1, abort_early=False), threat=FAR)
    length = norm_of(found.x_adv - x, norm="l2")
    assert found.success.all() and (length >= optimum * (1 - 1e-5)).all()
    assert (length <= 1.02 * optimum + 4e-3).all()


def test_hits_targets() -> None:
    net, x, y, nearest = affine()
    spec = CW(steps=30, searches=2, first_c=1.0, step_size=0.03)
    found = attack(net, x, y, spec, threat=FAR, targets=(y + 1) % 3)
    assert found.success.all() and torch.equal(net(found.x_adv).argmax(dim=1), (y + 1) % 3)
    assert (norm_of(found.x_adv - x, norm="l2") >= nearest * (1 - 1e-5)).all()


def test_confidence_asks_for_a_margin() -> None:
    net, x, y, optimum = affine(classes=2)
    spec = CW(steps=60, searches=3, first_c=0.3, step_size=0.02, confidence=3.0)
    found = attack(net, x, y, spec, threat=FAR)
    assert found.success.all() and (found.margin <= -3 + 1e-5).all()
    weight = net[1].weight[0] - net[1].weight[1]
    ratio = norm_of(found.x_adv - x, norm="l2") / (optimum + 3 / weight.detach().norm())
    assert ratio.min() > 1 - 1e-5 and ratio.max() < 1.1


def test_a_row_alone_equals_the_row_in_a_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    spec, rows = CW(steps=10, searches=4, first_c=0.1, step_size=0.03), torch.randperm(12)
    whole = attack(net, x[3:15], y[3:15], spec, threat=FAR)
    parts = attack(net, x[3:15][rows], y[3:15][rows], spec, threat=FAR, rows=rows, batch_size=5)
    assert torch.equal(whole.success[rows], parts.success)
    torch.testing.assert_close(whole.x_adv[rows], parts.x_adv, rtol=0, atol=1e-3)


def test_what_lies_outside_the_ball_comes_back_at_its_border() -> None:
    net, x, y, optimum = affine()
    eps = float(optimum.median())
    found = attack(net, x, y, CW(steps=60, searches=3, first_c=0.03, step_size=0.02), threat=Threat("l2", eps))
    assert (found.success <= (optimum <= eps)).all()
    lost = ~found.success
    torch.testing.assert_close(norm_of(found.x_adv - x, norm="l2")[lost], torch.full_like(optimum[lost], eps))
    assert found.margin.isfinite().all() and 0 < int(lost.sum()) < 12


def test_the_search_narrows_c_down() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    goal, spec = Goal(zeros, zeros, zeros.bool()), CW(steps=1, searches=5, first_c=1.0, abort_early=False)
    x = torch.full((2, 1, 2, 2), 0.5)
    state, seen = spec.start(x, goal, Ball("l2", torch.ones(2)), zeros), []
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # the first row is fooled, the second never
    while not spec.finished(state).all():
        seen.append(state.c.tolist())
        assert spec.ask(state).gradient
        state = spec.tell(state, logits, torch.zeros_like(x))
    assert seen == [[1, 1], [0.5, 10], [0.25, 100], [0.125, 1000], [0.0625, 10000]]


@pytest.mark.slow
def test_the_defaults_find_the_boundary_of_an_affine_net_to_three_percent() -> None:
    net, x, y, optimum = affine(classes=2)
    found = attack(net, x, y, CW(), threat=FAR)
    length = norm_of(found.x_adv - x, norm="l2")
    assert found.success.all() and (length <= 1.03 * optimum + 2e-4).all()


@pytest.mark.slow
def test_gets_as_near_as_fmn_and_nearer_than_torchattacks_on_digits() -> None:
    """A net of 97 % on the embedded digits; torchattacks has one c and no search."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
        adam = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(15):
            for batch in torch.randperm(1500).split(64):
                adam.zero_grad()
                nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
                adam.step()
    x, y = x[1500:1530], y[1500:1530]
    cw = attack(net.eval(), x, y, CW(), threat=FAR)
    fmn = attack(net, x, y, FMN(), threat=FAR)
    theirs = torchattacks.CW(net, c=1, steps=1000)(x, y)
    fooled = net(theirs).argmax(dim=1) != y
    right = cw.clean_correct
    mine, other = (norm_of(found.x_adv - x, norm="l2")[right] for found in (cw, fmn))
    assert cw.success.all() and fmn.success.all() and right.float().mean() > 0.9
    assert abs(mine.median() / other.median() - 1) < 0.02 and abs(mine.mean() / other.mean() - 1) < 0.03
    assert (mine <= 1.02 * norm_of(theirs - x, norm="l2")[right])[fooled[right]].float().mean() > 0.9


@pytest.mark.parametrize("abort_early", [False, True])
def test_agrees_with_foolbox(net: nn.Module, x: Tensor, y: Tensor, abort_early: bool) -> None:
    foolbox = pytest.importorskip("foolbox")
    x, y = x[3:15], y[3:15]
    theirs = foolbox.attacks.L2CarliniWagnerAttack(
        steps=50, binary_search_steps=5, stepsize=0.02, initial_const=0.1, abort_early=abort_early
    )
    judged = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    single = [theirs.run(judged, x[i : i + 1], foolbox.criteria.Misclassification(y[i : i + 1])) for i in range(12)]
    mine = attack(net, x, y, CW(steps=50, searches=5, step_size=0.02, first_c=0.1, abort_early=abort_early), threat=FAR)
    want, got = (norm_of(found - x, norm="l2") for found in (torch.cat(single), mine.x_adv))
    assert mine.success.all()
    torch.testing.assert_close(got, want, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps and searches must be at least 1; got 0 and 9"),
        ({"first_c": 0.0}, "step_size and first_c must be above 0; got 0.01 and 0.0"),
        ({"confidence": -1.0}, "confidence must be at least 0 logits; got -1.0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        CW(**wrong)  # type: ignore[arg-type]
