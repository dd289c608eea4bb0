"""The axis on a planted model that looks at one corner only, and on digits: what is hidden and how it is counted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy import seeding
from hardy.corruptions.fills import blur_fill, channel_mean, mean_fill, noise_fill, zero_fill
from hardy.corruptions.patch_drop import foreground, patch_drop, patch_mass, salient_order
from hardy.errors import ParameterError, ShapeError
from hardy.evaluation import occlusion
from hardy.evaluation.attribution import saliency
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.evaluation.material import Material
from hardy.evaluation.occlusion import measure
from hardy.threats import Threat

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
N = 64


class Corner(nn.Module):
    """Two logits from the mean of the first 4 x 4 pixels: 1 if they are bright."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x[:, :, :4, :4].mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1)


@pytest.fixture
def corner() -> Context:
    """16 x 16 noise with a corner that is dark in one half of the images and bright in the other."""
    x = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.arange(N) % 2
    x[:, :, :4, :4] = torch.where(y == 1, 0.9, 0.1)[:, None, None, None]
    return asked(Corner(), x, y, budget=Budget(drop_grid=4))


def asked(model: nn.Module, x: Tensor, y: Tensor, **facts: Any) -> Context:
    rows = facts.pop("rows", torch.arange(len(x)))
    plain = Context(
        model=model.eval(),
        x=x,
        y=y,
        rows=rows,
        predictions=y,
        num_classes=int(y.max()) + 1,
        threat=Threat("linf", 0.1),
        **facts,
    )
    return plain.answered()


def done(context: Context) -> Measured:
    made = measure(context)
    assert isinstance(made, Measured)
    return made


def curve(made: Measured, series: str) -> list[float]:
    return [point.accuracy for point in made.axis.points if point.series == series]


def test_hiding_what_the_model_looks_at_hurts_more_than_hiding_at_random(corner: Context) -> None:
    made = done(corner)
    assert curve(made, "most salient patches") == [0.5] * 5  # one of 16 patches is enough: it says the same of all
    random = curve(made, "random patches, mean fill")
    expected = [1 - dropped / 32 for dropped in (1, 4, 8, 11, 14)]  # half of those that lose the corner
    assert all(abs(a - b) < 4 * 0.5 / N**0.5 for a, b in zip(random, expected, strict=True))
    assert random[0] > 0.8 > random[4]
    assert curve(made, "foreground removed") == [0.5] * 5
    assert curve(made, "only the foreground kept") == [1.0] * 5
    kept = [point for point in made.axis.points if point.series == "only the foreground kept"]
    assert {point.details["hidden_share"] for point in kept} == {15 / 16}


def test_a_side_is_lost_where_the_series_says(corner: Context) -> None:
    made = done(corner)
    assert curve(made, "lost from the top") == curve(made, "lost from the left") == [0.5] * 5
    assert curve(made, "lost from the bottom") == curve(made, "lost from the right") == [1.0] * 5


def test_exactly_the_images_that_lose_the_corner_are_answered_as_the_fill_is(corner: Context) -> None:
    made, key, x = done(corner), corner.keys("patch_drop"), corner.x
    fills = {
        "zero": zero_fill(x),
        "mean": mean_fill(x, mean=channel_mean(x)),
        "noise": noise_fill(x, key=corner.keys("noise_fill")),
        "blur": blur_fill(x, cells=2),
    }
    for name, fill in fills.items():
        as_filled = corner.predict(fill) == corner.y
        for share in SHARES:
            lost = (patch_drop(x, share=share, grid=4, fill=fill, key=key) != x)[:, :, 0, 0].all(dim=1)
            first = seeding.permutation(key, 0, 16)[:, : int(share * 16)]
            assert torch.equal(lost, (first == 0).any(dim=1)) and lost.any()
            assert torch.equal(made.outcomes[f"random patches, {name} fill, {share:g}"], ~lost | as_filled)
    ends = {name: tuple(made.outcomes[f"random patches, {name} fill, 0.9"].tolist()) for name in fills}
    assert len(set(ends.values())) == 4


def test_an_image_without_relevance_loses_the_random_patches(corner: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occlusion, "BLIND", 1.0)
    nothing = Material(attribution=lambda _, x, y: torch.zeros_like(x[:, 0]) - y[:, None, None])
    made = done(asked(corner.model, corner.x, corner.y, budget=corner.budget, material=nothing))
    for share in SHARES:
        salient = made.outcomes[f"most salient patches, {share:g}"]
        assert torch.equal(salient, made.outcomes[f"random patches, mean fill, {share:g}"])
    details = [point.details for point in made.axis.points if point.series == "foreground removed"]
    assert all(each["images_without_relevance"] == N and each["relevance"] == "<lambda>" for each in details)
    assert [each["hidden_share"] for each in details] == [2 / 16, 5 / 16, 8 / 16, 12 / 16, 15 / 16]


class Masked(Corner):
    """The same answers from pixels of 256 levels, through which no gradient comes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 255).round() / 255)


def test_masked_gradients_leave_the_salient_curves_out_unless_there_is_a_twin(corner: Context) -> None:
    rows: list[int] = []
    masked = Masked()
    masked.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    context = asked(masked, corner.x, corner.y, budget=corner.budget)
    rows.clear()
    made = done(context)
    noted = [point for point in made.axis.points if "salient_left_out" in point.details]
    assert [point.label for point in noted] == [made.axis.headline]
    assert noted[0].details["salient_left_out"] == f"{N} of {N} images have no relevance"
    assert not any("salient" in p.series or "foreground" in p.series for p in made.axis.points)
    assert sum(point.passes["forward"] for point in made.axis.points) == sum(rows)
    helped = done(asked(masked, corner.x, corner.y, budget=corner.budget, twin=Corner().eval()))
    assert curve(helped, "most salient patches") == [0.5] * 5
    assert not any("salient_left_out" in point.details for point in helped.axis.points)


def test_few_images_without_relevance_are_only_counted(corner: Context) -> None:
    def some(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        first = (x[:, None] == corner.x[None, :6]).flatten(2).all(dim=2).any(dim=1)
        return (~first).float()[:, None, None] * torch.ones_like(x[:, 0])

    made = done(asked(corner.model, corner.x, corner.y, budget=corner.budget, material=Material(attribution=some)))
    found = [point for point in made.axis.points if point.series == "most salient patches"]
    assert len(found) == 5 and {point.details["images_without_relevance"] for point in found} == {6}


def test_the_record_says_what_was_hidden_and_counts_every_pass(corner: Context) -> None:
    rows: list[int] = []
    corner.model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    made = done(corner)
    points = made.axis.points
    assert sum(point.passes["forward"] for point in points) == sum(rows) == 56 * N
    assert [point.passes["backward"] for point in points if "backward" in point.passes] == [N]
    assert len({point.label for point in points}) == 55 and set(made.outcomes) == {point.label for point in points}
    assert made.axis.headline == points[2].label == "random patches, mean fill, 0.5"
    for series in ("random patches, zero fill", "most salient patches", "lost from the right"):
        found = [point for point in points if point.series == series]
        assert [point.level for point in found] == list(SHARES)
        assert [point.details["hidden_share"] for point in found] == [1 / 16, 4 / 16, 8 / 16, 11 / 16, 14 / 16]
        assert {point.details["grid"] for point in found} == {"4x4"}


def test_the_settings_are_followed(corner: Context) -> None:
    every = ("whole", "ramp", "peak", "valley", "even")
    budget = Budget(drop_grid=2, drop_shares=(0.8, 0.25), fills=("zero", "noise"), scan_profiles=every)
    made = done(asked(corner.model, corner.x, corner.y, budget=budget))
    assert made.axis.headline == "random patches, zero fill, 0.25"
    series = list(dict.fromkeys(point.series for point in made.axis.points))
    assert len(series) == 2 + 3 + 4 + 4 + 2 + 2 + 1
    assert "loss peaks in the middle columns" in series and series[-1] == "the same loss in every patch"
    assert {point.details["fill"] for point in made.axis.points if not point.series.startswith("random")} == {"zero"}
    even = [point for point in made.axis.points if point.series == series[-1]]
    assert [point.details["hidden_share"] for point in even] == [round(51 / 64, 4), 0.25]
    with pytest.raises(ParameterError, match="scan_profiles must be some of"):
        Budget(scan_profiles=("rampp",))


def test_an_image_does_not_depend_on_its_batch_or_its_place(net: nn.Module, x: Tensor, y: Tensor) -> None:
    budget = Budget(drop_shares=(0.3, 0.6), scan_profiles=("whole", "ramp"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = done(asked(net, x[:40], y[:40], budget=budget))
    other = done(asked(net, x[:40][order], y[:40][order], rows=order, batch_size=7, budget=budget))
    for label, right in one.outcomes.items():
        assert torch.equal(other.outcomes[label], right[order]), label
    assert not torch.equal(
        done(asked(net, x[:40], y[:40], budget=budget, seed=1)).outcomes[one.axis.headline],
        one.outcomes[one.axis.headline],
    )


def test_digits_are_cut_into_16_patches_and_more_hidden_is_worse(net: nn.Module, x: Tensor, y: Tensor) -> None:
    made = done(asked(net, x, y))
    assert {point.details["grid"] for point in made.axis.points} == {"4x4"}
    for fill in ("zero", "mean", "noise", "blur"):
        least, *_, most = curve(made, f"random patches, {fill} fill")
        assert least > most + 0.3
    mass = patch_mass(saliency(net, x, y), grid=4)
    held = foreground(mass, salient_order(mass, key=mass[:, 0].long()), share=0.5).float().mean()
    removed, kept = (
        next(p for p in made.axis.points if p.label == f"{series}, 0.5")
        for series in ("foreground removed", "only the foreground kept")
    )
    assert removed.details["hidden_share"] == pytest.approx(float(held), abs=1e-4)
    assert kept.details["hidden_share"] == pytest.approx(1 - float(held), abs=1e-4)
    salient, random = curve(made, "most salient patches"), curve(made, "random patches, mean fill")
    assert sum(salient) < sum(random) - 0.2


@pytest.mark.parametrize(("side", "most"), [(31, 8), (3, 8), (16, 1)])
def test_images_without_a_grid_are_not_measured(side: int, most: int) -> None:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    made = measure(asked(Corner(), x, torch.tensor([0, 1]), budget=Budget(drop_grid=most)))
    assert isinstance(made, NotMeasured) and made.name == "occlusion"
    assert f"at most {most} patches per side" in made.reason and f"{side}x{side}" in made.reason


def test_a_callable_that_gives_something_else_is_an_error_before_anything_is_computed(corner: Context) -> None:
    wrong = asked(
        corner.model, corner.x, corner.y, budget=corner.budget, material=Material(attribution=lambda _m, x, _y: x)
    )
    calls: list[int] = []
    corner.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ShapeError, match=r"must return floating-point numbers \(n, h, w\) = \(32, 16, 16\)"):
        measure(wrong)
    assert not calls
