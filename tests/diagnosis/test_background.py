"""Background reliance of nets that look where they were made to look."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy.diagnosis import background
from hardy.diagnosis.background import ALONE, PLAIN, SWAPPED, WITHOUT, _findings, measure
from hardy.diagnosis.case import Case
from hardy.diagnosis.record import Part
from hardy.errors import DataError
from hardy.records import Score


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


def make_case(*, object_is_corner: bool, **facts: Any) -> Case:
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, :4, :4] = torch.where(torch.arange(60) % 2 == 0, 0.2, 0.8)[:, None, None, None] + 0.1 * x[:, :, :4, :4]
    masks = torch.zeros(60, 8, 8, dtype=torch.bool)
    masks[:, :4, :4] = True
    net = Looks().eval()
    return Case(
        model=net, x=x, y=net(x).argmax(1), rows=torch.arange(60), class_names=("dark", "bright"), num_classes=2,
        layers=("conv",), **{"masks": masks if object_is_corner else ~masks, **facts},
    )  # fmt: skip


def codes(part: Part) -> set[str]:
    return {finding.code for finding in part.findings}


def test_a_net_that_looks_at_the_object_needs_no_background() -> None:
    part = measure(make_case(object_is_corner=True))
    for name in ("plain", ALONE, SWAPPED):
        assert part.score(f"accuracy, {name}").value == 1
    assert part.score(f"accuracy, {WITHOUT}").value == pytest.approx(0.5, abs=0.02)  # one answer to all
    assert codes(part) == {"no_background_reliance"}
    for kind in ("attention", "gradient"):
        assert part.score(f"{kind} on the background, sure images").value == pytest.approx(0, abs=1e-6)
        beyond = part.score(f"{kind} on the background beyond its area, sure images")
        assert beyond.value == pytest.approx(-0.75) and beyond.high is not None and beyond.high < 0
    assert part.score("answers that name the class of the background").value == 0


def test_a_net_that_looks_at_the_background_is_found_out() -> None:
    part = measure(make_case(object_is_corner=False))
    assert part.score(f"accuracy, {SWAPPED}").value == 0
    assert part.score(f"accuracy, {SWAPPED} minus plain").high == -1
    assert part.score("answers that name the class of the background").value == 1
    assert part.score(f"right answers kept, {WITHOUT}").value == 1
    assert part.score("attention on the background, sure images").value == pytest.approx(1)
    wanted = {"needs_its_background", "needs_a_background", "background_tells_the_class"}
    assert codes(part) == wanted | {"attention_on_background", "gradient_on_background"}
    assert all(f.severity == "problem" and "hardy treat" in f.remedy for f in part.findings if f.code in wanted)


def test_images_without_a_mark_are_left_out_and_counted() -> None:
    case = make_case(object_is_corner=True)
    assert case.masks is not None
    masks = case.masks.clone()
    masks[:7] = False
    masks[7] = True
    part = measure(make_case(object_is_corner=True, masks=masks))
    assert part.score("accuracy, plain").n == 52
    assert any(note.startswith("8 of 60 images") for note in part.notes)
    assert int(part.tensors["index"].min()) == 8
    assert part.tensors[f"pictures {ALONE}"].shape == part.tensors["pictures"].shape == (8, 1, 8, 8)
    masks[:55] = False
    with pytest.raises(DataError, match="at least 10 images with an object and a background; masks mark 5"):
        measure(make_case(object_is_corner=True, masks=masks))


def test_without_masks_it_says_what_it_needs() -> None:
    with pytest.raises(DataError, match="where the objects are"):
        measure(make_case(object_is_corner=True, masks=None))


def test_one_class_has_no_other_background() -> None:
    case = make_case(object_is_corner=True)
    one = torch.arange(60) % 2 == 0
    assert case.masks is not None
    facts = {"x": case.x[one], "y": case.y[one], "rows": case.rows[one], "masks": case.masks[one]}
    part = measure(Case(model=case.model, class_names=("dark", "bright"), num_classes=2, layers=("conv",), **facts))
    assert not any(SWAPPED in score.label for score in part.scores)


def test_without_captum_the_gradient_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "available", lambda: False)
    part = measure(make_case(object_is_corner=True))
    assert not any(score.series == "attention" for score in part.scores)
    assert any(score.series == "gradient" for score in part.scores)
    assert any("hardy[attention]" in note for note in part.notes)


def test_is_a_part_of_a_diagnosis() -> None:
    case = make_case(object_is_corner=True)
    found = hardy.diagnose(case.model, case.x, case.y, parts=["background"], masks=case.masks)
    assert found.part("background").score("accuracy, plain").value == 1


@pytest.mark.parametrize(("p", "problem"), [(0.125, False), (0.01, True)])
def test_few_images_are_no_problem_by_their_interval_alone(p: float, problem: bool) -> None:
    scores = [
        Score(label=f"accuracy, {PLAIN}", value=0.9, kind="accuracy", n=10, low=0.6, high=0.98),
        Score(label=f"accuracy, {WITHOUT}", value=0.1, kind="accuracy", n=10, low=0.0, high=0.4),
        *(
            Score(label=f"accuracy, {name} minus plain", value=-0.4, kind="description", n=10, low=-0.7, high=-0.1,
                  details={"p": p})
            for name in (ALONE, SWAPPED)
        ),
    ]  # fmt: skip
    found = {finding.code for finding in _findings(scores, chance=0.5)}
    assert ({"needs_its_background", "needs_a_background"} <= found) is problem
    assert ("no_background_reliance" in found) is not problem
    weak = [replace(scores[0], value=0.4, low=0.2), *scores[1:]]
    if not problem:
        assert {finding.code for finding in _findings(weak, chance=0.5)} == {"background_not_told"}
