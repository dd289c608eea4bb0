"""The noise axis: three curves of the noises that they name."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from hardy.corruptions.gaussian_noise import gaussian_noise
from hardy.corruptions.salt_pepper import salt_pepper
from hardy.corruptions.uniform_noise import uniform_noise
from hardy.evaluation import noise
from hardy.evaluation.budget import Budget
from hardy.evaluation.context import Context, Measured
from hardy.seeding import keys, root
from hardy.threats import Threat

ROWS = torch.arange(120)
SHORT = Budget(sigmas=(0.05, 0.2), uniform_widths=(0.1, 0.4), salt_pepper_shares=(0.02, 0.3))


def context(net: nn.Module, x: Tensor, y: Tensor, budget: Budget, rows: Tensor = ROWS) -> Context:
    given = {"num_classes": 10, "threat": Threat("linf", 0.1), "budget": budget, "seed": 3, "batch_size": 50}
    return Context(model=net, x=x, y=y, rows=rows, predictions=y, **given).answered()


@pytest.fixture(scope="module")
def found(net: nn.Module, x: Tensor, y: Tensor) -> Measured:
    return noise.measure(context(net, x, y, SHORT))


def test_every_point_is_the_noise_that_it_names(found: Measured, net: nn.Module, x: Tensor, y: Tensor) -> None:
    made = {f"sigma {s:g}": gaussian_noise(x, sigma=s, key=keys(root(3, "noise"), ROWS)) for s in SHORT.sigmas}
    key = keys(root(3, "uniform noise"), ROWS)
    made |= {f"uniform {w:g}": uniform_noise(x, width=w, key=key) for w in SHORT.uniform_widths}
    key = keys(root(3, "salt and pepper"), ROWS)
    made |= {f"salt and pepper {s:g}": salt_pepper(x, share=s, key=key) for s in SHORT.salt_pepper_shares}
    assert list(found.outcomes) == list(made) == [p.label for p in found.axis.points]
    for label, noisy in made.items():
        assert torch.equal(found.outcomes[label], net(noisy).argmax(dim=1) == y), label
    series = {p.series: [q.level for q in found.axis.points if q.series == p.series] for p in found.axis.points}
    assert series == {"gaussian": [0.05, 0.2], "uniform": [0.1, 0.4], "salt and pepper": [0.02, 0.3]}
    assert all(p.passes == {"forward": 120} for p in found.axis.points)


def test_more_noise_of_a_kind_breaks_more(found: Measured) -> None:
    accuracy = [p.accuracy for p in found.axis.points]
    assert all(weak > strong for weak, strong in zip(accuracy[::2], accuracy[1::2], strict=True))


def test_the_headline_is_the_sigma_closest_to_a_tenth(net: nn.Module, x: Tensor, y: Tensor, found: Measured) -> None:
    assert found.axis.headline == "sigma 0.05"
    full = noise.measure(context(net, x[:20], y[:20], Budget(), ROWS[:20]))
    assert full.axis.headline == "sigma 0.1" and len(full.axis.points) == 16


def test_every_answer_of_a_random_net_is_counted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    random = dataclasses.replace(context(net, x[:20], y[:20], SHORT, ROWS[:20]), draws=3)
    assert all(p.passes == {"forward": 60} for p in noise.measure(random).axis.points)


def test_a_subset_gives_the_outcomes_of_its_rows(found: Measured, net: nn.Module, x: Tensor, y: Tensor) -> None:
    rows = torch.tensor([90, 7, 33])
    part = noise.measure(context(net, x[rows], y[rows], SHORT, rows))
    for label, outcomes in found.outcomes.items():
        assert torch.equal(part.outcomes[label], outcomes[rows]), label
