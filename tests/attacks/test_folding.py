"""The copy for the search is the same function, and is not made where it would not be."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import hardy
from hardy.attacks import APGD, FAB, Square, attack
from hardy.attacks.folding import folded
from hardy.methods import DefectiveConv
from hardy.models import BUILTIN
from hardy.threats import Threat


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give the norms statistics that matter."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=g) / 2)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=g) + 0.5)  # type: ignore[union-attr]
            with torch.no_grad():
                module.weight.copy_(torch.rand(module.weight.shape, generator=g) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=g) / 2)
    return net.eval()


def images(n: int = 4, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_vgg16", "cifar_preact_resnet18", "timm:resnet18"])
def test_logits_and_gradients_are_those_of_the_net(name: str) -> None:
    net, x = trained(hardy.load_model(name, num_classes=10)).double(), images().double()  # a ReLU may turn by rounding
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        z = net(x)
    fast = folded(net, x, z)
    assert fast is not None and norms(fast) <= (norms(net) + 1) // 2
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    a, b = images(6).double().requires_grad_(), images(6).double().requires_grad_()
    ours, theirs = fast(a), net(b)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    (g,), (h,) = torch.autograd.grad(ours.sum(), a), torch.autograd.grad(theirs.sum(), b)
    assert float((g - h).norm() / h.norm()) < 1e-9
    assert all(not p.requires_grad for p in fast.parameters()) and all(p.requires_grad for p in net.parameters())


def test_masks_stay_where_they_are() -> None:
    net, x = trained(hardy.load_model("cifar_resnet20", num_classes=10)), images()
    hardy.attach(net, [DefectiveConv()], example=x[:1], seed=0)
    net.eval()
    with torch.no_grad():
        z = net(x)
        fast = folded(net, x, z)
        assert fast is not None
        torch.testing.assert_close(fast(images(7)), net(images(7)), rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """What comes out of the convolution goes past the norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        z: Tensor = (self.norm(h).relu() + h).mean(dim=(2, 3))
        return z


class Twice(nn.Module):
    """One convolution, two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = (self.a(self.conv(x)) - self.b(self.conv(0.5 * x))).mean(dim=(2, 3))
        return z


def test_a_norm_that_cannot_be_folded_is_not() -> None:
    x = images()
    for kind in (Shared, Twice):
        net = trained(kind())
        fast = folded(net, x, net(x).detach())
        assert fast is not None and norms(fast) == norms(net) and torch.allclose(fast(x), net(x), atol=1e-5)


def test_there_is_none_for_nets_that_are_watched_random_or_not_plain() -> None:
    x, net = images(), trained(hardy.load_model("cifar_resnet8" if "cifar_resnet8" in BUILTIN else "cifar_resnet20"))
    z = net(x).detach()
    assert folded(net, x, z) is not None
    tap = net.register_forward_hook(lambda *_: None)
    assert folded(net, x, z) is None
    tap.remove()
    assert folded(torch.compile(net, backend="eager"), x, z) is None  # type: ignore[arg-type]  # a module
    live = nn.Sequential(net, nn.Dropout(0.5)).eval()
    live[1].train()
    assert folded(live, x, live(x).detach()) is None
    assert folded(net, x, z + 0.1) is None and folded(net, x, z * torch.nan) is None


@pytest.mark.parametrize(
    "spec",
    [APGD(steps=12), APGD(steps=12, objective="dlr", targeted=True, restarts=3), FAB(steps=8), Square(queries=60)],
    ids=["apgd", "apgd-t", "fab", "square"],
)
def test_verdicts_are_those_of_a_search_on_the_net_itself(spec: APGD | FAB | Square) -> None:
    torch.manual_seed(0)
    net = trained(timm.create_model("resnet10t", num_classes=10))
    x = images(24)
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    threat = Threat("linf", 1 / 255)
    fast = attack(net, x, y, spec, threat=threat)
    tap = net.register_forward_hook(lambda *_: None)  # a watched net is searched itself
    slow = attack(net, x, y, spec, threat=threat)
    tap.remove()
    sure = (fast.margin.abs() > 1e-3) & (slow.margin.abs() > 1e-3)
    assert torch.equal(fast.success[sure], slow.success[sure]) and int(sure.sum()) >= 20
    torch.testing.assert_close(net(fast.x_adv).argmax(dim=1) != y, fast.success)


class Straight(torch.autograd.Function):
    """Rounds; its gradient is viewed as what it was, which a channels-last gradient cannot be."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004  (the contract)
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004  (the contract)
        return g.view(len(g), -1).view(g.shape)


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = Straight.apply(self.norm(self.conv(x)))
        z: Tensor = self.head(h.relu().mean(dim=(2, 3)))
        return z


class Picky(Through):
    def forward(self, x: Tensor) -> Tensor:
        assert len(x) > 1
        return super().forward(x)


class TwoNames(Through):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.ModuleList([self.conv])

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.norm(self.again[0](x)).relu().mean(dim=(2, 3)))
        return torch.cat([z, z.new_full((len(x), 1), -1e9)], dim=1)


@pytest.mark.parametrize("kind", [Through, Picky, TwoNames])
def test_nets_that_a_copy_might_break_are_attacked_all_the_same(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = trained(kind()), images(12)
    y = net(x).argmax(dim=1)
    found = attack(net, x, y, APGD(steps=5), threat=Threat("linf", 8 / 255))
    tap = net.register_forward_hook(lambda *_: None)
    slow = attack(net, x, y, APGD(steps=5), threat=Threat("linf", 8 / 255))
    tap.remove()
    assert torch.equal(found.success, slow.success)
