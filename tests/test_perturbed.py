"""Which weights change, within which ball, and that every bit comes back."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hardy import perturbed, seeding
from hardy.errors import AttachError, ParameterError, ShapeError
from hardy.perturbed import WeightBall, WeightNorm, added, draw_like, perturbable, perturbed_weights

NORMS: tuple[WeightNorm, ...] = ("l2", "linf")
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, groups=3),
            nn.BatchNorm2d(6),
            nn.GroupNorm(2, 6),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, 2, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(5),
            nn.Linear(5, 4),
        ).eval()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def other(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() * 1.1 + 0.01 for name, weight in perturbable(model).items()}


def test_kernels_and_matrices_are_found_but_no_biases_and_no_norms() -> None:
    model = make()
    found = perturbable(model)
    assert list(found) == ["0.weight", "4.weight", "8.weight"]
    assert all(found[name] is dict(model.named_parameters())[name] for name in found)
    assert list(perturbable(nn.Linear(2, 2))) == ["weight"]
    assert perturbable(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())) == {}


def test_shared_weights_are_listed_and_changed_once() -> None:
    a, b, c = (nn.Linear(3, 3, bias=False) for _ in range(3))
    b.weight = a.weight  # one parameter
    c.weight = nn.Parameter(a.weight.data)  # one memory
    model = nn.Sequential(a, nn.Tanh(), a, b, c)
    assert list(perturbable(model)) == ["0.weight"]
    before = a.weight.detach().clone()
    with perturbed_weights(model, {"0.weight": before + 1}):
        assert all(torch.equal(layer.weight, before + 1) for layer in (a, b, c))
    assert all(torch.equal(layer.weight, before) for layer in (a, b, c))


def _spectral(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, _spectral])
def test_computed_weights_are_an_error_that_names_the_layer(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), wrap(nn.Conv2d(1, 1, 3)))
    with pytest.raises(AttachError, match=r"1\.weight: must be a parameter .*remove_parametrizations"):
        perturbable(model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_an_error() -> None:
    with pytest.raises(AttachError, match="lazy"):
        perturbable(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("stop", [None, ValueError, KeyboardInterrupt])
def test_the_block_sees_other_weights_and_every_bit_comes_back(stop: type[BaseException] | None) -> None:
    model = make()
    model[0].weight.data[0, 0, 0, 0] = -0.0  # a bit that arithmetic would lose
    before, clean = bits(model), model(X)
    twin = copy.deepcopy(model)
    values = other(model)
    for name, value in values.items():
        twin.get_parameter(name).data = value
    try:
        with perturbed_weights(model, values):
            assert torch.equal(model(X), twin(X)) and not torch.equal(model(X), clean)
            if stop is not None:
                raise stop
    except (ValueError, KeyboardInterrupt):
        assert stop is not None
    assert bits(model) == before and torch.equal(model(X), clean)


def test_gradients_and_flags_come_back_also_those_of_biases() -> None:
    model = make().requires_grad_(False)
    model[8].requires_grad_(True)
    model(X).sum().backward()
    held = model[8].bias.grad
    assert held is not None
    kept, before = held.clone(), bits(model)
    with perturbed_weights(model, other(model)):
        model.requires_grad_(True)
        model(X).square().sum().backward()
        assert model[0].weight.grad is not None and not torch.equal(held, kept)
    assert model[8].bias.grad is held and torch.equal(held, kept)
    assert model[0].weight.grad is None and not model[0].weight.requires_grad and model[8].weight.requires_grad
    assert bits(model) == before


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_works_without_autograd_and_in_nested_blocks(mode: Callable[[], torch.no_grad]) -> None:
    model = make()
    before = bits(model)
    with mode(), perturbed_weights(model, other(model)):
        outer = bits(model)
        with perturbed_weights(model, {"0.weight": torch.zeros(6, 1, 3, 3)}):
            assert not model[0].weight.any() and bits(model)["8.weight"] == outer["8.weight"]
        assert bits(model) == outer != before
    assert bits(model) == before
    model(X).sum().backward()  # still a net that can be trained


def test_weights_made_in_inference_mode_change_too() -> None:
    with torch.inference_mode():
        model = make()
    before = bits(model)
    with perturbed_weights(model, {"8.weight": torch.ones(4, 5)}):
        assert bool((model[8].weight == 1).all())
    assert bits(model) == before


def test_wrong_names_and_shapes_fail_before_anything_changes() -> None:
    model = make()
    before = bits(model)
    with pytest.raises(ParameterError, match=r"unknown weight '8\.weigth'; did you mean '8\.weight'"):
        perturbed_weights(model, {"0.weight": torch.zeros(6, 1, 3, 3), "8.weigth": torch.zeros(4, 5)}).__enter__()
    with pytest.raises(ParameterError, match="unknown weight"):
        perturbed_weights(model, {"8.bias": torch.zeros(4)}).__enter__()
    with pytest.raises(ShapeError, match=r"8\.weight must be \(4, 5\); got \(5, 4\)"):
        perturbed_weights(model, {"0.weight": torch.zeros(6, 1, 3, 3), "8.weight": torch.zeros(5, 4)}).__enter__()
    assert bits(model) == before


def lengths(deltas: dict[str, Tensor], norm: WeightNorm) -> dict[str, float]:
    return {n: float(d.norm() if norm == "l2" else d.abs().amax()) for n, d in deltas.items()}


@given(norm=st.sampled_from(NORMS), radius=st.floats(0, 3), scale=st.floats(0, 10), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_projection_lands_in_the_ball_and_moves_no_more_than_needed(
    norm: WeightNorm, radius: float, scale: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weights = {
        "a": torch.randn(3, 4, generator=random),
        "b": torch.randn(2, 2, 3, generator=random),
        "c": torch.zeros(2, 2),
    }
    ball = WeightBall.around(weights, radius=radius, norm=norm)
    for name, weight in weights.items():
        size = weight.norm() if norm == "l2" else weight.abs().mean()
        assert float(ball.sizes[name]) == pytest.approx(radius * float(size), rel=1e-5)
    deltas = {name: scale * torch.randn(weight.shape, generator=random) for name, weight in weights.items()}
    moved = ball.project(deltas)
    for name, length in lengths(moved, norm).items():
        assert length <= float(ball.sizes[name]) * (1 + 1e-6)
        if lengths(deltas, norm)[name] <= float(ball.sizes[name]):
            assert torch.equal(moved[name], deltas[name])
        for _ in range(5):  # no other point of the ball is closer
            rival = ball.project({**moved, name: moved[name] + 0.1 * torch.randn(moved[name].shape, generator=random)})[
                name
            ]
            assert (
                float((moved[name] - deltas[name]).norm()) <= float((rival - deltas[name]).norm()) * (1 + 1e-5) + 1e-6
            )
    again = ball.project(moved)
    assert all(torch.allclose(again[name], moved[name], rtol=1e-6, atol=0) for name in moved)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_nothing_in_the_ball_rises_more_than_the_steepest_change(norm: WeightNorm, scale: float) -> None:
    weights = {"a": torch.randn(5, 7), "dead": torch.randn(3, 3)}
    ball = WeightBall.around(weights, radius=0.1, norm=norm)
    gradients = {"a": scale * torch.randn(5, 7), "dead": torch.zeros(3, 3)}
    best = ball.steepest(gradients)
    assert not best["dead"].any()
    assert lengths(best, norm)["a"] == pytest.approx(float(ball.sizes["a"]), rel=1e-5)
    rises = [
        float((ball.project({"a": 9 * torch.randn(5, 7), "dead": best["dead"]})["a"] * gradients["a"] / scale).sum())
        for _ in range(50)
    ]
    assert max(rises) < float((best["a"] * gradients["a"] / scale).sum())


def test_the_ball_keeps_the_size_of_the_weights_that_it_was_made_of() -> None:
    weight = torch.ones(2, 2)
    ball = WeightBall.around({"w": weight}, radius=0.5)
    weight.mul_(100)
    assert float(ball.sizes["w"]) == 1.0


@pytest.mark.parametrize("norm", NORMS)
def test_random_changes_are_on_the_border_and_the_same_at_every_radius(norm: WeightNorm) -> None:
    weights = perturbable(make())
    small, large = (WeightBall.around(weights, radius=r, norm=norm) for r in (0.01, 0.04))
    root = seeding.root(0, "test")
    a, b = small.draw(weights, root), large.draw(weights, root)
    for name in weights:
        assert lengths(a, norm)[name] == pytest.approx(float(small.sizes[name]), rel=1e-5)
        assert torch.allclose(4 * a[name], b[name])
        assert torch.equal(a[name], small.draw(weights, root)[name])
        assert not torch.allclose(a[name], small.draw(weights, seeding.root(1, "test"))[name])


def test_random_numbers_are_normal_and_differ_between_layers_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, root = torch.zeros(64, 8, 3, 3), seeding.root(0, "test")
    a, b = (draw_like(weight, root, name, seeding.normal).flatten() for name in ("a.weight", "b.weight"))
    n = len(a)
    assert abs(float(a.mean())) < 4 / n**0.5 and abs(float(a.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((a * b).mean())) < 4 / n**0.5
    monkeypatch.setattr(perturbed, "CHUNK", 100)  # one row at a time
    assert torch.equal(draw_like(weight, root, "a.weight", seeding.normal).flatten(), a)
    assert draw_like(weight.double(), root, "a.weight", seeding.normal).dtype == torch.float64


def test_changes_are_added_where_there_are_any() -> None:
    weights = perturbable(make())
    got = added(weights, {"8.weight": torch.ones(4, 5)})
    assert list(got) == ["8.weight"] and torch.equal(got["8.weight"], weights["8.weight"].detach() + 1)


@pytest.mark.parametrize(
    ("radius", "norm", "match"), [(-0.1, "l2", "radius"), (float("inf"), "l2", "radius"), (0.1, "l1", "norm")]
)
def test_bad_balls_are_refused(radius: float, norm: WeightNorm, match: str) -> None:
    with pytest.raises((ParameterError, TypeError), match=match):  # the second where annotations are checked
        WeightBall.around({"w": torch.ones(2, 2)}, radius=radius, norm=norm)
