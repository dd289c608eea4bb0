"""Layer criticality: against a slow reference, and the net comes back as it was."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import hardy
from hardy import seeding
from hardy.attacks import PGD
from hardy.corruptions import corrupt
from hardy.diagnosis.criticality import MOST_IMAGES, measure
from hardy.diagnosis.module_criticality import module_criticality
from hardy.errors import DataError, LayerNotFoundError, ParameterError
from hardy.threats import Threat

THREAT = Threat("linf", 0.05)


def make(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 8, 3, 2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    with torch.no_grad():
        net.train()(torch.rand(64, 1, 8, 8))  # statistics
        net[-1].weight.mul_(4)
    return net.eval()


@pytest.fixture
def net() -> nn.Module:
    return make()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def y(net: nn.Module, x: Tensor) -> Tensor:
    labels = net(x).argmax(1)
    return torch.where(torch.arange(len(x)) % 4 == 0, (labels + 1) % 3, labels)


def reference(net: nn.Module, x: Tensor, y: Tensor, name: str, *, radius: float, steps: int, lr: float) -> Tensor:
    """Losses of the images at the worst point, step by step as the paper says."""
    before = {key: value.detach() for key, value in [*net.named_parameters(), *net.named_buffers()]}

    def losses(weight: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, {**before, name: weight}, (x,)), y, reduction="none")

    weight = before[name].clone()
    best = losses(weight)
    for _ in range(steps):
        leaf = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(losses(leaf).mean(), leaf)
        change = weight + lr * gradient - before[name]
        most = radius * before[name].norm()
        if change.norm() > most:
            change = change * most / change.norm()
        weight = before[name] + change
        if losses(weight).mean() > best.mean():
            best = losses(weight)
    return best.detach()


@pytest.mark.parametrize("lr", [0.01, 1.0, 100.0])
def test_is_the_largest_loss_that_ascent_in_the_ball_sees(net: nn.Module, x: Tensor, y: Tensor, lr: float) -> None:
    found = module_criticality(net, x, y, perturb="clean", radius=0.2, steps=4, lr=lr, batch_size=7)
    assert found.layers == ("0", "3", "8")
    base = F.cross_entropy(net(x), y, reduction="none").detach()
    torch.testing.assert_close(found.base_loss, base)
    for i, layer in enumerate(found.layers):
        worst = reference(net, x, y, f"{layer}.weight", radius=0.2, steps=4, lr=lr)
        torch.testing.assert_close(found.rise[i], worst - base, atol=2e-5, rtol=1e-4)
        assert found.values[layer] > 0
    assert found.least == min(found.values, key=lambda name: found.values[name]) and found.least != found.most


def test_leaves_no_trace_on_the_net(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net[3].requires_grad_(False)
    for p in net.parameters():
        p.grad = torch.full_like(p, 0.5)
    before = copy.deepcopy(net.state_dict())
    flags, modes = [p.requires_grad for p in net.parameters()], [m.training for m in net.modules()]
    with torch.no_grad():
        module_criticality(net, x, y, threat=THREAT, steps=2)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags and [m.training for m in net.modules()] == modes
    assert all(p.grad is not None and bool((p.grad == 0.5).all()) for p in net.parameters())


def test_comes_back_when_it_is_stopped_in_the_middle(net: nn.Module, x: Tensor, y: Tensor) -> None:
    calls, moved, before = 0, False, copy.deepcopy(net.state_dict())

    def stop(_module: nn.Module, _args: Any) -> None:
        nonlocal calls, moved
        calls += 1
        if calls == 6:
            moved = not torch.equal(net[0].weight, before["0.weight"])
            raise KeyboardInterrupt

    net.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        module_criticality(net, x, y, perturb="clean", steps=10)
    assert moved and all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_buffers_that_a_forward_pass_counts_in_are_put_back(x: Tensor, y: Tensor) -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = make()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.net(x)
            return out

    model = Counting().eval()
    module_criticality(model, x, y, perturb="clean", steps=1)
    assert model.calls == 0


def test_nothing_rises_at_radius_0_and_in_a_layer_that_does_nothing(x: Tensor, y: Tensor) -> None:
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.dead, self.unused = make(), nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) + 0 * self.dead(x).mean()
            return out

    model = Dead().eval()
    still = module_criticality(model, x, y, perturb="clean", radius=0.0, steps=2)
    assert not still.rise.any() and torch.equal(still.right, still.base_right.expand_as(still.right))
    found = module_criticality(model, x, y, perturb="clean", steps=2)
    assert found.values["dead"] == found.values["unused"] == 0 and found.least == "dead"
    assert all(value > 0 for name, value in found.values.items() if name.startswith("net"))


def test_a_larger_ball_does_more_harm(net: nn.Module, x: Tensor, y: Tensor) -> None:
    rises = [module_criticality(net, x, y, perturb="clean", radius=r, lr=100.0).rise.mean(1) for r in (0.02, 0.1, 0.5)]
    assert bool((rises[0] < rises[1]).all()) and bool((rises[1] < rises[2]).all())


def test_a_norm_that_takes_off_the_scale_of_a_layer_takes_it_off_here(net: nn.Module, x: Tensor, y: Tensor) -> None:
    want = module_criticality(net, x, y, layers=["0"], perturb="clean", lr=0.1)
    with torch.no_grad():
        net[0].weight.mul_(8)
        net[0].bias.mul_(8)
        net[1].running_mean.mul_(8)
        net[1].running_var.mul_(64).add_(63 * net[1].eps)
    got = module_criticality(net, x, y, layers=["0"], perturb="clean", lr=6.4)  # gradients shrink, weights grow
    torch.testing.assert_close(got.rise, want.rise, atol=1e-5, rtol=1e-4)


def test_depends_on_identities_and_not_on_batches_or_order(net: nn.Module, x: Tensor, y: Tensor) -> None:
    rows = torch.arange(24) * 7
    whole = module_criticality(net, x, y, threat=THREAT, rows=rows, steps=3)
    parts = module_criticality(net, x, y, threat=THREAT, rows=rows, steps=3, batch_size=5)
    torch.testing.assert_close(parts.rise, whole.rise, atol=1e-4, rtol=1e-3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    mixed = module_criticality(net, x[order], y[order], threat=THREAT, rows=rows[order], steps=3)
    torch.testing.assert_close(mixed.rise, whole.rise[:, order], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(mixed.base_loss, whole.base_loss[order], atol=1e-5, rtol=1e-4)


def test_adversarial_images_are_made_once_and_passes_are_counted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = module_criticality(net, x, y, threat=THREAT, seed=3, steps=2)
    spec = PGD(steps=10, stop="never")
    made = hardy.attack(net, x, y, spec, threat=THREAT, seed=3, skip_wrong=False)
    torch.testing.assert_close(found.base_loss, F.cross_entropy(net(made.x_adv), y, reduction="none").detach())
    assert found.base_loss.mean() > F.cross_entropy(net(x), y) + 0.01
    worst = reference(net, made.x_adv, y, "3.weight", radius=0.1, steps=2, lr=1.0)
    torch.testing.assert_close(found.rise[1], worst - found.base_loss, atol=2e-5, rtol=1e-4)
    forward, backward = 24 * (1 + 3 * 3), 24 * 3 * 2
    assert found.passes == {
        "forward": made.passes["forward"] + forward,
        "backward": made.passes["backward"] + backward,
    }


def test_other_changes_of_the_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = module_criticality(net, x, y, layers=["8"], perturb="corruption:gaussian_noise", seed=2, steps=1)
    key = seeding.keys(seeding.root(2, "criticality:gaussian_noise"), torch.arange(24))
    noisy = corrupt(x, "gaussian_noise", severity=3, key=key)
    torch.testing.assert_close(found.base_loss, F.cross_entropy(net(noisy), y, reduction="none").detach())
    assert found.layers == ("8",)


def test_layers_that_share_a_weight_are_one(x: Tensor) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.b(self.a(x).relu()).flatten(1))
            return out

    model, y = Tied().eval(), torch.arange(24) % 3
    found = module_criticality(model, x, y, perturb="clean", steps=3)
    assert found.layers == ("a", "head")
    named = module_criticality(model, x, y, layers=["b"], perturb="clean", steps=3)
    assert named.layers == ("a",) and torch.equal(named.rise[0], found.rise[0])
    twin = nn.Module()
    twin.forward = lambda x, w: model.head(  # type: ignore[method-assign]
        F.conv2d(F.conv2d(x, w, model.a.bias, padding=1).relu(), w, model.b.bias, padding=1).flatten(1)
    )
    weight, start = model.a.weight.detach().clone(), model.a.weight.detach().norm()
    for _ in range(3):
        leaf = weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin(x, leaf), y), leaf)
        change = weight + gradient - model.a.weight.detach()
        weight = model.a.weight.detach() + change * min(1.0, float(0.1 * start / change.norm()))
    worst = F.cross_entropy(twin(x, weight), y, reduction="none").detach()
    torch.testing.assert_close(found.rise[0], worst - found.base_loss, atol=2e-5, rtol=1e-4)


def test_the_drop_of_accuracy_is_paired(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = module_criticality(net, x, y, perturb="clean", radius=0.8, lr=100.0)
    for i, layer in enumerate(found.layers):
        drop, low, high = found.drop(layer)
        assert drop == pytest.approx(float(found.base_right.float().mean() - found.right[i].float().mean()))
        assert low <= drop <= high
    assert max(found.drop(layer)[0] for layer in found.layers) > 0.2
    with pytest.raises(ParameterError, match="no layer 'x'"):
        found.drop("x")


def test_says_what_is_wrong_before_it_begins(net: nn.Module, x: Tensor, y: Tensor) -> None:
    for wrong in ({"radius": -0.1}, {"steps": 0}, {"lr": 0.0}, {"radius": float("nan")}):
        with pytest.raises(ParameterError, match="radius must be at least 0"):
            module_criticality(net, x, y, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="did you mean 'corruption:fog'"):
        module_criticality(net, x, y, perturb="corruption:fogg")
    with pytest.raises(ParameterError, match="unknown perturb 'fog'"):
        module_criticality(net, x, y, perturb="fog")
    with pytest.raises(ParameterError, match="layers must be convolutions or linear layers; 1, 2 has none"):
        module_criticality(net, x, y, layers=["1", "2"])
    with pytest.raises(LayerNotFoundError, match="nowhere"):
        module_criticality(net, x, y, layers=["nowhere"])
    with pytest.raises(DataError, match=r"labels must be in 0 \.\. 2"):
        module_criticality(net, x, y + 2, perturb="clean")
    with pytest.raises(ParameterError, match="must be in eval mode"):
        module_criticality(net.train(), x, y)


def case_of(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor, **more: Any) -> Any:
    from hardy.diagnosis.case import Case

    given = {
        "class_names": ("a", "b", "c"),
        "num_classes": 3,
        "layers": ("0", "3"),
        "masks": None,
        "threat": THREAT,
        "seed": 0,
        "batch_size": 64,
        "top": 10,
        "memo": {},
    }
    return Case(model=net, x=x, y=y, rows=rows, **{**given, **more})


def test_the_part_says_which_layer_matters_least_and_most(net: nn.Module, x: Tensor, y: Tensor) -> None:
    part = measure(case_of(net, x, y, torch.arange(24), layers=("3#0",)))
    assert part.name == "criticality" and len(part.notes) == 2
    labels = [score.label for score in part.scores]
    assert labels == [
        "loss, intact",
        *(f"{what}, {n}" for what in ("loss rise", "accuracy change") for n in ("3", "8")),
    ]
    found = module_criticality(net, x, y, layers=["3", "8"], threat=THREAT)
    torch.testing.assert_close(part.tensors["loss_rise"], torch.tensor(list(found.values.values())))
    assert {f.code: f.text for f in part.findings}.keys() == {"least_critical_layer", "most_critical_layer"}
    least = next(f for f in part.findings if f.code == "least_critical_layer")
    change = f"{found.values[found.least]:+.3f} nats, accuracy {100 * (0.0 - found.drop(found.least)[0]):+.1f} points"
    assert f"least in {found.least} ({change})" in least.text and "RiFT" in least.remedy
    assert f"right on {100 * found.base_right.float().mean():.3g} %" in part.notes[0]
    rises = [s for s in part.scores if s.series == "loss rise"]
    assert [s.level for s in rises] == [1.0, 2.0] and all(s.low is not None and s.unit == "nats" for s in rises)
    assert part.passes == found.passes


def test_the_part_takes_some_of_many_images_by_their_identities(net: nn.Module) -> None:
    n = MOST_IMAGES + 40
    x, rows = torch.rand(n, 1, 4, 4), torch.arange(n)
    y, order = rows % 3, torch.randperm(n)
    head = {"layers": ("8",)}
    one = measure(case_of(net, x, y, rows, **head))
    same = measure(case_of(net, x[order], y[order], rows[order], **head))
    assert one.notes[0] == f"{MOST_IMAGES} of {n} images, chosen by their identities"
    assert one.scores[0].n == MOST_IMAGES
    torch.testing.assert_close(one.tensors["loss_rise"], same.tensors["loss_rise"], atol=1e-4, rtol=1e-3)
