"""MART: loss and gradient of the formula in the paper, written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import seeding
from hardy.errors import AttachError, ParameterError
from hardy.methods import LabelSmoothing
from hardy.methods.mart import MART, boosted_cross_entropy, doubt
from hardy.objective import Objective
from hardy.surgery import attach

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(5))
SPEC = MART(weight=2.0, eps=0.1, steps=3, step_size=0.05)


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


def searched(net: nn.Module, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
    net, x_adv = copy.deepcopy(net).eval(), x + 0.001 * seeding.normal(key, 0, x.shape[1:])
    for _ in range(3):
        x_adv = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(x_adv), y), x_adv)
        moved = x_adv.detach() + 0.05 * g.sign()
        x_adv = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
    return x_adv


def formula(clean: Tensor, moved: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Write Eq. 7 to 11 out, image by image."""
    p, q = clean.softmax(1), moved.softmax(1)
    boosted, weighted = [], []
    for i, label in enumerate(y.tolist()):
        wrong = torch.stack([q[i, k] for k in range(4) if k != label]).max()
        boosted.append(-q[i, label].log() - (1 - wrong).log())
        weighted.append((p[i] * (p[i] / q[i]).log()).sum() * (1 - p[i, label]))
    return torch.stack(boosted).mean(), torch.stack(weighted).mean()


def test_losses_and_gradients_are_those_of_the_formula(x: Tensor, y: Tensor) -> None:
    model = make()
    reference = copy.deepcopy(model)
    held = SPEC.attach(model, example=x, seed=0).insert
    x_adv = searched(reference, x, y, seeding.fold(KEY, held.root))
    moved = reference(x_adv)
    task, term = formula(reference(x), moved, y)
    (task + 2 * term).backward()
    logits, losses = Objective(model)(x, y, KEY)
    torch.testing.assert_close(logits, moved, rtol=1e-9, atol=1e-12)
    assert list(losses) == ["task", "mart"] and losses["mart"] > 0.001
    torch.testing.assert_close(losses["task"], task, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses["mart"], 2 * term, rtol=1e-9, atol=1e-12)
    (losses["task"] + losses["mart"]).backward()
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-12)


def test_a_sure_and_wrong_net_has_a_finite_loss_with_a_slope() -> None:
    z = torch.tensor([[0.0, 200.0, -200.0]], requires_grad=True)
    loss = boosted_cross_entropy(z, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss.sum(), z)
    assert loss.item() == pytest.approx(400) and slope.isfinite().all() and slope[0, 0] < -0.5
    assert doubt(z, torch.tensor([0])).item() == pytest.approx(1)


def test_soft_labels_that_are_hard_give_the_same(x: Tensor, y: Tensor) -> None:
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    soft = F.one_hot(y, 4).float()
    torch.testing.assert_close(boosted_cross_entropy(z, soft), boosted_cross_entropy(z, y))
    torch.testing.assert_close(doubt(z, soft), doubt(z, y))
    between = 0.5 * (doubt(z, y) + doubt(z, (y + 1) % 4))
    torch.testing.assert_close(doubt(z, 0.5 * (soft.roll(1, 1) + soft)), between)


def test_it_defines_the_task_loss(x: Tensor) -> None:
    model = make()
    attach(model, [SPEC, LabelSmoothing()], example=x, seed=0)
    with pytest.raises(AttachError, match="only one method can define the task loss; mart and label_smoothing do"):
        Objective(model)
    with pytest.raises(ParameterError, match="MART: weight must be in"):
        MART(weight=-1.0)
