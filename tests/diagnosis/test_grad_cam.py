"""Maps against Grad-CAM by hand, and of a net that looks at a planted corner only."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy import load_model
from hardy.diagnosis.grad_cam import available, concentration, grad_cam, last_features, load_captum, overlap, shares
from hardy.errors import ConfigError, LayerNotFoundError, ParameterError


class Corner(nn.Module):
    """Lets only the upper left quarter of a feature map through."""

    def forward(self, y: Tensor) -> Tensor:
        mask = torch.zeros_like(y)
        mask[..., : y.shape[2] // 2, : y.shape[3] // 2] = 1
        return y * mask


class Looks(nn.Module):
    """Answers 1 where the corner is bright, 0 where it is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.corner = nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), Corner()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(2, 2, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.conv.bias.data = torch.tensor([-0.5, 0.5])
        self.head.weight.data = torch.tensor([[0.0, 40.0], [40.0, 0.0]])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.pool(self.corner(self.act(self.conv(x)))).flatten(1))
        return out


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3)).eval()


@pytest.mark.parametrize(("site", "upto"), [("4", 5), ("3", 4), ("0", 1), ("4@input", 4)])
def test_equals_grad_cam_by_hand(net: nn.Sequential, x: Tensor, site: str, upto: int) -> None:
    target = torch.arange(40) % 3
    found = grad_cam(net, x, target, site=site, batch_size=7)
    for i in range(0, 40, 9):
        y = net[:upto](x[i : i + 1]).detach().clone().requires_grad_()
        (g,) = torch.autograd.grad(net[upto:](y.clone())[0, target[i]], y)
        map_ = F.relu((g.mean((2, 3), keepdim=True) * y).sum(1, keepdim=True)).detach()
        wanted = F.interpolate(map_, size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
        assert torch.allclose(found[i], wanted, atol=1e-6)


def test_leaves_no_trace(net: nn.Sequential, x: Tensor) -> None:
    before, state = {n: p.clone() for n, p in net.state_dict().items()}, torch.random.get_rng_state()
    for p in net.parameters():
        p.requires_grad_(False)
    found = grad_cam(net, x, torch.zeros(40, dtype=torch.int64), site="4")
    assert not found.requires_grad and bool((found.sum((1, 2)) > 0).any())
    assert all(torch.equal(before[n], p) for n, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ParameterError, match="eval mode"):
        grad_cam(net.train(), x, torch.zeros(40, dtype=torch.int64), site="4")


def test_the_last_features_are_what_the_classifier_pools(net: nn.Sequential, x: Tensor) -> None:
    assert last_features(net, x) == "4"
    assert last_features(Looks().eval(), x) == "corner"
    resnet = load_model("cifar_resnet20", num_classes=10).eval()
    assert last_features(resnet, torch.rand(1, 3, 32, 32)).endswith("layer3")
    with pytest.raises(LayerNotFoundError, match="feature map"):
        last_features(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), x)


def test_a_net_that_looks_at_a_corner_is_seen_to(x: Tensor) -> None:
    net = Looks().eval()
    maps = shares(grad_cam(net, x, net(x).argmax(1), site="corner"))
    assert torch.allclose(maps.sum((1, 2)), torch.ones(40))
    assert float(maps[:, :4, :4].sum((1, 2)).min()) == pytest.approx(1)
    assert bool((concentration(maps) <= 0.125 + 1e-6).all())  # half of a quarter of the area


def test_concentration_in_closed_form() -> None:
    even, point, two = torch.ones(1, 4, 5), torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    point[0, 1, 1] = 3
    two[0, 0, 0], two[0, 0, 1] = 1, 3
    assert float(concentration(even)) == pytest.approx(0.5)
    assert float(concentration(point)) == pytest.approx(0.5 / 20)
    assert float(concentration(two)) == pytest.approx(2 / 3 / 20)
    assert float(concentration(two, mass=0.9)) == pytest.approx((1 + 0.15 / 0.25) / 20)
    ramp = torch.arange(1.0, 101).reshape(1, 10, 10)
    assert float(concentration(ramp * 7)) == pytest.approx(float(concentration(ramp)))


def test_overlap_and_shares() -> None:
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]])
    assert float(overlap(a / 4, b / 4)) == 0.5 and float(overlap(a / 4, a / 4)) == 1
    blank = shares(torch.zeros(2, 3, 3))
    assert bool((blank == 0).all())


def test_without_captum_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'hardy\[attention\]'"):
        load_captum()
    monkeypatch.setattr("hardy.diagnosis.grad_cam.importlib.util.find_spec", lambda _: None)
    assert not available()
