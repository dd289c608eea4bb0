"""The axis against certificates computed image by image, and against attacks."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import attack
from hardy.certificates import certify, margin_bound
from hardy.evaluation.budget import Budget
from hardy.evaluation.certified import ABSTAINED, BOUND, CHOICE, NOISY, RADIUS, SELECT, SERIES, measure
from hardy.evaluation.context import Context, Measured, NotMeasured
from hardy.seeding import fold, normal
from hardy.threats import Threat

SIGMA, DRAWS, FEW = 0.25, 40, 30
BUDGET = Budget(smoothing_sigma=SIGMA, smoothing_draws=DRAWS)


class Counted(nn.Module):
    """Counts the rows that it answers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        out: Tensor = self.net(x)
        return out


@pytest.fixture(scope="module")
def make(net: nn.Module, x: Tensor, y: Tensor) -> Callable[..., Context]:
    def context(model: nn.Module = net, **facts: object) -> Context:
        given: dict[str, object] = {
            "threat": Threat("l2", 0.2),
            "budget": BUDGET,
            "rows": torch.arange(FEW) + 5,
        } | facts
        return Context(model=model, x=x[:FEW], y=y[:FEW], predictions=y[:FEW], num_classes=10, **given)  # type: ignore[arg-type]

    return context


@pytest.fixture(scope="module")
def measured(make: Callable[..., Context]) -> Measured:
    found = measure(make())
    assert isinstance(found, Measured)
    return found


def test_radii_are_those_of_votes_counted_by_hand(
    measured: Measured, make: Callable[..., Context], net: nn.Module, x: Tensor, y: Tensor
) -> None:
    context = make()
    select, estimate = context.keys("certified:select"), context.keys("certified:estimate")
    kinds = set()
    for i in range(12):

        def votes(key: Tensor, draws: int, i: int = i) -> Tensor:
            noise = torch.cat([normal(fold(key[i : i + 1], d), 0, (1, 8, 8)) for d in range(draws)])
            return net(x[i] + SIGMA * noise).argmax(dim=1)

        first = votes(select, SELECT)
        assert measured.arrays[NOISY][i] == pytest.approx(float((first == y[i]).float().mean()))
        chosen = bool(first.bincount(minlength=10).argmax() == y[i])
        assert bool(measured.outcomes[CHOICE][i]) is chosen
        hits = int((votes(estimate, DRAWS) == y[i]).sum())
        want = certified(hits) if chosen else 0.0
        assert float(measured.arrays[RADIUS][i]) == pytest.approx(want, rel=1e-5)
        assert bool(measured.arrays[ABSTAINED][i]) is (chosen and want == 0)
        kinds.add("certified" if want > 0 else "abstained" if chosen else "wrong")
    assert "certified" in kinds and len(kinds) > 1


def certified(hits: int) -> float:
    from scipy import stats

    low = stats.binomtest(hits, DRAWS, alternative="greater").proportion_ci(0.999, method="exact").low
    return SIGMA * float(stats.norm.ppf(low)) if low > 0.5 else 0.0


def test_points_and_scores_are_read_off_the_radii(measured: Measured) -> None:
    axis, radius = measured.axis, measured.arrays[RADIUS]
    curve = [p for p in axis.points if p.series == SERIES]
    assert [p.level for p in curve] == pytest.approx([0, 0.125, 0.25, 0.375, 0.2])
    for p in curve:
        assert torch.equal(measured.outcomes[p.label], (radius > 0) & (radius >= p.level))  # type: ignore[operator]
        assert p.accuracy == pytest.approx(float(measured.outcomes[p.label].float().mean()))
    accuracies = [p.accuracy for p in curve[:4]]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] > 0.3
    assert axis.headline == "radius 0.125" == curve[1].label
    assert {p.label for p in axis.points} == set(measured.outcomes)
    assert curve[4].label == "all of l2 0.2" and curve[4].details["reachable"] is True
    scores = {s.label: s for s in axis.scores}
    assert set(scores) == set(measured.arrays) == {RADIUS, ABSTAINED, NOISY}
    for label, score in scores.items():
        assert measured.arrays[label].dtype == torch.float32
        assert score.value == pytest.approx(float(measured.arrays[label].mean()), abs=1e-6)
    assert scores[NOISY].kind == "accuracy" and scores[RADIUS].kind == "quality"
    # right but abstained, right and certified, and wrong are all there is
    chosen = measured.outcomes[CHOICE]
    assert torch.equal(chosen, (radius > 0) | (measured.arrays[ABSTAINED] > 0))


def test_everything_smoothed_says_how_and_no_verdict_hangs_on_abstention(measured: Measured) -> None:
    how = {"sigma": SIGMA, "draws": DRAWS, "select": SELECT, "alpha": 0.001}
    parts = [*(p for p in measured.axis.points if p.series == SERIES), *measured.axis.scores]
    assert len(parts) == 8 and all(how.items() <= part.details.items() for part in parts)
    assert next(s for s in measured.axis.scores if s.label == ABSTAINED).kind == "description"


def test_a_part_in_train_mode_is_not_measured(make: Callable[..., Context], net: nn.Module) -> None:
    model = nn.Sequential(net, nn.Dropout(0.5)).eval()
    model[1].train()
    found = measure(make(model))
    assert isinstance(found, NotMeasured) and "train mode" in found.reason


def test_the_details_say_what_can_be_certified_at_all(measured: Measured) -> None:
    head = next(p for p in measured.axis.points if p.label == measured.axis.headline)
    assert {k: head.details[k] for k in ("sigma", "draws", "select", "alpha")} == {
        "sigma": SIGMA,
        "draws": DRAWS,
        "select": SELECT,
        "alpha": 0.001,
    }
    assert head.details["largest_radius"] == pytest.approx(float(measured.arrays[RADIUS].max()))  # some image is clear
    assert "no_margin_bound" not in head.details and "random_net" not in head.details


def test_images_chosen_wrong_cost_no_further_passes(
    make: Callable[..., Context], net: nn.Module, measured: Measured
) -> None:
    model = Counted(net).eval()
    found = measure(dataclasses.replace(make(model), batch_size=SELECT))  # no filled-up batches
    assert isinstance(found, Measured)
    head = next(p for p in found.axis.points if p.label == found.axis.headline)
    right = int(found.outcomes[CHOICE].sum())
    assert right < FEW and head.passes == {"forward": FEW * SELECT + right * DRAWS}
    assert head.passes["forward"] <= model.rows <= head.passes["forward"] + 5 + FEW  # and the chain: read, and compared
    assert all(not p.passes for p in found.axis.points if p.series == SERIES and p is not head)
    assert torch.equal(found.arrays[RADIUS], measured.arrays[RADIUS])


def test_an_image_does_not_depend_on_the_others(make: Callable[..., Context], measured: Measured) -> None:
    context, order = make(), torch.tensor([7, 2, 20])
    alone = measure(
        dataclasses.replace(
            context,
            x=context.x[order],
            y=context.y[order],
            rows=context.rows[order],
            predictions=context.predictions[order],
            batch_size=13,
        )
    )
    assert isinstance(alone, Measured)
    for label, right in alone.outcomes.items():
        assert torch.equal(right, measured.outcomes[label][order])
    for label, values in alone.arrays.items():
        assert torch.equal(values, measured.arrays[label][order])


def test_agrees_with_certify(make: Callable[..., Context], net: nn.Module) -> None:
    context = make()
    found, radius = certify(
        net, context.x, sigma=SIGMA, draws=DRAWS, select=SELECT, alpha=0.001, key=context.keys("other")
    )
    mine = measure(context)
    assert isinstance(mine, Measured)
    theirs = torch.where(found == context.y, radius, 0)  # other draws of the same probabilities
    assert float((theirs - mine.arrays[RADIUS]).abs().mean()) < 0.05


class TestMarginBound:
    def test_counts_what_no_attack_breaks(self, make: Callable[..., Context], net: nn.Module) -> None:
        threat = Threat("linf", 0.02)
        found = measure(make(threat=threat))
        assert isinstance(found, Measured)
        (point,) = (p for p in found.axis.points if p.series == BOUND)
        assert point.level is None and point.label.endswith(str(threat))
        sure, context = found.outcomes[point.label], make(threat=threat)
        assert torch.equal(sure, margin_bound(net, context.x, context.y, eps=0.02) > 0)
        assert 0 < int(sure.sum()) < FEW
        broken = attack(net, context.x, context.y, "pgd", threat=threat).success | (
            net(context.x).argmax(1) != context.y
        )
        assert not (broken & sure).any()

    def test_of_a_residual_net_the_details_say_why_not(self, make: Callable[..., Context], net: nn.Module) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.net(x) + self.net(x.flip(3))
                return out

        found = measure(make(Twice().eval()))
        assert isinstance(found, Measured)
        assert not any(p.series == BOUND for p in found.axis.points)
        head = next(p for p in found.axis.points if p.label == found.axis.headline)
        assert "the operation 'add'" in str(head.details["no_margin_bound"])


def test_a_linf_ball_counts_with_its_corners(make: Callable[..., Context]) -> None:
    found = measure(make(threat=Threat("linf", 8 / 255)))
    assert isinstance(found, Measured)
    (point,) = (p for p in found.axis.points if p.label == "all of linf 8/255")
    assert point.level == pytest.approx(8 / 255 * math.sqrt(64))
    assert point.details["reachable"] is (point.level <= SIGMA * 1.0)  # type: ignore[operator]
    wide = measure(make(threat=Threat("linf", 0.5)))
    assert isinstance(wide, Measured)
    (point,) = (p for p in wide.axis.points if p.label == "all of linf 0.5")
    assert point.details["reachable"] is False and point.accuracy == 0


def test_a_random_net_is_measured_with_a_word_of_warning(make: Callable[..., Context]) -> None:
    found = measure(make(draws=3))
    assert isinstance(found, Measured)
    head = next(p for p in found.axis.points if p.label == found.axis.headline)
    assert "alpha holds only if" in str(head.details["random_net"])
    assert head.details["no_margin_bound"] == "the net answers at random"


def test_a_net_that_is_always_wrong_is_measured(make: Callable[..., Context]) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), math.nan)

    found = measure(make(Wrong().eval()))
    assert isinstance(found, Measured)
    assert all(p.accuracy == 0 for p in found.axis.points)
    assert found.axis.points[1].passes == {"forward": FEW * SELECT}


def test_too_few_draws_are_not_measured(make: Callable[..., Context]) -> None:
    found = measure(make(budget=Budget(smoothing_draws=5)))
    assert isinstance(found, NotMeasured)
    assert "nothing can be certified from 5 draws. Take at least 10" in found.reason
