"""Adversarial weight perturbation: the size of the move, the gradient there, and the way back to the same bits."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import seeding
from hardy.data import ArrayData
from hardy.errors import AttachError, ParameterError
from hardy.inserts import Insert
from hardy.methods import METHODS, AdversarialWeightPerturbation, Method
from hardy.methods.awp import moved_weights
from hardy.objective import Objective
from hardy.surgery import attach
from hardy.training import TrainRecipe, train

KEY = seeding.keys(seeding.root(0, "images"), torch.arange(6))
SPEC = AdversarialWeightPerturbation(gamma=0.1)


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(36, 3)).double()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(6) % 3


def one_step(
    model: nn.Sequential, x: Tensor, y: Tensor, methods: list[Method]
) -> tuple[Insert, list[dict[str, Tensor]]]:
    """Run a step without the optimizer; give the weights that every forward and backward pass has seen."""
    held = attach(model, methods, example=x, seed=0)[-1].insert
    objective, seen = Objective(model), []

    def closure() -> dict[str, Tensor]:
        model.zero_grad()
        _, losses = objective(x, y, KEY)
        torch.stack(list(losses.values())).sum().backward()
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return losses

    held.around_step(closure, lambda: pytest.fail("it has no step of its own"))
    return held, seen


def test_every_layer_moves_by_gamma_times_its_length_and_comes_back(x: Tensor, y: Tensor) -> None:
    model = make()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _, (first, second) = one_step(model, x, y, [SPEC])
    assert all(torch.equal(first[name], value) for name, value in before.items())
    for name, value in before.items():
        size = (second[name] - value).norm()
        want = 0.1 * value.norm() if name in {"0.weight", "4.weight"} else torch.zeros_like(size)
        torch.testing.assert_close(size, want, rtol=1e-9, atol=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("method", [None, "pgd_at", "trades", "mart"])
def test_the_gradient_is_that_at_the_moved_weights_of_the_same_images(method: str | None, x: Tensor, y: Tensor) -> None:
    model, methods = make(), [] if method is None else [METHODS[method](eps=0.1, steps=2)]
    reference = copy.deepcopy(model)
    one_step(model, x, y, [*methods, SPEC])
    # by hand: the loss of the reference, its gradient, the move, the loss there over the same adversarial images
    held = [a.insert for a in attach(reference, methods, example=x, seed=0)]
    fixed = copy.deepcopy(reference).eval()
    objective = Objective(reference)
    sum(objective(x, y, KEY)[1].values()).backward()  # type: ignore[union-attr]
    moves = {name: 0.1 * p.norm() / p.grad.norm() * p.grad for name, p in reference.named_parameters() if p.ndim > 1}  # type: ignore[operator, union-attr]
    with torch.no_grad():
        for name, move in moves.items():
            reference.get_parameter(name).add_(move)
    for each in held:  # searched at the weights before the move
        each.held = (fixed,)
        fixed.zero_grad()
    reference.zero_grad()
    sum(objective(x, y, KEY)[1].values()).backward()  # type: ignore[union-attr]
    for p, q in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-7, atol=1e-10)


def test_running_statistics_see_the_moved_pass_only(x: Tensor, y: Tensor) -> None:
    model = make()
    reference = copy.deepcopy(model)
    _, (_, moved) = one_step(model, x, y, [SPEC])
    with torch.no_grad():
        for name, p in reference.named_parameters():
            p.copy_(moved[name])
    reference(x)
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean, rtol=1e-12, atol=0)
    assert int(model[1].num_batches_tracked) == 1


def test_weights_come_back_if_the_block_raises_and_frozen_ones_stay(x: Tensor, y: Tensor) -> None:
    model = make()
    model[4].weight.requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())

    def work() -> None:
        with moved_weights(model, gamma=0.1):
            assert not torch.equal(model[0].weight, before["0.weight"])
            assert torch.equal(model[4].weight, before["4.weight"])
            raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        work()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_that_are_zero_or_not_finite_move_nothing(x: Tensor) -> None:
    model = make()
    for p, value in zip(model.parameters(), (float("inf"), 0.0, 0.0, 0.0, 0.0, 0.0), strict=True):
        p.grad = torch.full_like(p, value)
    before = copy.deepcopy(model.state_dict())
    with moved_weights(model, gamma=0.1):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gamma_0_trains_as_without_it_and_a_larger_one_does_not(tmp_path: Path) -> None:
    def weights(methods: list[Method], name: str) -> Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        x = torch.randint(256, (48, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = ArrayData(
            x, torch.arange(48) % 2, torch.arange(48), class_names=("a", "b"), name="tiny", split="train"
        )
        options = TrainRecipe(epochs=1, batch_size=16)
        run = train(net, images, methods=methods, options=options, out=tmp_path / name, augment=())
        return torch.cat([value.flatten().double() for value in run.model.state_dict().values()])

    plain = weights([], "plain")
    assert torch.equal(weights([AdversarialWeightPerturbation(gamma=0.0)], "none"), plain)
    assert not torch.allclose(weights([AdversarialWeightPerturbation(gamma=0.5)], "some"), plain, atol=1e-4)


def test_a_net_without_layers_and_bad_values_are_refused(x: Tensor) -> None:
    with pytest.raises(AttachError, match="awp: the net must have convolutions or linear layers"):
        SPEC.attach(nn.Sequential(nn.Flatten()), example=x, seed=0)
    with pytest.raises(AttachError, match="must be a parameter of its layer"):
        SPEC.attach(
            nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(25, 2))), example=x, seed=0
        )
    for gamma in (-0.1, 2.0, float("nan")):
        with pytest.raises(ParameterError, match="gamma must be in"):
            AdversarialWeightPerturbation(gamma=gamma)
