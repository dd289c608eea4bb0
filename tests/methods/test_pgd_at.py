"""PGD adversarial training: the images of a hand-written PGD, from a search that leaves no trace."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hardy
from hardy import seeding
from hardy.attacks import PGD
from hardy.data import load_data
from hardy.errors import AttachError, ParameterError
from hardy.methods import METHODS, DefectiveConv, FreeAdversarialTraining, SpatialDropout
from hardy.methods._search import adversarial, cross_entropy, kl_divergence, searched_once
from hardy.methods.pgd_at import PGDAdversarialTraining
from hardy.objective import Objective
from hardy.surgery import attach, attachments
from hardy.taps import KeyedLayer
from hardy.training import DataRecipe, ModelRecipe, Recipe, TrainRecipe, train

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(5))
SPEC = PGDAdversarialTraining(eps=0.1, steps=3, step_size=0.05)


def make() -> nn.Sequential:
    """A small net in double precision whose batch norm has seen something."""
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


def seen_by(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Give what the net is trained on in a step."""
    seen: list[Tensor] = []
    handle = model[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    Objective(model)(x, y, KEY)
    handle.remove()
    return seen[-1]


def by_hand(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, norm: str, steps: int = 3) -> Tensor:
    """Search as Madry et al. write it: step, project onto the ball, clip to the box; eps 0.1, step size 0.05."""
    net, x_adv = copy.deepcopy(net).eval(), start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(net(x_adv), y, reduction="sum").backward()
        assert x_adv.grad is not None
        g = x_adv.grad
        if norm == "linf":
            moved = x_adv.detach() + 0.05 * g.sign()
            x_adv = torch.minimum(torch.maximum(moved, x - 0.1), x + 0.1).clamp(0, 1)
        else:
            delta = x_adv.detach() + 0.05 * g / g.flatten(1).norm(dim=1)[:, None, None, None] - x
            length = delta.flatten(1).norm(dim=1)[:, None, None, None]
            x_adv = (x + delta * (0.1 / length).clamp(max=1)).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_images_are_those_of_a_hand_written_loop(norm: str, x: Tensor, y: Tensor) -> None:
    spec, model = PGDAdversarialTraining(norm=norm, eps=0.1, steps=3, step_size=0.05, random_start=False), make()
    want = by_hand(model, x, y, x, norm=norm)
    spec.attach(model, example=x, seed=0)
    got = seen_by(model, x, y)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert 0 < (got - x).abs().max() <= 0.1 + 1e-12 and not got.requires_grad


def test_a_random_start_is_a_uniform_point_of_the_ball_of_each_row(x: Tensor, y: Tensor) -> None:
    model = make()
    held = SPEC.attach(model, example=x, seed=0).insert
    u = seeding.uniform(seeding.fold(KEY, held.root), 0, x.shape[1:]).double()
    want = by_hand(model, x, y, (x + (2 * u - 1) * 0.1).clamp(0, 1), norm="linf")
    torch.testing.assert_close(seen_by(model, x, y), want, rtol=1e-9, atol=1e-12)
    # rows do not depend on the batch
    alone = held.inputs(x[3:4], y[3:4], seeding.fold(KEY[3:4], held.root))[0]
    torch.testing.assert_close(alone, want[3:4], rtol=1e-9, atol=1e-12)


def test_soft_labels_are_searched_by_the_soft_cross_entropy(x: Tensor) -> None:
    model, soft = make(), torch.rand(5, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    want = by_hand(model, x, soft.double(), x, norm="linf")
    PGDAdversarialTraining(eps=0.1, steps=3, step_size=0.05, random_start=False).attach(model, example=x, seed=0)
    torch.testing.assert_close(seen_by(model, x, soft), want, rtol=1e-9, atol=1e-12)


def test_the_search_sees_live_masks_and_no_train_only_layers(x: Tensor, y: Tensor) -> None:
    model = make()
    DefectiveConv(keep=0.5, sites=("1",)).attach(model, example=x, seed=0)
    want = by_hand(model, x, y, x, norm="linf")  # a copy has the masks
    SpatialDropout(p=0.5, sites=("1",)).attach(model, example=x, seed=0)
    PGDAdversarialTraining(eps=0.1, steps=3, step_size=0.05, random_start=False).attach(model, example=x, seed=0)
    torch.testing.assert_close(seen_by(model, x, y), want, rtol=1e-9, atol=1e-12)
    plain = make()
    assert not torch.allclose(by_hand(plain, x, y, x, norm="linf"), want)


def test_the_search_leaves_no_trace(x: Tensor, y: Tensor) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(())  # draws also in evaluation mode

    model = make().append(Noisy())
    SpatialDropout(p=0.5, sites=("1",)).attach(model, example=x, seed=0)
    model.train()
    model[1].eval()  # frozen by the user
    for number, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, number) if number % 2 else None
    layers = [module for module in model.modules() if isinstance(module, KeyedLayer)]
    hardy.surgery.set_keys(model, KEY)
    before = [
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(layer.pending, layer.key, layer.call, int(layer.step)) for layer in layers],
        torch.get_rng_state(),
    ]
    how = {"attack": PGD(steps=2, step_size=0.05), "norm": "linf", "eps": 0.1, "key": KEY}
    with torch.no_grad():
        x_adv = adversarial(model, x, lambda z: cross_entropy(z, y), **how)  # type: ignore[arg-type]
    assert not torch.equal(x_adv, x) and len(layers) == 1 and layers[0].pending is KEY
    after = [
        model.state_dict(),
        [m.training for m in model.modules()],
        [p.grad for p in model.parameters()],
        [(layer.pending, layer.key, layer.call, int(layer.step)) for layer in layers],
        torch.get_rng_state(),
    ]
    for name, value in before[0].items():  # type: ignore[union-attr]
        assert torch.equal(value, after[0][name])  # type: ignore[index]
    assert before[1] == after[1] and torch.equal(before[4], after[4])  # type: ignore[arg-type]
    assert str(before[2]) == str(after[2]) and str(before[3]) == str(after[3])


def test_gradients_that_are_not_finite_do_not_move_a_pixel(x: Tensor, y: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - x.detach()).abs().sqrt().flatten(1)[:, :4]  # an infinite slope at 0

    x_adv = adversarial(
        Broken(), x, lambda z: cross_entropy(z, y), attack=PGD(steps=1, step_size=0.05, random_start=False),
        norm="linf", eps=0.1, key=KEY,
    )  # fmt: skip
    assert torch.equal(x_adv, x)


def test_the_divergence_is_that_of_torch() -> None:
    p, q = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).double()
    want = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(kl_divergence(p, q), want)
    assert kl_divergence(p.bfloat16(), q.bfloat16()).dtype == torch.float32


def test_in_a_block_every_method_searches_once(x: Tensor, y: Tensor) -> None:
    model = make()
    held = SPEC.attach(model, example=x, seed=0).insert
    with searched_once(model):
        first = held.inputs(x, y, KEY)[0]
        with searched_once(model):
            pass  # the outer block goes on
        assert held.inputs(x, y, KEY)[0] is first
    assert held.inputs(x, y, KEY)[0] is not first and torch.equal(held.inputs(x, y, KEY)[0], first)


@pytest.mark.parametrize("second", ["pgd_at", "trades", "mart", "fast_at", "free_at"])
def test_only_one_method_makes_adversarial_images(second: str, x: Tensor) -> None:
    for first in (SPEC, FreeAdversarialTraining()):
        model = make()
        with pytest.raises(AttachError, match=f"{second}: only one method can make adversarial images; .*_at is"):
            attach(model, [first, METHODS[second]()], example=x, seed=0)
        assert attachments(model) == []


@pytest.mark.parametrize("name", ["pgd_at", "trades", "mart"])
def test_a_bad_budget_is_refused(name: str) -> None:
    make: Callable[..., object] = METHODS[name]
    for fields, message in (
        ({"eps": 8.0}, r"eps must be in \[0, 1\]; got 8.0"),
        ({"eps": 0.0}, "must be above 0"),
        ({"steps": 0}, "steps at least 1"),
        ({"step_size": -0.1}, "must be above 0"),
        ({"step_size": float("nan")}, "must be above 0"),
    ):
        with pytest.raises(ParameterError, match=message):
            make(**fields)


@pytest.mark.slow
def test_two_epochs_on_digits_raise_accuracy_under_pgd(tmp_path: Path) -> None:
    data = DataRecipe(name="digits", augment=())
    options = TrainRecipe(epochs=2, batch_size=32, lr=0.05)
    test = load_data("digits", split="test")
    method = {"name": "pgd_at", "eps": 0.2, "steps": 5, "step_size": 0.08}
    net_recipe, found = ModelRecipe(name="cifar_resnet8", args={"width": 8}), {}
    for name, methods in (("plain", ()), ("pgd_at", (method,))):
        recipe = Recipe(model=net_recipe, data=data, train=options, methods=methods)
        net = train(recipe, out=tmp_path / name).model
        x, y = test.images(), test.y
        result = hardy.attacks.attack(net, x, y, PGD(steps=20), threat=hardy.Threat("linf", 0.2))
        found[name] = float((net(result.x_adv).argmax(1) == y).float().mean())
    assert found["pgd_at"] > found["plain"] + 0.15, found
