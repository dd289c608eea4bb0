"""Sums over classes against loops over pairs, and the jackknife against leaving images out by hand."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardy.diagnosis.class_geometry import (
    Estimate,
    _checked,
    class_geometry,
    cross_similarity,
    paired_classes,
    unit,
)
from hardy.errors import DataError, ShapeError
from hardy.stats import mean_interval

Y = torch.tensor([0, 0, 0, 1, 1, 4, 4, 4, 4, 1])


def draw(n: int = len(Y), d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def slow(z: Tensor, y: Tensor) -> dict[str, float]:
    """The four numbers, pair by pair and class by class."""
    z = z.double()
    z = torch.stack([row / row.norm() for row in z])
    pairs = [float(z[i] @ z[j]) for i, j in product(range(len(y)), repeat=2) if i != j and y[i] == y[j]]
    mu = {int(k): z[y == k].mean(0) for k in y.unique()}
    inter = sum(float((m - z.mean(0)).square().sum()) for m in mu.values()) / len(mu)
    within = sum(float((z[i] - mu[int(y[i])]).square().sum()) for i in range(len(y))) / len(y)
    return {"intra": sum(pairs) / len(pairs), "inter": inter, "within": within, "ratio": inter / within}


def slow_cross(z: Tensor, other: Tensor, y: Tensor) -> dict[str, float]:
    a, b = (torch.stack([row / row.norm() for row in t.double()]) for t in (z, other))
    kinds: dict[str, list[float]] = {"own": [], "same": [], "other": []}
    for i, j in product(range(len(y)), repeat=2):
        kinds["own" if i == j else "same" if y[i] == y[j] else "other"].append(float(a[i] @ b[j]))
    return {name: sum(values) / len(values) for name, values in kinds.items()}


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop_over_pairs_also_without_each_image(seed: int) -> None:
    z = draw(seed=seed)
    found, wanted = class_geometry(z, Y), slow(z, Y)
    for name, value in wanted.items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-9)
    for i in range(len(Y)):
        rest = torch.arange(len(Y)) != i
        for name, value in slow(z[rest], Y[rest]).items():
            assert float(getattr(found, name).without[i]) == pytest.approx(value, rel=1e-9), (name, i)


@pytest.mark.parametrize("seed", range(3))
def test_cross_similarity_equals_the_loop_over_pairs_also_without_each_image(seed: int) -> None:
    z, other = draw(seed=seed), draw(seed=seed + 10)
    found = cross_similarity(z, other, Y)
    for name, value in slow_cross(z, other, Y).items():
        assert getattr(found, name).value == pytest.approx(value, rel=1e-9, abs=1e-12)
    for i in range(len(Y)):
        rest = torch.arange(len(Y)) != i
        for name, value in slow_cross(z[rest], other[rest], Y[rest]).items():
            assert float(getattr(found, name).without[i]) == pytest.approx(value, rel=1e-8, abs=1e-10), (name, i)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_rotation_and_other_lengths_change_nothing(seed: int) -> None:
    z = draw(seed=seed).double()
    turn = torch.linalg.qr(draw(5, 5, seed + 1).double())[0]
    a, b = class_geometry(z, Y), class_geometry(3 * z @ turn, Y)
    for name in ("intra", "inter", "within", "ratio"):
        assert getattr(a, name).value == pytest.approx(getattr(b, name).value, rel=1e-7)


def test_the_ratio_grows_as_planted_clusters_draw_together() -> None:
    y = torch.arange(60) % 3
    centres = torch.eye(6)[:3]
    ratios = [class_geometry(centres[y] + spread * draw(60, 6), y).ratio.value for spread in (1.0, 0.3, 0.1, 0.03)]
    assert ratios == sorted(ratios) and ratios[-1] > 50 * ratios[0]


def test_collapsed_features_have_similarity_one_and_no_ratio() -> None:
    y = torch.arange(12) % 3
    found = class_geometry(torch.eye(3)[y], y)
    assert found.intra.value == pytest.approx(1) and found.within.value == 0
    assert found.inter.value == pytest.approx(2 / 3)  # |e_k - mean|^2 of an equilateral triangle
    assert math.isnan(found.ratio.value) and found.ratio.bounds() == (None, None)


def test_equal_classes_give_the_ratio_of_traces() -> None:
    y, z = torch.arange(40) % 4, unit(draw(40, 3))
    mu = torch.stack([z[y == k].mean(0) for k in range(4)])
    between, within = ((t.T @ t).trace() for t in ((mu - z.mean(0)) / 2, (z - mu[y]) / math.sqrt(40)))
    assert class_geometry(z, y).ratio.value == pytest.approx(float(between / within))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = draw(30, 1)[:, 0].double()
    estimate = Estimate(float(values.mean()), (values.sum() - values) / 29)
    assert estimate.bounds() == pytest.approx(mean_interval(values.numpy()))
    assert estimate.minus(estimate).bounds() == (0, 0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(40) % 2
    centres = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

    def ratio(count: int) -> Estimate:
        labels = y.repeat(count)
        return class_geometry(centres[labels] + 0.4 * torch.randn(len(labels), 3, generator=generator), labels).intra

    truth = ratio(2000).value
    held = [low <= truth <= high for low, high in (ratio(1).bounds() for _ in range(200))]  # type: ignore[operator]  # finite
    assert 0.88 <= sum(held) / 200 <= 0.99  # 95 %; standard error 1.5 %


def test_classes_of_one_image_are_refused_and_can_be_told() -> None:
    assert paired_classes(torch.tensor([0, 0, 1, 5, 5])).tolist() == [True, True, False, True, True]
    with pytest.raises(DataError, match="at least 2 classes of at least 2 images"):
        class_geometry(draw(3), torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match="at least 2 classes"):
        class_geometry(draw(3), torch.tensor([1, 1, 1]))
    with pytest.raises(DataError, match="finite"):
        class_geometry(draw(4).fill_(math.nan), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ShapeError, match="classes"):
        _checked(draw(4), Y)


def test_without_a_pair_there_is_no_interval() -> None:
    found = class_geometry(draw(4), torch.tensor([0, 0, 1, 1]))
    assert found.within.bounds()[0] is not None  # one image left of a class: spread 0
    assert math.isfinite(found.intra.value)
