"""The worst weights: closed forms on one layer, what cannot change the answer, and that it beats chance."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy.attacks.norms import norm_of
from hardy.errors import ParameterError
from hardy.evaluation.weight_search import MOST, WorstWeights, losses, worst_weights
from hardy.perturbed import WeightBall, WeightNorm, added, perturbable, perturbed_weights
from hardy.seeding import keys, root
from hardy.threats import Norm, Threat

ROOT = root(0, "test")


def search(
    model: nn.Module, x: Tensor, y: Tensor, radius: float, norm: WeightNorm = "l2", **facts: object
) -> WorstWeights:
    given: dict[str, object] = {"steps": 4, "restarts": 2, **facts}
    ball = WeightBall.around(perturbable(model), radius=radius, norm=norm)
    return worst_weights(model, x, y, ball=ball, key=keys(root(0, "images"), torch.arange(len(x))), root=ROOT, **given)  # type: ignore[arg-type]


def mean_loss(model: nn.Module, x: Tensor, y: Tensor, deltas: dict[str, Tensor] | None = None) -> float:
    with perturbed_weights(model, added(perturbable(model), deltas or {})), torch.no_grad():
        return float(F.cross_entropy(model(x), y))


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    net[1].weight.data = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    return net


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_one_layer_and_one_image_reach_the_closed_form(linear: nn.Module, norm: WeightNorm) -> None:
    """With two classes the loss is softplus(z_other - z_y), so the best change is (e_other - e_y) x^T, or its sign."""
    x, y = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(4)), torch.tensor([0])
    outer = torch.stack([-x.flatten(), x.flatten()])
    weight, radius = linear[1].weight.detach(), 0.2  # type: ignore[union-attr]
    size = radius * (weight.norm() if norm == "l2" else weight.abs().mean())
    best = size * (outer / outer.norm() if norm == "l2" else outer.sign())
    for restarts in (1, 3):
        got = search(linear, x, y, radius, norm, restarts=restarts)
        assert torch.allclose(got.deltas["1.weight"], best, rtol=1e-4, atol=1e-6)
        z = linear(x)[0].detach()
        assert float(got.loss) == pytest.approx(float(F.softplus(z[1] - z[0] + (best * outer).sum())), rel=1e-4)


def test_without_radius_one_layer_gives_the_worst_images(linear: nn.Module) -> None:
    x = 0.4 + 0.2 * torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    y = torch.tensor([0, 1, 0, 1, 1])
    weight = linear[1].weight.detach()  # type: ignore[union-attr]
    away = (weight[1 - y] - weight[y]).sign().reshape(x.shape)
    got = search(linear, x, y, 0.0, threat=Threat("linf", 0.1), restarts=1)
    assert torch.allclose(got.x, x + 0.1 * away)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("threat", [None, Threat("linf", 0.05), Threat("l2", 0.4), Threat("l1", 2.0)])
def test_weights_and_images_stay_in_their_balls_and_the_loss_is_theirs(
    net: nn.Module, x: Tensor, y: Tensor, norm: WeightNorm, threat: Threat | None
) -> None:
    x, y = x[:30], y[:30]
    got = search(net, x, y, 0.05, norm, threat=threat)
    ball = WeightBall.around(perturbable(net), radius=0.05, norm=norm)
    for name, delta in got.deltas.items():
        size = delta.norm() if norm == "l2" else delta.abs().amax()
        assert float(size) <= float(ball.sizes[name]) * (1 + 1e-5) and delta.any()
    if threat is None:
        assert torch.equal(got.x, x)
    else:
        assert float(norm_of(got.x - x, norm=threat.norm).max()) <= threat.eps * (1 + 1e-4)
        assert got.x.min() >= 0 and got.x.max() <= 1 and bool((got.x != x).flatten(1).any(dim=1).all())
    assert mean_loss(net, got.x, y, got.deltas) == pytest.approx(float(got.loss.mean()), rel=1e-4)
    assert float(got.loss.mean()) > mean_loss(net, x, y) + 0.05
    assert got.passes == {"forward": 30 * 2 * 5, "backward": 30 * 2 * 4} and got.zero_gradients == 0


def test_the_model_is_left_as_it_is(net: nn.Module, x: Tensor, y: Tensor) -> None:
    frozen = copy.deepcopy(net).requires_grad_(False)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    with torch.inference_mode():
        got = search(frozen, x[:20], y[:20], 0.05, threat=Threat("linf", 0.05))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    free = search(net, x[:20], y[:20], 0.05, threat=Threat("linf", 0.05))
    assert all(torch.equal(free.deltas[name], got.deltas[name]) for name in got.deltas)
    assert not any(delta.requires_grad for delta in got.deltas.values()) and not got.x.requires_grad


def test_it_does_more_harm_than_random_changes_and_than_its_weaker_selves(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x, y = x[:60], y[:60]
    ball = WeightBall.around(perturbable(net), radius=0.05)
    random = [mean_loss(net, x, y, ball.draw(perturbable(net), root(i, "random"))) for i in range(20)]
    weak, found = search(net, x, y, 0.05, steps=1, restarts=1), search(net, x, y, 0.05, steps=8, restarts=3)
    clean = mean_loss(net, x, y)
    assert float(found.loss.mean()) >= float(weak.loss.mean()) > max(random)
    assert float(found.loss.mean()) - clean > 5 * (max(random) - clean)


def test_more_radius_never_does_less_harm_from_a_warm_start(net: nn.Module, x: Tensor, y: Tensor) -> None:
    x, y, threat = x[:20], y[:20], Threat("linf", 0.05)
    for given in (None, threat):
        found, last = None, 0.0
        for radius in (0.0, 0.001, 0.0011, 0.3, 0.31, 3.0):
            found = search(net, x, y, radius, threat=given, start=found, steps=2, restarts=1)
            assert float(found.loss.mean()) >= last * (1 - 1e-6)
            last = float(found.loss.mean())


def test_a_start_is_not_given_up(net: nn.Module, x: Tensor, y: Tensor) -> None:
    for threat in (None, Threat("l2", 0.5)):
        strong = search(net, x[:20], y[:20], 0.05, threat=threat, steps=10, restarts=2)
        weak = search(net, x[:20], y[:20], 0.05, threat=threat, steps=1, restarts=1)
        again = search(net, x[:20], y[:20], 0.05, threat=threat, steps=1, restarts=1, start=strong)
        assert float(again.loss.mean()) >= float(strong.loss.mean()) * (1 - 1e-6) > float(weak.loss.mean()) * 1.01


def test_without_radius_only_images_move_and_without_both_nothing_does(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = search(net, x[:10], y[:10], 0.0, threat=Threat("linf", 0.1))
    assert not any(delta.any() for delta in got.deltas.values()) and (got.x != x[:10]).any()
    assert got.zero_gradients == 0
    still = search(net, x[:10], y[:10], 0.0)
    assert torch.equal(still.x, x[:10]) and still.passes["forward"] == 100
    assert float(still.loss.mean()) == pytest.approx(mean_loss(net, x[:10], y[:10]))


def test_a_factor_that_a_batch_norm_takes_off_changes_nothing(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Relative sizes, norms left alone: W of 4 times the size with its norm's statistics is the same net."""
    plain, scaled = copy.deepcopy(net), copy.deepcopy(net)
    plain[1].eps = scaled[1].eps = 0.0  # type: ignore[index, union-attr]
    with torch.no_grad():  # a power of two, so that rounding is the same
        scaled[0].weight *= 4  # type: ignore[index]
        scaled[0].bias *= 4  # type: ignore[index]
        scaled[1].running_mean *= 4  # type: ignore[index]
        scaled[1].running_var *= 16  # type: ignore[index]
    assert torch.equal(plain(x), scaled(x))
    a, b = (search(model, x[:30], y[:30], 0.1, restarts=3) for model in (plain, scaled))
    assert torch.allclose(4 * a.deltas["0.weight"], b.deltas["0.weight"], rtol=1e-4, atol=1e-7)
    assert torch.allclose(a.deltas["6.weight"], b.deltas["6.weight"], rtol=1e-4, atol=1e-7)
    assert torch.allclose(a.loss, b.loss, rtol=1e-4, atol=1e-6)


class WithDeadLayers(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.unused, self.blocked = net, nn.Linear(3, 3), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0 * self.blocked(x))


def test_dead_layers_have_no_effect(net: nn.Module, x: Tensor, y: Tensor) -> None:
    got = search(WithDeadLayers(net).eval(), x[:20], y[:20], 0.05, restarts=1)
    alone = search(net, x[:20], y[:20], 0.05, restarts=1)
    assert torch.allclose(got.loss, alone.loss, rtol=1e-5)
    assert not got.deltas["unused.weight"].any() and not got.deltas["blocked.weight"].any()


def test_a_shared_layer_is_changed_once(x: Tensor, y: Tensor) -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    shared = nn.Sequential(layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(64, 10)).eval()
    before = [(p, p.detach().clone()) for p in shared.parameters()]
    got = search(shared, x[:10], y[:10], 0.2)
    assert all(p is q and torch.equal(p, value) for p, (q, value) in zip(shared.parameters(), before, strict=True))
    assert list(got.deltas) == ["0.weight", "4.weight"]
    assert mean_loss(shared, x[:10], y[:10], got.deltas) == pytest.approx(float(got.loss.mean()), rel=1e-5)


class Rounded(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).round()


def test_steps_without_a_gradient_are_counted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    assert search(Rounded(net).eval(), x[:10], y[:10], 0.1, steps=3, restarts=2).zero_gradients == 6


def test_logits_that_are_not_numbers_are_as_bad_as_can_be(x: Tensor) -> None:
    logits = torch.tensor([[math.nan, 0.0], [0.0, math.inf], [0.0, 1e6], [0.0, 1.0]])
    got = losses(logits, torch.zeros(4, dtype=torch.int64))
    assert got[:3].tolist() == [MOST] * 3 and float(got[3]) == pytest.approx(math.log(1 + math.e))
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        broken[1].weight[0, 0] = math.inf  # type: ignore[index]
    found = search(broken, x[:5], torch.ones(5, dtype=torch.int64), 0.1, threat=Threat("linf", 0.1))
    assert bool(found.loss.isfinite().all())


class Cornered(nn.Module):
    """The gradient by one weight is not a number, the loss is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.corner = net, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (0 * self.corner.weight).sqrt().sum() * torch.arange(10)


def test_gradients_that_are_not_numbers_do_not_spread(net: nn.Module, x: Tensor, y: Tensor) -> None:
    model = Cornered(net).eval()
    with torch.no_grad():
        model.corner.weight.abs_()
    got, alone = (search(each, x[:20], y[:20], 0.05, restarts=1) for each in (model, net))
    assert not got.deltas["corner.weight"].any() and torch.allclose(got.loss, alone.loss, rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batches_do_not_matter(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    a, b = (search(net, x[:25], y[:25], 0.02, threat=Threat(norm, 0.1), batch_size=size, steps=2) for size in (7, 64))
    assert a.passes == b.passes
    assert torch.allclose(a.loss, b.loss, rtol=1e-2) and float(a.loss.mean()) == pytest.approx(
        float(b.loss.mean()), rel=1e-3
    )


def test_bad_settings_are_refused(net: nn.Module, x: Tensor, y: Tensor) -> None:
    for facts in ({"steps": 0}, {"restarts": 0}):
        with pytest.raises(ParameterError, match="steps and restarts must be at least 1"):
            search(net, x[:2], y[:2], 0.1, **facts)
