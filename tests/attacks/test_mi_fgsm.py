"""MI-FGSM against a plain loop, torchattacks and closed forms; what momentum does for transfer."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hardy.attacks import FGSM, Noise, attack
from hardy.attacks.goal import Goal
from hardy.attacks.mi_fgsm import MIFGSM
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball, concat, select
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat


def away(y: Tensor) -> Goal:
    return Goal(label=y, target=y, must_hit=torch.zeros_like(y, dtype=torch.bool))


def ball(norm: Norm, eps: float, n: int) -> Ball:
    return Ball(norm, torch.full((n,), eps, dtype=torch.float64))


def path(spec: MIFGSM, net: nn.Module, x: Tensor, goal: Goal, threat: Ball) -> list[Tensor]:
    """All points in float64, without the engine."""
    state, out = spec.start(x, goal, threat, torch.arange(len(x))), []
    while not spec.finished(state).all():
        query = spec.ask(state)
        leaf = query.x.clone().requires_grad_()
        z = net(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, select(goal, query.row)).sum(), leaf)
        state = spec.tell(state, z.detach(), g)
        out.append(spec.result(state))
    return out


def reference(net: nn.Module, x: Tensor, y: int, *, norm: Norm, eps: float, steps: int, decay: float) -> list[Tensor]:
    """One image, line by line."""
    x_adv, g, out = x, torch.zeros_like(x), []
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf[None]), torch.tensor([y])), leaf)
        g = decay * g + grad / grad.abs().mean()
        step = g.sign() if norm == "linf" else g / g.norm()
        delta = x_adv + eps / steps * step - x
        if norm == "linf":
            delta = delta.clamp(-eps, eps)
        elif delta.norm() > eps:
            delta = delta * eps / delta.norm()
        x_adv = (x + delta).clamp(0, 1)
        out.append(x_adv)
    return out


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, decay: float) -> None:
    exact, x, y, eps = copy.deepcopy(net).double(), x[3:13].double(), y[3:13], 0.08 if norm == "linf" else 0.6
    got = path(MIFGSM(decay=decay), exact, x, away(y), ball(norm, eps, 10))
    for i in range(10):
        want = reference(exact, x[i], int(y[i]), norm=norm, eps=eps, steps=10, decay=decay)
        torch.testing.assert_close(torch.stack(got)[:, i], torch.stack(want), rtol=0, atol=1e-12)


@pytest.mark.parametrize("aimed", [False, True])
def test_equals_torchattacks(net: nn.Module, x: Tensor, y: Tensor, aimed: bool) -> None:
    exact, x, y, n = copy.deepcopy(net).double(), x[3:].double(), y[3:], len(x) - 3
    other = torchattacks.MIFGSM(exact, eps=0.05, alpha=0.011, steps=7, decay=0.9)
    goal = away(y)
    if aimed:
        other.set_mode_targeted_by_label(quiet=True)
        goal = Goal(label=y, target=(y + 1) % 5, must_hit=torch.ones(n, dtype=torch.bool))
    want = other(x, goal.target)
    got = path(MIFGSM(steps=7, step_size=0.011, decay=0.9), exact, x, goal, ball("linf", 0.05, n))[-1]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_engine_follows_the_same_path(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    eps = 0.05 if norm == "linf" else 0.4
    got = attack(net, x[3:], y[3:], MIFGSM(), threat=Threat(norm, eps), stop="never", batch_size=16)
    want = path(MIFGSM(), copy.deepcopy(net).double(), x[3:].double(), away(y[3:]), ball(norm, eps, len(x) - 3))[-1]
    torch.testing.assert_close(got.x_adv.double(), want, rtol=0, atol=1e-5)
    assert got.backward_passes.tolist() == [10] * (len(x) - 3)


def test_is_optimal_on_a_linear_net(norm: Norm) -> None:
    """The path is straight: into the corner (linf), to the farthest point along the weights (l2)."""
    head = nn.Linear(12, 2).eval()
    net, x = nn.Sequential(nn.Flatten(), head).eval(), torch.full((4, 3, 2, 2), 0.5)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    w = (head.weight[1 - y] - head.weight[y]).detach().reshape(x.shape)
    step = w.sign() if norm == "linf" else w / w.flatten(1).norm(dim=1)[:, None, None, None]
    found = attack(net, x, y, MIFGSM(), threat=Threat(norm, 0.1), stop="never")
    torch.testing.assert_close(found.x_adv, x + 0.1 * step, rtol=0, atol=1e-6)


def test_a_gradient_of_zero_neither_moves_nor_breaks() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    state = MIFGSM().start(
        x, away(torch.zeros(2, dtype=torch.int64)), Ball("linf", torch.full((2,), 0.1)), torch.arange(2)
    )
    state = MIFGSM().tell(state, torch.zeros(2, 3), torch.zeros_like(x))
    assert torch.equal(state.x_adv, x) and torch.equal(state.momentum, torch.zeros_like(x))


def test_rows_of_different_age_share_a_batch(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    exact, x, y, spec = copy.deepcopy(net).double(), x[3:7].double(), y[3:7], MIFGSM(steps=5)
    alone, goal, threat = path(spec, exact, x, away(y), ball(norm, 0.1, 4))[-1], away(y), ball(norm, 0.1, 4)

    def move(state: object, rows: list[int]) -> object:
        leaf = spec.ask(state).x.clone().requires_grad_()  # type: ignore[arg-type]
        z = exact(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, select(goal, torch.tensor(rows))).sum(), leaf)
        return spec.tell(state, z.detach(), g)  # type: ignore[arg-type]

    def start(rows: list[int]) -> object:
        i = torch.tensor(rows)
        return spec.start(x[i], select(goal, i), select(threat, i), i)

    old = move(move(start([2, 0]), [2, 0]), [2, 0])
    both = concat([old, start([3, 1])])
    for _ in range(3):
        both = move(both, [2, 0, 3, 1])
    assert spec.finished(both).tolist() == [True, True, False, False]  # type: ignore[arg-type]
    torch.testing.assert_close(spec.result(both)[:2], alone[[2, 0]], rtol=0, atol=1e-12)  # type: ignore[arg-type]
    young = select(both, torch.tensor([2, 3]))
    for _ in range(2):
        young = move(young, [3, 1])
    torch.testing.assert_close(spec.result(young), alone[[3, 1]], rtol=0, atol=1e-12)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    eps=st.floats(1e-3, 2),
    steps=st.integers(1, 6),
    size=st.floats(1e-3, 5),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_every_point_is_inside_ball_and_box(seed: int, eps: float, steps: int, size: float, norm: Norm) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 2, 3, 3, generator=draw).round(decimals=1)
    spec = MIFGSM(steps=steps, step_size=size)
    state = spec.start(x, away(torch.zeros(3, dtype=torch.int64)), Ball(norm, torch.full((3,), eps)), torch.arange(3))
    for _ in range(steps):
        state = spec.tell(state, torch.zeros(3, 2), torch.randn(3, 2, 3, 3, generator=draw))
        assert (norm_of(state.x_adv - x, norm=norm) <= eps * (1 + 1e-6) + 1e-6).all()
        assert state.x_adv.min() >= 0 and state.x_adv.max() <= 1


def test_verdicts_do_not_depend_on_batches(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat, order = Threat(norm, 0.02 if norm == "linf" else 0.15), torch.randperm(50)
    whole = attack(net, x, y, MIFGSM(), threat=threat)
    parts = attack(net, x[order], y[order], MIFGSM(), threat=threat, rows=order, batch_size=7)
    clear = whole.margin[order].abs() > 1e-5
    assert clear.sum() > 40 and torch.equal(whole.success[order][clear], parts.success[clear])


@pytest.fixture(scope="module")
def pair() -> tuple[list[nn.Module], Tensor, Tensor]:
    """Two nets trained for a second each on scikit-learn's digits, and the digits they have not seen."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    nets: list[nn.Module] = []
    with torch.random.fork_rng():
        for seed, width in ((0, 8), (1, 12)):
            torch.manual_seed(seed)
            made = nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * width, 10),
            )
            optimizer = torch.optim.Adam(made.parameters(), 4e-3)
            for _ in range(3):
                for part in torch.randperm(1400).split(64):
                    optimizer.zero_grad()
                    F.cross_entropy(made(x[part]), y[part]).backward()
                    optimizer.step()
            nets.append(made.eval())
    return nets, x[1500:], y[1500:]


def test_transfers_better_than_one_step_and_than_noise(pair: tuple[list[nn.Module], Tensor, Tensor]) -> None:
    (first, second), x, y = pair
    rates = {}
    for spec in (Noise(), FGSM(), MIFGSM()):
        found = [
            attack(judge, x, y, spec, threat=Threat("linf", eps), sources=[source])
            for judge, source in ((first, second), (second, first))
            for eps in (0.1, 0.2)
        ]
        rates[spec.name] = sum(float(f.success[f.clean_correct].float().mean()) for f in found) / len(found)
    assert rates["mi_fgsm"] >= rates["fgsm"] > 2 * rates["noise"]


def test_defaults_are_published() -> None:
    assert MIFGSM() == MIFGSM(steps=10, step_size=None, decay=1.0, stop="first_success")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "MIFGSM: steps must be at least 1; got 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"step_size": float("nan")}, "step_size must be above 0"),
        ({"decay": -0.1}, "decay must be at least 0"),
        ({"decay": float("nan")}, "decay must be at least 0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        MIFGSM(**wrong)  # type: ignore[arg-type]
