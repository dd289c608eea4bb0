"""Does the defence beat its own base? The same protocol for both, paired over images."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from hardy.attacks import FGSM, PGD, Noise, attack
from hardy.errors import ParameterError
from hardy.evaluation import Budget, Context, Measured, Source, evaluate
from hardy.evaluation.versus import versus
from hardy.results import Axis, Result, Versus, mean_score
from hardy.threats import Threat

THREAT = Threat("linf", 0.1)
FAST = Budget(curve_steps=3, noise_draws=3, transfer_steps=4)


def against(net: nn.Module, base: nn.Module, x: Tensor, y: Tensor) -> Result:
    axes = ["clean", "white_box", "transfer", "worst_case"]
    return evaluate(net, x, y, threat=THREAT, axes=axes, suite=[PGD(steps=6)], base=base, budget=FAST)


def named(result: Result) -> dict[str, Versus]:
    return {v.axis: v for v in result.versus}


class Squeezed(nn.Module):
    """The net behind rounded pixels: robust to gradients, and to nothing else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net((x * 8).round() / 8)
        return z


def test_both_are_attacked_alike(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    base = trained(3)  # type: ignore[operator]  # a fixture
    result = against(net, base, x, y)
    swapped = against(base, net, x, y)
    for axis, v in named(result).items():
        w = named(swapped)[axis]
        assert (v.accuracy, v.base_accuracy) == (w.base_accuracy, w.accuracy), axis
        assert v.difference == pytest.approx(-w.difference) and v.p == w.p and v.base == "base"
    own = attack(base, x, y, PGD(steps=6), threat=THREAT)
    assert np.array_equal(result.outcomes_by_point["base/white_box"], ~own.success)
    assert named(result)["white_box"].accuracy == result.accuracy("white_box")
    assert named(result)["worst_case"].accuracy == result.accuracy("worst_case")
    standing = own.success.logical_not()
    for spec in (FGSM(), Noise(draws=3)):
        standing &= ~attack(base, x, y, spec, threat=THREAT).success
    standing &= ~attack(base, x, y, PGD(steps=4), threat=THREAT, sources=[net], stop="never").success
    assert np.array_equal(result.outcomes_by_point["base/worst_case"], standing)


def test_masked_gradients_win_until_the_worst_case_is_counted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """The story of MeanSparse: better under the suite, not better once images made on the base are shown to it."""
    found = named(against(Squeezed(net).eval(), net, x, y))
    assert found["white_box"].verdict == "better" and found["white_box"].difference > 0.2
    assert found["worst_case"].verdict != "better" and found["worst_case"].difference < 0.15


def test_the_test_is_the_exact_one(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    result = against(net, trained(3), x, y)  # type: ignore[operator]  # a fixture
    v = named(result)["white_box"]
    a, b = result.outcomes_by_point["white_box/pgd"], result.outcomes_by_point["base/white_box"]
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    assert v.p == pytest.approx(binomtest(won, won + lost).pvalue)
    assert v.low <= v.difference <= v.high and v.difference == pytest.approx((won - lost) / 120)
    assert v.verdict == ("unclear" if v.low <= 0 <= v.high or v.p >= 0.05 else "better" if won > lost else "worse")


def test_a_net_does_not_beat_itself(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = against(net, net, x, y)
    assert {v.axis for v in result.versus} == {"clean", "white_box", "worst_case"}
    assert {v.verdict for v in result.versus} == {"unclear"} and {v.difference for v in result.versus} == {0.0}


def test_without_a_base_there_is_no_verdict(net: nn.Module, x: Tensor, y: Tensor) -> None:
    few = torch.arange(20)
    assert evaluate(net, x[few], y[few], axes=["white_box"], suite=["fgsm"]).versus == ()


def test_the_base_is_measured_on_every_axis(net: nn.Module, trained: object, x: Tensor, y: Tensor) -> None:
    base = trained(3)  # type: ignore[operator]  # a fixture
    axes = ["clean", "noise", "texture"]
    result, alone = evaluate(net, x, y, axes=axes, base=base), evaluate(base, x, y, axes=axes)
    found = named(result)
    assert list(found) == axes  # and nothing was attacked
    for axis, v in found.items():
        assert (v.accuracy, v.base_accuracy) == (result.accuracy(axis), alone.accuracy(axis)), axis
        assert np.array_equal(result.outcomes_by_point[f"base/{axis}"], alone.outcomes(axis).numpy()), axis
    assert found["noise"].label == result.axis("noise").headline
    assert found["texture"].verdict == "description"


def measured(values: Tensor, kind: str, *, label: str = "score", kept: bool = True) -> Measured:
    score = mean_score(label, values.numpy(), kind=kind)  # type: ignore[arg-type]  # literals of the callers
    arrays = {label: values} if kept else {}
    return Measured(axis=Axis(name="made", question="?", headline=label, scores=(score,)), outcomes={}, arrays=arrays)


def compared(ours: Measured, theirs: Measured, context: Context, base: nn.Module) -> list[Versus]:
    question = dataclasses.replace(context, seen={"made": ours})
    made, _ = versus(question, Source("base", base, "base"), {"made": lambda _: theirs})
    return list(made)


def test_less_of_an_error_is_better_and_a_description_is_neither(net: nn.Module, x: Tensor, y: Tensor) -> None:
    context = Context(
        model=net, x=x, y=y, rows=torch.arange(len(y)), predictions=y, num_classes=10, threat=THREAT,
        suite={"fgsm": FGSM()}, memo={},
    )  # fmt: skip
    low, high = torch.linspace(0.1, 0.2, 120), torch.linspace(0.3, 0.5, 120)
    verdicts = {
        kind: compared(measured(low, kind), measured(high, kind), context, net)[0].verdict
        for kind in ("accuracy", "quality", "error", "description")
    }
    assert verdicts == {"accuracy": "worse", "quality": "worse", "error": "better", "description": "description"}
    (v,) = compared(measured(low, "error"), measured(high, "error"), context, net)
    assert v.difference == pytest.approx(float((low - high).mean())) and v.p == pytest.approx(2 * 0.5**120)
    (bare,) = compared(measured(low, "error", kept=False), measured(high, "error"), context, net)
    assert (bare.low, bare.p, bare.verdict) == (None, None, "unclear")
    assert compared(measured(low, "error"), measured(high, "error", label="other"), context, net) == []


def test_axes_of_the_model_alone_decide_nothing(net: nn.Module, x: Tensor, y: Tensor) -> None:
    axes = ["white_box", "eps_curve", "minimal_norm", "query", "worst_case"]
    budget = Budget(curve_steps=5, noise_draws=3, transfer_steps=4, queries=40, min_norm_steps=10)
    result = evaluate(net, x, y, threat=THREAT, axes=axes, suite=["fgsm"], base=net, budget=budget)
    assert result.accuracy("worst_case") < named(result)["worst_case"].accuracy
    assert named(result)["worst_case"].verdict == "unclear" and named(result)["worst_case"].difference == 0


def test_a_random_base_is_attacked_in_expectation(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Noisy(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x + 0.1 * torch.randn_like(x))
            return z

    few, weak = slice(0, 40), Threat("linf", 1e-4)
    result = evaluate(net, x[few], y[few], threat=weak, axes=["white_box"], suite="quick", base=Noisy(net).eval())
    base = named(result)["white_box"].base_accuracy
    assert abs(base - result.accuracy("white_box")) < 0.08  # single lucky draws would cost more


def test_other_nets_must_have_the_same_classes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    with pytest.raises(ParameterError, match=r"base must return logits of the model's 10 classes"):
        evaluate(net, x, y, base=other)
