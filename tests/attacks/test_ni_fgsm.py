"""NI-FGSM and SI-NI-FGSM against a plain loop, torchattacks and a closed form; what counts as a success."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.attacks.goal import Goal
from hardy.attacks.mi_fgsm import MIFGSM
from hardy.attacks.ni_fgsm import NIFGSM
from hardy.attacks.state import Ball, select
from hardy.errors import ParameterError
from hardy.threats import Threat


def path(spec: NIFGSM, net: nn.Module, x: Tensor, y: Tensor, eps: float) -> list[Tensor]:
    """All points in float64, without the engine."""
    goal = Goal(label=y, target=y, must_hit=torch.zeros_like(y, dtype=torch.bool))
    threat = Ball("linf", torch.full((len(x),), eps, dtype=torch.float64))
    state, out = spec.start(x, goal, threat, torch.arange(len(x))), []
    while not spec.finished(state).all():
        query = spec.ask(state)
        leaf = query.x.clone().requires_grad_()
        z = net(leaf)
        (g,) = torch.autograd.grad(spec.loss(z, select(goal, query.row)).sum(), leaf)
        state = spec.tell(state, z.detach(), g)
        out.append(spec.result(state))
    return out


def reference(net: nn.Module, x: Tensor, y: int, *, eps: float, decay: float, scales: int) -> list[Tensor]:
    """One image, line by line; the scaling is differentiated through."""
    x_adv, g, out, step = x, torch.zeros_like(x), [], eps / 10
    for _ in range(10):
        leaf = x_adv.clone().requires_grad_()
        ahead = leaf + step * decay * g
        loss = sum(F.cross_entropy(net(ahead[None] / 2**i), torch.tensor([y])) for i in range(scales)) / scales
        (grad,) = torch.autograd.grad(loss, leaf)  # type: ignore[arg-type]
        g = decay * g + grad / grad.abs().mean()
        x_adv = (x + (x_adv + step * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
        out.append(x_adv)
    return out


@pytest.mark.parametrize(("decay", "scales"), [(1.0, 1), (0.7, 1), (1.0, 3)])
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, decay: float, scales: int) -> None:
    exact, x, y = copy.deepcopy(net).double(), x[3:13].double(), y[3:13]
    got = torch.stack(path(NIFGSM(decay=decay, scales=scales), exact, x, y, 0.08))
    for i in range(10):
        want = reference(exact, x[i], int(y[i]), eps=0.08, decay=decay, scales=scales)
        torch.testing.assert_close(got[:, i], torch.stack(want), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scales", [1, 5])
def test_equals_torchattacks(net: nn.Module, x: Tensor, y: Tensor, scales: int) -> None:
    exact, x, y = copy.deepcopy(net).double(), x[3:].double(), y[3:]
    other = (
        torchattacks.NIFGSM(exact, eps=0.05, alpha=0.011, steps=7, decay=0.9)
        if scales == 1
        else torchattacks.SINIFGSM(exact, eps=0.05, alpha=0.011, steps=7, decay=0.9, m=scales)
    )
    got = path(NIFGSM(steps=7, step_size=0.011, decay=0.9, scales=scales), exact, x, y, 0.05)[-1]
    torch.testing.assert_close(got, other(x, y), rtol=0, atol=1e-12)


def test_without_momentum_there_is_nothing_ahead(net: nn.Module, x: Tensor, y: Tensor) -> None:
    a, b = (attack(net, x, y, spec(decay=0.0), threat=Threat("linf", 0.03)) for spec in (NIFGSM, MIFGSM))
    assert torch.equal(a.x_adv, b.x_adv) and a.passes == b.passes


@pytest.mark.parametrize("scales", [1, 5])
def test_reaches_the_corner_on_a_linear_net(scales: int) -> None:
    head = nn.Linear(12, 2).eval()
    net, x = nn.Sequential(nn.Flatten(), head).eval(), torch.full((4, 3, 2, 2), 0.5)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    w = (head.weight[1 - y] - head.weight[y]).detach().reshape(x.shape)
    found = attack(net, x, y, NIFGSM(scales=scales), threat=Threat("linf", 0.1), stop="never")
    torch.testing.assert_close(found.x_adv, x + 0.1 * w.sign(), rtol=0, atol=1e-6)
    assert found.backward_passes.tolist() == [10 * scales] * 4


class Bright(nn.Module):
    """Class 1 where the mean is above a threshold, else class 0; remembers the brightest it saw."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.seen = threshold, 0.0
        self.register_forward_pre_hook(lambda _, inputs: self.note(*inputs))  # watched: searched itself, not a copy

    def note(self, x: Tensor) -> None:
        self.seen = max(self.seen, float(x.detach().mean(dim=(1, 2, 3)).max()))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(mean), mean - self.threshold], dim=1)


def test_what_fools_ahead_of_the_ball_is_no_success() -> None:
    net, x, y = Bright(0.62).eval(), torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    found = attack(net, x, y, NIFGSM(), threat=Threat("linf", 0.1))
    assert net.seen > 0.63  # it was asked about, and fooled the net
    assert not found.success.any() and found.backward_passes.tolist() == [10] * 3
    torch.testing.assert_close(found.x_adv, x + 0.1)


def test_what_fools_inside_the_ball_is_a_success_at_once() -> None:
    """Step 0 looks at 0.5, step 1 at 0.51 + 0.01 * 1, step 2 at 0.52 + 0.01 * 2."""
    net, x, y = Bright(0.535).eval(), torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    found = attack(net, x, y, NIFGSM(), threat=Threat("linf", 0.1))
    assert found.success.all() and found.backward_passes.tolist() == [3] * 3
    torch.testing.assert_close(found.x_adv, x + 0.04)


def test_verdicts_do_not_depend_on_batches(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat, order, spec = Threat("linf", 0.02), torch.randperm(50), NIFGSM(steps=5, scales=3)
    whole = attack(net, x, y, spec, threat=threat)
    parts = attack(net, x[order], y[order], spec, threat=threat, rows=order, batch_size=7)
    clear = whole.margin[order].abs() > 1e-5
    assert clear.sum() > 40 and torch.equal(whole.success[order][clear], parts.success[clear])


def test_defaults_are_published() -> None:
    assert NIFGSM() == NIFGSM(steps=10, step_size=None, decay=1.0, scales=1, stop="first_success")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "NIFGSM: steps must be at least 1"), ({"scales": 0}, "scales must be from 1 to 32; got 0")],
)
def test_wrong_settings_are_errors(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        NIFGSM(**wrong)  # type: ignore[arg-type]
