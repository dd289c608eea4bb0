"""Smallest perturbations: closed forms on a linear net, verified images on a small one."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import PGD
from hardy.attacks.norms import norm_of
from hardy.evaluation import eps_curve
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured
from hardy.evaluation.eps_curve import FRACTIONS, bottom, largest_eps
from hardy.evaluation.minimal_norm import measure
from hardy.threats import Norm, Threat

Make = Callable[..., Context]
THREAT = Threat("linf", 0.1)


@pytest.fixture
def make() -> Make:
    def context(model: nn.Module, x: Tensor, y: Tensor, threat: Threat = THREAT, **facts: object) -> Context:
        plain = Context(
            model=model,
            x=x,
            y=y,
            rows=torch.arange(len(x)),
            predictions=y,
            num_classes=model(x[:1]).shape[1],
            threat=threat,
            **facts,  # type: ignore[arg-type]
        )
        return dataclasses.replace(plain, predictions=plain.predict(x))

    return context


@pytest.fixture(scope="module")
def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    weight = torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    net[1].weight.data, net[1].bias.data = weight, -weight.sum(dim=1) / 2  # all classes tie at plain gray
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def grey() -> Tensor:
    """Images so near the tie that no smallest change touches the box."""
    return 0.5 + 0.1 * (torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(4)) - 0.5)


@pytest.fixture(scope="module")
def digits_measured(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Context, Measured]:
    context = Context(
        model=net,
        x=x[:60],
        y=y[:60],
        rows=torch.arange(60),
        predictions=net(x[:60]).argmax(dim=1),
        num_classes=10,
        threat=THREAT,
    )
    return context, measure(context)


def closed_form(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Give min over classes k of (z_y - z_k) / |w_y - w_k|, in the dual norm."""
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    weight, z = net[1].weight, net(x)  # type: ignore[index]
    return torch.stack(
        [
            min((z[i, y[i]] - z[i, k]) / torch.linalg.vector_norm(weight[y[i]] - weight[k], order) for k in others)
            for i, others in enumerate([[k for k in range(4) if k != label] for label in y.tolist()])
        ]
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_are_those_of_the_closed_form(norm: Norm, make: Make, linear: nn.Module, grey: Tensor) -> None:
    y = linear(grey).argmax(dim=1)
    y[:3] = (y[:3] + 1) % 4  # wrong from the start
    got = measure(make(linear, grey, y, Threat(norm, 0.05))).arrays["distance"]
    best = closed_form(linear, grey, y, norm)
    assert (best[3:] < 0.4).all() and (best[:3] < 0).all()  # the box does not bind, whatever the norm
    assert (got[:3] == 0).all()
    assert (got[3:] >= best[3:] * (1 - 1e-4)).all()
    assert (got[3:] <= best[3:] * 1.02).all()


def test_every_distance_is_that_of_an_adversarial_image(
    digits_measured: tuple[Context, Measured], net: nn.Module
) -> None:
    context, got = digits_measured
    distance, x_adv, x, y = got.arrays["distance"], got.x_adv, context.x, context.y
    assert x_adv is not None and distance.dtype == torch.float32 and torch.equal(distance, got.eps_broken)  # type: ignore[arg-type]
    assert torch.equal(distance == 0, ~context.correct) and 0 < int((~context.correct).sum()) < 20
    assert torch.equal(x_adv[~context.correct], x[~context.correct])
    assert (net(x_adv).argmax(dim=1) != y).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal((x_adv - x).flatten(1).abs().amax(dim=1), distance)


def test_the_curve_is_read_off_the_distances_at_the_levels_of_the_eps_curve(
    digits_measured: tuple[Context, Measured],
) -> None:
    context, got = digits_measured
    distance, points = got.arrays["distance"], got.axis.points
    assert [p.label for p in points[:6]] == [
        "linf 0", "linf 0.0125", "linf 0.025", "linf 0.05", "linf 0.1", "linf 0.2"
    ]  # fmt: skip
    assert [p.level for p in points[1:5]] == [0.1 * share for share in FRACTIONS]
    for p in points:
        assert p.accuracy == pytest.approx(float((distance > p.level).float().mean()))
        assert torch.equal(got.outcomes[p.label], distance > p.level)
    assert points[-1].accuracy <= bottom(context) < points[-2].accuracy
    assert got.axis.headline == "linf 0.1"
    details = next(p for p in points if p.label == "linf 0.1").details
    right = distance[context.correct]
    assert details["attacked"] == len(right) and details["not_found"] == 0
    assert details["median_distance"] == pytest.approx(float(right.sort().values[(len(right) - 1) // 2]))
    assert details["nearest_by_fmn"] + details["nearest_by_fab"] == len(right)  # type: ignore[operator]
    assert details["nearest_by_fmn"] > 0 and details["nearest_by_fab"] > 0  # type: ignore[operator]
    assert [bool(p.passes) for p in points] == [p.label == "linf 0.1" for p in points]


def test_it_agrees_with_the_eps_curve_but_for_a_few_images(digits_measured: tuple[Context, Measured]) -> None:
    """Both search and neither proves; what one breaks at a level, the other must break there too or nearly so."""
    context, got = digits_measured
    curve = eps_curve.measure(dataclasses.replace(context, suite={"pgd": PGD(steps=20, restarts=2)}, memo={}))
    for point in curve.axis.points:
        assert point.label in got.outcomes or point.level > context.threat.eps  # type: ignore[operator]
        near = got.arrays["distance"] <= point.level
        broken = ~curve.outcomes[point.label]
        assert int((broken & ~near).sum()) <= 1 and int((near & ~broken).sum()) <= 4


def test_an_image_that_nothing_changes_is_infinitely_far(make: Make, x: Tensor) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([2.0, 1.0]).expand(len(x), 2) + 0 * x.sum()

    context = make(
        Constant().eval(), x[:3], torch.tensor([0, 0, 1]), Threat("l2", 3.0), budget=Budget(min_norm_steps=3)
    )
    got = measure(context)
    assert got.arrays["distance"].tolist() == [torch.inf, torch.inf, 0]
    assert got.x_adv is not None and torch.equal(got.x_adv, x[:3])
    last = got.axis.points[-1]
    assert last.level == largest_eps(context) == 4.0 and last.accuracy == pytest.approx(2 / 3)
    head = next(p for p in got.axis.points if p.label == got.axis.headline)
    assert head.details["not_found"] == 2 and "median_distance" not in head.details


def test_images_that_are_wrong_cost_one_prediction_per_attack(make: Make, linear: nn.Module, grey: Tensor) -> None:
    y = (linear(grey).argmax(dim=1) + 1) % 4
    got = measure(make(linear, grey, y))
    head = next(p for p in got.axis.points if p.label == "linf 0.1")
    assert head.passes == {"forward": 2 * 20, "backward": 0}
    assert [p.label for p in got.axis.points] == ["linf 0", "linf 0.0125", "linf 0.025", "linf 0.05", "linf 0.1"]
    assert {p.accuracy for p in got.axis.points} == {0.0} and "median_distance" not in head.details


def test_distances_do_not_depend_on_the_batch(make: Make, linear: nn.Module, grey: Tensor) -> None:
    x, y, budget = grey[:8], linear(grey[:8]).argmax(dim=1), Budget(min_norm_steps=30)
    got = [measure(make(linear, x, y, batch_size=size, budget=budget)).arrays["distance"] for size in (3, 64)]
    assert torch.allclose(got[0], got[1], rtol=1e-3)
    alone = measure(make(linear, x[5:6], y[5:6], budget=budget)).arrays["distance"]
    assert torch.allclose(alone, got[1][5:6], rtol=1e-3)


def test_norms_other_than_linf_measure_their_own_length(make: Make, net: nn.Module, x: Tensor, y: Tensor) -> None:
    for norm in ("l2", "l1"):
        got = measure(make(net, x[:10], y[:10], Threat(norm, 1.0), budget=Budget(min_norm_steps=20)))
        assert got.x_adv is not None
        assert torch.equal(got.arrays["distance"], norm_of(got.x_adv - x[:10], norm=norm))
        assert got.axis.level_name.startswith(f"eps ({norm},")
