"""Suites: what they hold, how their attacks follow each other, and what a random net changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import APGD, ATTACKS, FAB, PGD, SUITES, HopSkipJump, Square, attack, suite
from hardy.errors import ParameterError
from hardy.evaluation import Budget, Context, evaluate
from hardy.evaluation.suite import ROBUST, WRONG, controls, resolve, suite_run
from hardy.threats import Norm, Threat

THREAT = Threat("linf", 0.1)
FAST = Budget(curve_steps=4, noise_draws=3)


def question(net: nn.Module, x: Tensor, y: Tensor, **facts: Any) -> Context:
    rows = torch.arange(len(x))
    made = Context(model=net, x=x, y=y, rows=rows, predictions=y, num_classes=10, **{"threat": THREAT, **facts})
    return made.answered()


def test_standard_is_autoattack_standard() -> None:
    found = suite("standard", norm="linf", num_classes=10)
    assert found == {
        "apgd-ce": APGD(steps=100, restarts=1, objective="ce"),
        "apgd-t": APGD(steps=100, restarts=9, objective="dlr", targeted=True),
        "fab-t": FAB(steps=100, restarts=9),
        "square": Square(queries=5000, p_init=0.8, rescale=False),
    }
    assert suite("standard", norm="l2", num_classes=100) == found
    sparse = suite("standard", norm="l1", num_classes=10)
    assert sparse["apgd-ce"] == APGD(restarts=5)
    assert sparse["apgd-t"] == APGD(objective="dlr", targeted=True, restarts=5)
    assert list(suite("full", norm="linf", num_classes=10))[:4] == list(found)
    assert len(set(suite("full", norm="linf", num_classes=10).values())) == 8


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_suite_can_attack_few_classes(name: str, norm: Norm, k: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, k)).eval()
    x = torch.rand(2, 3, 2, 2)
    y = net(x).argmax(dim=1)
    eps = {"linf": 0.5, "l2": 1.0, "l1": 2.0}[norm]
    for label, spec in suite(name, norm=norm, num_classes=k).items():
        assert norm in spec.norms
        if isinstance(spec, HopSkipJump | Square):
            continue  # defined for any number of classes, and slow
        found = attack(net, x, y, spec, threat=Threat(norm, eps))
        assert found.x_adv.shape == x.shape, label


def test_below_four_classes_the_margin_stands_in_for_dlr() -> None:
    objectives = {k: suite("standard", norm="linf", num_classes=k)["apgd-t"] for k in (2, 3, 4)}
    assert [getattr(spec, "objective", None) for spec in objectives.values()] == ["margin", "margin", "dlr"]
    with pytest.raises(ParameterError, match="num_classes must be at least 2"):
        suite("standard", norm="linf", num_classes=1)
    with pytest.raises(ParameterError, match="unknown suite 'ful'; did you mean 'full'"):
        suite("ful", norm="linf", num_classes=10)


def test_names_and_callables_make_a_suite() -> None:
    def mine(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    label, found = resolve(["pgd", PGD(steps=5), mine], THREAT, num_classes=10, draws=1)
    assert label == "custom" and list(found) == ["pgd", "pgd #2", "mine"] and found["pgd"] == ATTACKS["pgd"]()
    assert resolve(["apgd"], THREAT, num_classes=10, draws=1)[0] == "apgd"
    assert resolve("quick", THREAT, num_classes=10, draws=1)[0] == "quick"


def test_the_worst_over_attacks_counts_per_image(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Two attacks that break different halves together break everything."""

    def half(first: bool) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        def one(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            rows = ((y < 5) == first).nonzero()[:, 0]
            if len(rows):
                x[rows] = attack(model, x[rows], y[rows], PGD(steps=10), threat=Threat("linf", 0.3)).x_adv
            return x

        return one

    wide_ball = Threat("linf", 0.3)
    context = question(net, x, y, suite={"low": half(True), "high": half(False)}, threat=wide_ball)
    wide = question(net, x, y, suite={"pgd": PGD(steps=10)}, threat=wide_ball)
    run, both = suite_run(context), suite_run(wide)
    assert torch.equal(run.standing, both.standing)
    assert torch.equal(run.broken_by == 0, (y < 5) & context.correct & ~run.standing)
    assert torch.equal(run.broken_by == 1, (y >= 5) & context.correct & ~run.standing)
    assert torch.equal(run.broken_by == WRONG, ~context.correct)
    assert torch.equal(run.broken_by == ROBUST, run.standing)
    assert (net(run.x_adv).argmax(dim=1) == y)[run.standing].all()
    assert (net(run.x_adv).argmax(dim=1) != y)[~run.standing].all()
    assert ((run.x_adv - x).abs() <= 0.3 + 1e-6).all()


def test_it_is_run_once_and_controls_look_at_what_stands(net: nn.Module, x: Tensor, y: Tensor) -> None:
    calls: list[int] = []
    tap = net.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    try:
        context = question(net, x, y, suite={"pgd": PGD(steps=3)}, budget=FAST)
        first = suite_run(context)
        n = len(calls)
        assert suite_run(context) is first and len(calls) == n
        found = controls(context)
    finally:
        tap.remove()
    assert set(found) == {"noise", "fgsm"} and not any((broken & ~first.standing).any() for broken in found.values())


class Jumpy(nn.Module):
    """A net that answers at random a share of the time, whatever the image."""

    def __init__(self, net: nn.Module, share: float) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        lucky = torch.rand(len(x), 1) < self.share
        return torch.where(lucky, z.roll(1, dims=1), z)


def test_one_lucky_draw_of_a_random_net_breaks_nothing(net: nn.Module, x: Tensor, y: Tensor) -> None:
    weak = Threat("linf", 1e-4)  # too small to matter
    x, y = x[:60], y[:60]
    result = evaluate(
        Jumpy(net, 0.2).eval(), x, y, threat=weak, axes=["clean", "white_box"], suite="quick", budget=FAST
    )
    assert result.accuracy("white_box") >= result.accuracy("clean") - 0.02
    assert [p.label for p in result.axis("white_box").points] == ["apgd-ce", "apgd-dlr", "quick", "noise"]
    assert result.point("white_box", "apgd-ce").details["draws_per_gradient"] == 20


def test_the_expectation_of_a_random_net_is_attacked(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Noisy(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net(x + 0.05 * torch.randn_like(x))
            return z

    few, axes = slice(0, 40), ["clean", "white_box"]
    result = evaluate(Noisy(net).eval(), x[few], y[few], threat=THREAT, axes=axes, suite="quick", budget=FAST)
    sure = evaluate(net, x[few], y[few], threat=THREAT, axes=axes, suite="quick")
    assert sure.accuracy("white_box") < 0.7 and abs(result.accuracy("white_box") - sure.accuracy("white_box")) < 0.2
    (found,) = [c for c in result.checks if c.code == "frozen_randomness"]
    assert found.status in ("pass", "warn") and "with its draw known" in found.evidence


def test_axes_that_one_lucky_answer_would_end_are_not_measured(net: nn.Module, x: Tensor, y: Tensor) -> None:
    axes = ["clean", "eps_curve", "minimal_norm", "transfer", "query", "worst_case"]
    weak, few = Threat("linf", 1e-4), slice(0, 40)
    jumpy = Jumpy(net, 0.2).eval()
    budget = Budget(curve_steps=1, noise_draws=2, transfer_steps=1)
    result = evaluate(jumpy, x[few], y[few], threat=weak, axes=axes, suite=["fgsm"], sources=[net], budget=budget)
    missing = {c.evidence.split(":")[0] for c in result.checks if c.code == "not_measured"}
    assert missing == {"minimal_norm", "query"}
    clean = result.accuracy("clean")
    assert result.accuracy("transfer") == clean and result.accuracy("eps_curve") >= clean - 0.05
    assert result.accuracy("worst_case") >= clean - 0.05


def test_an_attack_may_be_called_what_it_likes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def custom(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    result = evaluate(net, x, y, threat=THREAT, axes=["white_box"], suite=[custom, PGD(steps=10), "noise"], budget=FAST)
    labels = [p.label for p in result.axis("white_box").points]
    assert labels == ["custom attack", "pgd", "noise attack", "custom", "noise"]
    assert (
        result.accuracy("white_box")
        == result.accuracy("white_box", "noise attack")
        < result.accuracy("white_box", "custom attack")
    )


def test_a_wrong_draw_spares_no_image_of_a_random_net(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Wrong half of the time on plain images, yet every image is attacked and judged by a vote."""
    few = slice(0, 40)
    jumpy = Jumpy(net, 0.35).eval()
    wide = Threat("linf", 0.4)
    result = evaluate(jumpy, x[few], y[few], threat=wide, axes=["clean", "white_box"], suite="quick", budget=FAST)
    sure = evaluate(net, x[few], y[few], threat=wide, axes=["clean", "white_box"], suite="quick", budget=FAST)
    assert result.accuracy("clean") >= sure.accuracy("clean") - 0.15  # a vote, not one draw
    assert result.point("white_box", "apgd-ce").details["attacked"] == round(40 * result.accuracy("clean"))
    assert result.accuracy("white_box") <= 0.1
