"""Calibration against the definition in a loop, and on answers whose calibration is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from hardy.evaluation import Budget, Context, Measured, NotMeasured
from hardy.evaluation.calibration import ECE, measure, temperature
from hardy.threats import Threat


class Table(nn.Module):
    """Answers with the logits that the image holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def asked(z: Tensor, y: Tensor, *, bins: int = 15) -> Measured | NotMeasured:
    plain = Context(
        model=Table().eval(), x=z[:, None, None, :], y=y, rows=torch.arange(len(y)), predictions=y,
        num_classes=z.shape[1], threat=Threat("linf", 0.1), budget=Budget(calibration_bins=bins),
    )  # fmt: skip
    return measure(plain.answered())


def scores(z: Tensor, y: Tensor, **facts: int) -> dict[str, float]:
    found = asked(z, y, **facts)
    assert isinstance(found, Measured)
    return {s.label: s.value for s in found.axis.scores}


def drawn(n: int, sharper: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw true classes from the softmax of the logits, and make the logits sharper than that."""
    generator = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(n, 4, generator=generator)
    y = torch.multinomial(z.softmax(dim=1), 1, generator=generator)[:, 0]
    return sharper * z, y


def by_hand(z: Tensor, y: Tensor, bins: int) -> float:
    total, p = 0.0, z.softmax(dim=1).numpy().astype(np.float64)
    for i in range(bins):
        low, high = i / bins, (i + 1) / bins
        rows = [r for r in range(len(p)) if low < p[r].max() <= high]
        if rows:
            right = np.mean([p[r].argmax() == int(y[r]) for r in rows])
            total += len(rows) / len(p) * abs(right - np.mean([p[r].max() for r in rows]))
    return total


@pytest.mark.parametrize("bins", [5, 15])
def test_is_the_definition(bins: int) -> None:
    z, y = drawn(300, 2.0)
    found, p = scores(z, y, bins=bins), z.softmax(dim=1)
    assert found[ECE] == pytest.approx(by_hand(z, y, bins), abs=1e-5)
    assert found[ECE] == pytest.approx(
        float(multiclass_calibration_error(p, y, num_classes=4, n_bins=bins, norm="l1")), abs=1e-5
    )
    brier = np.mean([sum((float(p[r, k]) - (k == int(y[r]))) ** 2 for k in range(4)) for r in range(300)])
    assert found["Brier score"] == pytest.approx(brier, abs=1e-5)
    assert found["negative log-likelihood"] == pytest.approx(float(nn.functional.cross_entropy(z, y)), abs=1e-5)


def test_the_curve_adds_up_to_the_error() -> None:
    z, y = drawn(500, 2.0)
    found = asked(z, y)
    assert isinstance(found, Measured)
    bins = [s for s in found.axis.scores if s.series == "reliability"]
    assert sum(s.n for s in bins) == 500
    total = sum(s.n / 500 * abs(s.value - s.level) for s in bins if s.level is not None)
    assert total == pytest.approx(found.axis.scores[0].value, abs=1e-5)


def test_true_probabilities_are_calibrated_and_sharper_ones_are_not() -> None:
    true, sharp = scores(*drawn(6000)), scores(*drawn(6000, 3.0))
    assert true[ECE] < 0.03 and abs(true["confidence minus accuracy"]) < 0.02
    assert sharp[ECE] > 0.15 and sharp["confidence minus accuracy"] > 0.15
    assert true["temperature"] == pytest.approx(1, abs=0.06) and sharp["temperature"] == pytest.approx(3, abs=0.2)
    assert sharp["its rest after temperature scaling"] < 0.03


@pytest.mark.parametrize("sharper", [1.0, 3.0, 1000.0])
@pytest.mark.parametrize("n", [5, 40])
def test_the_error_is_inside_its_interval(n: int, sharper: float) -> None:
    z, y = drawn(n, sharper)  # 1000: a confidence of exactly 1, which is in the last bin
    found = asked(z, y)
    assert isinstance(found, Measured)
    ece, curve = found.axis.scores[0], [s for s in found.axis.scores if s.series == "reliability"]
    assert ece.low is not None and ece.high is not None and 0 <= ece.low <= ece.value <= ece.high <= 1
    assert ece.value == pytest.approx(sum(s.n / n * abs(s.value - (s.level or 0)) for s in curve), abs=1e-5)


def test_a_sure_mistake_costs_all_of_its_logits() -> None:
    z = torch.tensor([[500.0, 0.0], [500.0, 0.0]])
    assert scores(z, torch.tensor([1, 0]))["negative log-likelihood"] == pytest.approx(250)


def test_the_temperature_is_the_best_on_a_grid() -> None:
    z, y = drawn(400, 2.0)
    grid = [math.exp(t) for t in np.linspace(-1, 2, 61)]
    best = min(grid, key=lambda t: float(nn.functional.cross_entropy(z.double() / t, y)))
    assert temperature(z, y) == pytest.approx(best, rel=0.06)


def test_the_interval_holds_the_number_and_narrows() -> None:
    few, many = (asked(*drawn(n, 2.0)) for n in (200, 5000))
    assert isinstance(few, Measured) and isinstance(many, Measured)
    widths = []
    for found in (few, many):
        ece = found.axis.scores[0]
        assert ece.low is not None and ece.high is not None and ece.low < ece.value < ece.high
        widths.append(ece.high - ece.low)
    assert widths[1] < widths[0] / 2


def test_a_random_net_answers_with_its_mean_probability(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = net(x)
            return z + 3 * torch.randn_like(z)

    plain = Context(model=Noisy().eval(), x=x, y=y, rows=torch.arange(len(y)), predictions=y, num_classes=10,
                    threat=Threat("linf", 0.1))  # fmt: skip
    once = measure(plain)
    often = measure(dataclasses.replace(plain, draws=50))
    assert isinstance(once, Measured) and isinstance(often, Measured)
    assert float(often.arrays["confidence"].mean()) < float(once.arrays["confidence"].mean()) - 0.1


def test_infinite_logits_are_not_measured() -> None:
    z, y = drawn(30)
    z[3, 1] = torch.inf
    found = asked(z, y)
    assert isinstance(found, NotMeasured) and "not finite" in found.reason
