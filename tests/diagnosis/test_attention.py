"""Images that the net is sure of and those that it is not, and their maps."""

import sys
from typing import Any

import pytest
import torch
from scipy.stats import ttest_ind
from torch import Tensor, nn

import hardy
from hardy.diagnosis.attention import difference, groups, measure
from hardy.diagnosis.case import Case
from hardy.errors import ConfigError, ParameterError


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


def make_case(model: nn.Module, x: Tensor, y: Tensor, **facts: Any) -> Case:
    k = model(x[:1]).shape[1]
    names = tuple(f"class {i}" for i in range(k))
    layers = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return Case(
        model=model, x=x, y=y, rows=torch.arange(len(x)), class_names=names, num_classes=k, layers=layers, **facts
    )  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_difference_of_means_is_welchs() -> None:
    a, b = torch.randn(12, generator=torch.Generator().manual_seed(0)).numpy(), (2 * torch.arange(7.0)).numpy()
    value, low, high = difference(a, b)
    wanted = ttest_ind(a.astype(float), b.astype(float), equal_var=False).confidence_interval(0.95)
    assert value == pytest.approx(float(a.mean() - b.mean()), rel=1e-5)
    assert (low, high) == pytest.approx((wanted.low, wanted.high), rel=1e-4)
    assert difference(a[:1], b)[1:] == (None, None)


def test_groups_are_the_surest_right_and_the_least_sure() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(300, 3, generator=generator), torch.arange(300) % 3
    sure, unsure = groups(logits, y)
    assert len(sure) == len(unsure) == 60 and not set(sure.tolist()) & set(unsure.tolist())
    assert bool((logits[sure].argmax(1) == y[sure]).all())
    p = logits.softmax(1).amax(1)
    for c in range(3):
        mine = y == c
        rest = torch.ones(300, dtype=torch.bool).index_fill_(0, sure, False) & mine
        right = rest & (logits.argmax(1) == c)
        assert p[sure][y[sure] == c].min() >= p[right].max()
        assert p[unsure][y[unsure] == c].max() <= p[rest.index_fill(0, unsure, False)].min()


def test_small_classes_are_halved_and_wrong_ones_have_no_group() -> None:
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    sure, unsure = groups(logits, torch.tensor([0, 0, 0, 1]))
    assert sure.tolist() == [0] and unsure.tolist() == [2]


def test_measure_of_the_corner_net(x: Tensor) -> None:
    net = Looks().eval()
    y = net(x).argmax(1)
    part = measure(make_case(net, x, y))
    assert part.name == "attention" and part.findings[0].code in {
        "looks_alike",
        "unsure_looks_around",
        "unsure_looks_closer",
    }
    assert part.score("area that carries half of the map, sure images").value < 0.15
    pictures, maps, index = (part.tensors[f"sure {what}"] for what in ("pictures", "maps", "index"))
    assert torch.equal(pictures, (x[index] * 255).round().to(torch.uint8)) and maps.shape == (len(index), 8, 8)
    confidence = part.tensors["sure confidence"]
    assert torch.equal(confidence, confidence.sort(descending=True).values)
    assert float(confidence.min()) >= float(part.tensors["unsure confidence"].max())
    assert part.passes["backward"] == part.score("overlap of the mean maps of sure and unsure images").n


def test_maps_that_are_zero_are_left_out_and_counted(x: Tensor) -> None:
    net = Looks().eval()
    net.head.weight.data.neg_()  # what is bright speaks against every class
    part = measure(make_case(net, x, net(x).argmax(1)))
    assert any("maps are 0 everywhere" in note for note in part.notes)


def test_without_captum_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, x: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"pip install 'hardy\[attention\]'"):
        measure(make_case(Looks().eval(), x, torch.zeros(40, dtype=torch.int64)))
    monkeypatch.setattr("hardy.diagnosis.run.available", lambda: False)
    net = Looks().eval()
    with pytest.raises(ParameterError, match=r"attention needs the package captum: pip install"):
        hardy.diagnose(net, x, net(x).argmax(1), parts=["attention"])
