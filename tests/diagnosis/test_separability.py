"""The part separability: its numbers are those of the features that enter the classifier."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.corruptions import gaussian_noise
from hardy.diagnosis.attacked import attacked
from hardy.diagnosis.case import Case
from hardy.diagnosis.class_geometry import class_geometry, cross_similarity
from hardy.diagnosis.interference import interference
from hardy.diagnosis.separability import measure
from hardy.errors import DataError
from hardy.threats import Threat


def make_net(*, head: bool = True) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2), nn.ReLU()]
    last = [nn.Flatten(), nn.Linear(54, 3)] if head else [nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, *last).eval()


def make_case(net: nn.Module, n: int = 60, **facts: Any) -> Case:
    x: Tensor = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    known = {"y": torch.arange(n) % 3, "threat": Threat("linf", 0.05), **facts}
    names = ("a", "b", "c")
    return Case(model=net, x=x, rows=torch.arange(n), class_names=names, num_classes=3, layers=("0", "2"), **known)


def test_equals_the_functions_on_the_features() -> None:
    net = make_net()
    case = make_case(net, batch_size=7)
    part, (made, _) = measure(case), attacked(case)
    noisy = gaussian_noise(case.x, sigma=0.1, key=case.keys("separability"))
    z = {name: net[:5](x).detach() for name, x in (("clean", case.x), ("noisy", noisy), ("attacked", made.x_adv))}
    for name, features in z.items():
        found = class_geometry(features, case.y)
        assert part.score(f"separability, {name}").value == pytest.approx(found.ratio.value, rel=1e-4)
        assert part.score(f"similarity within classes, {name}").value == pytest.approx(found.intra.value, rel=1e-4)
        low, high = found.inter.bounds()
        assert part.score(f"distance between classes, {name}").low == pytest.approx(low, rel=1e-3)
        assert part.score(f"distance between classes, {name}").high == pytest.approx(high, rel=1e-3)
        right = (net[5](features).argmax(1) == case.y).double().mean()
        assert part.score(f"accuracy, {name}").value == pytest.approx(float(right))
    cross = cross_similarity(z["clean"], z["attacked"], case.y)
    assert part.score("cosine of an image and its attacked copy").value == pytest.approx(cross.own.value, rel=1e-4)
    other = part.score("cosine of clean and attacked images of two classes")
    assert other.value == pytest.approx(cross.other.value, rel=1e-4)
    pulls = interference(z["clean"], net(case.x).detach(), case.y, bias=True)
    assert part.score("cosine of gradients, one class").value == pytest.approx(pulls.within.value, rel=1e-3)
    assert part.score("effective rank of the gradients").value == pytest.approx(pulls.rank, rel=1e-3)


def test_separation_that_noise_takes_is_found() -> None:
    """Two clusters of which one pixel tells, far below the noise."""
    y = torch.arange(80) % 2
    x = torch.full((80, 1, 4, 4), 0.5)
    x[:, 0, 0, 0] = torch.where(y == 0, 0.49, 0.51)
    x = (x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        net[0].bias.copy_(torch.tensor([-0.5, 0.5]))
    case = Case(
        model=net, x=x, y=y, rows=torch.arange(80), class_names=("a", "b"), num_classes=2, layers=("0",),
        threat=Threat("linf", 1e-5),
    )  # fmt: skip
    part = measure(case)
    assert part.score("separability, clean").value > 1
    change = part.score("separability, noisy minus clean")
    assert change.high is not None and change.high < 0
    assert {finding.code for finding in part.findings} == {"separability_lost_noisy", "separability_attacked"}


def test_images_alone_in_their_class_are_left_out() -> None:
    y = torch.arange(60) % 2
    y[7] = 2
    part = measure(make_case(make_net(), y=y))
    assert part.score("separability, clean").n == 59
    assert any(note.startswith("1 images have no other of their class") for note in part.notes)
    with pytest.raises(DataError, match=r"at least 2 classes of at least 2 images; got 1"):
        measure(make_case(make_net(), y=torch.zeros(60, dtype=torch.int64)))


def test_without_a_linear_head_there_is_no_interference() -> None:
    part = measure(make_case(make_net(head=False)))
    assert not any(score.series == "interference" for score in part.scores)
    assert any("Interference is left out" in note for note in part.notes)
    assert part.score("separability, clean").value > 0


def test_logits_that_are_changed_behind_the_layer_have_no_interference() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) * 3
            return out

    part = measure(make_case(Scaled().eval()))
    assert not any(score.series == "interference" for score in part.scores)


def test_is_a_part_of_a_diagnosis() -> None:
    case = make_case(make_net())
    found = hardy.diagnose(case.model, case.x, case.y, parts=["separability"], threat=case.threat)
    again = hardy.diagnose(case.model, case.x, case.y, parts=["isolation", "separability"], threat=case.threat)
    assert found.part("separability").scores == again.part("separability").scores  # the images are shared
    assert again.part("separability").passes["backward"] == 0
