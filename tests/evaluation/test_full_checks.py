"""The checks that attack anew: each is tripped by an attack or a net broken in just that way, and not by sound ones."""

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import APGD, PGD
from hardy.evaluation import FULL, Budget, evaluate
from hardy.results import Check, Result
from hardy.threats import Threat

FAST = Budget(noise_draws=3)


def check(result: Result, code: str) -> Check:
    (found,) = [c for c in result.checks if c.code == code]
    return found


def full(net: nn.Module, x: Tensor, y: Tensor, eps: float, spec: PGD | APGD) -> Result:
    threat = Threat("linf", eps)
    return evaluate(net, x, y, threat=threat, axes=["white_box"], suite=[spec], budget=FAST, checks="full")


@pytest.fixture(scope="module")
def sound(net: nn.Module, x: Tensor, y: Tensor) -> Result:
    return full(net, x, y, 0.05, APGD(steps=20))


def test_a_sound_attack_on_a_sound_net_passes_all(sound: Result) -> None:
    assert {code: check(sound, code).status for code in FULL} == dict.fromkeys(FULL, "pass")
    assert sound.accuracy("white_box") > 0.3  # the checks had something to attack
    assert "survive linf 1, the whole box" in check(sound, "huge_eps").evidence


def test_steps_and_restarts_that_still_help_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    weak = full(net, x, y, 0.1, PGD(steps=1, step_size=0.01))
    found = check(weak, "more_budget")
    assert found.status == "fail" and found.evidence.startswith("pgd with five times the steps breaks")


def test_an_attack_that_misses_what_was_planted_is_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = check(full(net, x, y, 0.05, PGD(steps=1, step_size=1e-4)), "self_test")
    assert found.status == "fail" and "planted adversarial examples the suite finds" in found.evidence


class Blind(nn.Module):
    """Does not look at its input, so no attack can do anything."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * 0 + x.new_tensor([1.0, 0.0])


def test_a_budget_that_changes_nothing_is_seen() -> None:
    x, y = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(40, dtype=torch.int64)
    result = full(Blind().eval(), x, y, 0.1, APGD(steps=5))
    assert check(result, "larger_eps").status == check(result, "huge_eps").status == "fail"
    assert check(result, "huge_eps").evidence == "40 of 40 robust images survive linf 1, the whole box"
    few = full(Blind().eval(), x[:5], y[:5], 0.1, APGD(steps=5))
    assert check(few, "larger_eps").status == "warn"  # five images say little


def test_without_survivors_there_is_nothing_to_ask(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = full(net, x, y, 0.5, APGD(steps=20))
    assert result.accuracy("white_box") == 0
    for code in ("more_budget", "larger_eps", "huge_eps"):
        assert check(result, code).evidence == "no image was left to break"


def test_they_need_the_axis(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = evaluate(net, x, y, axes=["clean"], checks="full")
    assert {check(result, code).status for code in FULL} == {"not_run"}


def test_a_loss_for_many_classes_is_exchanged_on_the_re_headed_net(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = full(net, x, y, 0.05, APGD(steps=10, objective="dlr"))
    assert check(result, "self_test").status in {"pass", "warn"}
