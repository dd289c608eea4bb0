"""What stays in a net at test time is attacked with what the attacker would know of it."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy import surgery
from hardy.attacks import PGD
from hardy.evaluation import Budget, evaluate
from hardy.evaluation.adaptive import twin_of, without_methods
from hardy.methods import CARDS, METHODS
from hardy.models import Ensemble
from hardy.threats import Threat

FAST = Budget(noise_draws=3)


class Rounding(nn.Module):
    """Rounds to levels, or, once softened, lets its input through."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels, self.soft = levels, False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.soft else (x * self.levels).round() / self.levels


class Rounder(surgery.Insert):
    def soften(self) -> bool:
        for tap in self.taps:
            for layer in tap.modules():
                if isinstance(layer, Rounding):
                    layer.soft = True
        return True


@dataclass(frozen=True)
class Rounded:
    """A method that is live at test time and lets no gradient through."""

    levels: int = 4

    def attach(self, model: nn.Module, *, example: Tensor, seed: int) -> surgery.Attachment:
        held = Rounder(self, seed=seed, live=True)

        def layer(site: str, output: Tensor) -> nn.Module:
            return Rounding(self.levels)

        return surgery.after(model, ["0"], layer, method="rounded", example=example, held=held)


@pytest.fixture
def rounded(net: nn.Module, x: Tensor) -> nn.Module:
    made = hardy.strip(net)
    hardy.attach(made, [Rounded()], example=x[:2], seed=0)
    return made.eval()


def test_every_live_method_says_what_stands_in_for_it() -> None:
    for name in METHODS:
        assert bool(CARDS[name].twin) is CARDS[name].live, name


def test_a_net_without_live_methods_needs_no_twin(net: nn.Module, x: Tensor) -> None:
    assert twin_of(net) is None and without_methods(net) is None
    trained = hardy.strip(net)
    hardy.attach(trained, [METHODS["lfm"](), METHODS["dropout"]()], example=x[:2], seed=0)
    assert twin_of(trained) is None and without_methods(trained) is None


def test_masks_need_no_twin_but_can_be_taken_off(net: nn.Module, x: Tensor) -> None:
    masked = hardy.strip(net)
    hardy.attach(masked, [METHODS["defective_conv"]()], example=x[:2], seed=0)
    masked.eval()
    assert twin_of(masked) is None
    bare = without_methods(masked)
    assert bare is not None and torch.equal(bare(x), net(x)) and not torch.equal(masked(x), net(x))
    pair = without_methods(Ensemble([masked, net]).eval())
    assert pair is not None and torch.allclose(pair(x), net(x), atol=1e-6)
    compiled = torch.compile(masked, backend="eager")
    again = without_methods(compiled)  # type: ignore[arg-type]  # a module
    assert again is not None and torch.equal(again(x), net(x))


def test_the_twin_is_a_copy(rounded: nn.Module, net: nn.Module, x: Tensor) -> None:
    before = rounded(x)
    twin = twin_of(rounded)
    assert twin is not None and torch.equal(twin(x), net(x))
    assert torch.equal(rounded(x), before) and not torch.equal(before, net(x))


def test_attacks_find_their_way_through_the_twin(rounded: nn.Module, x: Tensor, y: Tensor) -> None:
    axes, suite = ["white_box"], [PGD(steps=10)]
    result = evaluate(rounded, x, y, threat=Threat("linf", 0.2), axes=axes, suite=suite, budget=FAST)
    points = {p.label: p for p in result.axis("white_box").points}
    assert list(points) == ["pgd", "pgd, twin", "custom", "noise"]
    blind = points["pgd, twin"].details["attacked"]
    assert isinstance(blind, int) and points["pgd, twin"].details["broke"] > 0.5 * blind  # type: ignore[operator]


def test_a_twin_of_the_users_own(net: nn.Module, x: Tensor, y: Tensor) -> None:
    class Steps(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z: Tensor = self.net((x * 8).round() / 8)
            return z

    broken, threat = Steps(net).eval(), Threat("linf", 0.2)
    suite = ["apgd", "square"]
    alone = evaluate(broken, x, y, threat=threat, axes=["white_box"], suite=["apgd"], budget=FAST)
    known = evaluate(broken, x, y, threat=threat, axes=["white_box"], suite=suite, twin=net, budget=FAST)
    assert known.accuracy("white_box") < 0.1 < alone.accuracy("white_box")
    assert [p.label for p in known.axis("white_box").points][:3] == ["apgd", "square", "apgd, twin"]
