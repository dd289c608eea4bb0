"""The worst case is per image, over everything that was tried within the threat."""

import numpy as np
import torch
from torch import Tensor, nn

from hardy.attacks import PGD, Noise, attack
from hardy.evaluation import Budget, evaluate
from hardy.evaluation.worst_case import ADVERSARIAL
from hardy.results import Result
from hardy.threats import Threat

AXES = ["white_box", "eps_curve", "minimal_norm", "frequency", "transfer", "query", "worst_case"]
FAST = Budget(
    curve_steps=3, noise_draws=3, transfer_steps=4, queries=40, min_norm_steps=8, transfer_eps=(0.4,), bands=2,
    band_steps=3,
)  # fmt: skip


def measured(net: nn.Module, x: Tensor, y: Tensor, source: nn.Module) -> Result:
    suite = [PGD(steps=1)]
    return evaluate(net, x, y, threat=Threat("linf", 0.1), axes=AXES, suite=suite, sources=[source], budget=FAST)


def test_it_is_the_minimum_per_image(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    source = trained(1)  # type: ignore[operator]  # a fixture
    result = measured(net, x, y, source)
    want = net(x).argmax(dim=1) == y
    for name in ADVERSARIAL:
        for p in result.axis(name).points:
            if p.series != "noise control" and (name in ("query", "frequency") or p.level is None or p.level <= 0.1):
                want &= result.outcomes(name, p.label)
    standing = result.outcomes("white_box")
    noise = attack(net, x, y, Noise(draws=3), threat=Threat("linf", 0.1)).success
    worst = result.outcomes("worst_case")
    assert (worst <= want).all() and (worst >= (want & ~(standing & noise))).all()  # controls may take a few more
    assert result.accuracy("worst_case") < result.accuracy("white_box")  # one step of PGD is no suite


def test_larger_budgets_do_not_count(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    result = measured(net, x, y, trained(1))  # type: ignore[operator]  # a fixture
    beyond = result.outcomes("transfer", "source 0, linf 0.4")
    assert (result.outcomes("worst_case") & ~beyond).any()
    assert (~result.outcomes("eps_curve", "linf 0.2") & result.outcomes("worst_case")).any()


def test_alone_means_that_no_other_axis_broke_it(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    result = measured(net, x, y, trained(1))  # type: ignore[operator]  # a fixture
    axes = {p.label: result.outcomes("worst_case", p.label) for p in result.axis("worst_case").points[1:]}
    right = torch.from_numpy(result.arrays["predictions"] == np.asarray(y))
    for p in result.axis("worst_case").points[1:]:
        others = torch.stack([o for name, o in axes.items() if name != p.label]).all(dim=0)
        assert p.details["broke"] == int((right & ~axes[p.label]).sum())
        assert int(p.details["broke_alone"] or 0) <= int((right & others & ~axes[p.label]).sum())


def test_it_needs_an_attack(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = evaluate(net, x, y, axes=["clean", "noise", "worst_case"])
    assert [axis.name for axis in result.axes] == ["clean", "noise"]
    assert any(c.code == "not_measured" and c.evidence.startswith("worst_case: no axis") for c in result.checks)
