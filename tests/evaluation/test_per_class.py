"""Per class, against counting by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardy.evaluation import Context, Measured
from hardy.evaluation.per_class import BALANCED, measure
from hardy.stats import wilson
from hardy.threats import Threat


class Fixed(nn.Module):
    """Answers with given logits, row by row."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = z

    def forward(self, x: Tensor) -> Tensor:
        return self.z[x[:, 0, 0, 0].long()]


def asked(z: Tensor, y: Tensor) -> Measured:
    n, k = z.shape
    x = torch.arange(n)[:, None, None, None].float()
    rows = torch.arange(n)
    plain = Context(
        model=Fixed(z).eval(), x=x, y=y, rows=rows, predictions=y, num_classes=k, threat=Threat("linf", 0.1),
        batch_size=7,
    )  # fmt: skip
    return measure(plain.answered())


def test_the_mean_over_classes_that_occur() -> None:
    y = torch.tensor([0] * 8 + [1] * 2 + [2] * 4)  # class 3 does not occur
    wrong = torch.tensor([0, 8, 10, 11])
    predicted = y.clone()
    predicted[wrong] = 3
    found = asked(torch.nn.functional.one_hot(predicted, 4).float(), y)
    scores = {s.label: s for s in found.axis.scores}
    assert scores[BALANCED].value == pytest.approx((7 / 8 + 1 / 2 + 2 / 4) / 3)
    assert float(found.arrays[BALANCED].mean()) == pytest.approx(scores[BALANCED].value)
    assert (scores["worst class"].value, scores["worst class"].details["class"]) == (0.5, 1)
    assert [scores[f"class {c}"].n for c in range(3)] == [8, 2, 4] and "class 3" not in scores
    assert (scores["class 0"].low, scores["class 0"].high) == wilson(7, 8)
    assert not found.axis.points  # five of four classes say nothing


def test_the_spread_over_classes_is_no_noise() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    whole = asked(torch.nn.functional.one_hot(y, 2).float(), y).axis.scores[0]
    assert (whole.value, whole.low, whole.high) == (1.0, *wilson(100, 100))
    predicted = y.clone()
    predicted[[0, 1, 2, 90]] = 1 - predicted[[0, 1, 2, 90]]
    some = asked(torch.nn.functional.one_hot(predicted, 2).float(), y).axis.scores[0]
    error = (87 * 3 / 90**3 + 9 * 1 / 10**3) ** 0.5 / 2  # of the mean of two shares
    assert some.value == pytest.approx((87 / 90 + 0.9) / 2)
    assert some.low == pytest.approx(some.value - 1.984 * error, abs=1e-3) and some.high == 1.0


def test_the_worst_class_is_bounded_for_all_classes_at_once() -> None:
    y = torch.arange(4).repeat(10)
    predicted = y.clone()
    predicted[0] = 1
    worst = asked(torch.nn.functional.one_hot(predicted, 4).float(), y).axis.scores[1]
    assert (worst.value, worst.low, worst.high) == (0.9, *wilson(9, 10, level=1 - 0.05 / 4))
    assert worst.details == {"class": 0, "interval": "Bonferroni over classes"}


def test_the_best_five_of_a_random_net_are_those_of_its_mean() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = 4 * torch.randn(len(x), 10)
            z[:, 3] += 5
            return z

    y = torch.full((60,), 3)
    plain = Context(model=Noisy().eval(), x=torch.zeros(60, 1, 1, 1), y=y, rows=torch.arange(60), predictions=y,
                    num_classes=10, threat=Threat("linf", 0.1))  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        once, often = (measure(dataclasses.replace(plain, draws=d)).outcomes["top 5"] for d in (1, 40))
    assert not once.all() and often.all()


def test_equal_classes_make_it_the_accuracy(net: nn.Module, x: Tensor, y: Tensor) -> None:
    keep = torch.cat([(y == c).nonzero()[:8, 0] for c in range(10)])
    plain = Context(
        model=net, x=x[keep], y=y[keep], rows=keep, predictions=y[keep], num_classes=10, threat=Threat("linf", 0.1)
    )
    context = plain.answered()
    found = measure(context)
    assert found.axis.scores[0].value == pytest.approx(float(context.correct.float().mean()))
    z = net(x[keep]).detach().numpy()
    want = [int(label) in np.argsort(-row)[:5] for row, label in zip(z, y[keep], strict=True)]
    assert found.outcomes["top 5"].tolist() == want


def test_logits_that_are_no_numbers_are_never_among_the_best() -> None:
    z = torch.zeros(3, 7)
    z[0, 2], z[1] = 1.0, torch.nan
    y = torch.tensor([2, 3, 1])
    assert asked(z, y).outcomes["top 5"].tolist()[:2] == [True, False]
