"""Each check is tripped by a net broken in just that way, and not by a sound one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hardy.evaluation import Budget, evaluate
from hardy.results import Check, Result
from hardy.threats import Threat

QUICK = Budget(steps=5, restarts=1, curve_steps=4, noise_draws=10, transfer_steps=5)
THREAT = Threat("linf", 0.1)


def check(result: Result, code: str) -> Check:
    (found,) = [c for c in result.checks if c.code == code]
    return found


class Wrapped(nn.Module):
    """A net with something done to its input and output."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def same(z: Tensor) -> Tensor:
    return z


def rounded(x: Tensor) -> Tensor:
    return (x * 16).round() / 16


def reversed_gradient(x: Tensor) -> Tensor:
    return 2 * x.detach() - x


def softmax(z: Tensor) -> Tensor:
    return z.softmax(dim=1)


def huge(z: Tensor) -> Tensor:
    return 1e4 * z


@pytest.mark.parametrize(("before", "after"), [(rounded, same), (same, huge)])
def test_zero_gradient_is_seen(
    net: nn.Module, x: Tensor, y: Tensor, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]
) -> None:
    broken = Wrapped(net, before, after).eval()
    found = check(evaluate(broken, x, y, threat=THREAT, axes=["white_box"], budget=QUICK), "zero_gradient")
    assert found.status == "fail" and "attacked images gave no gradient" in found.evidence and found.remedy


def test_noise_and_transfer_beat_a_net_with_reversed_gradients(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, reversed_gradient, same).eval()
    axes = ["white_box", "transfer"]
    result = evaluate(broken, x, y, threat=Threat("linf", 0.3), axes=axes, sources=[net], budget=QUICK)
    noise, transfer = check(result, "noise_beats_gradients"), check(result, "transfer_beats_white_box")
    assert noise.status == transfer.status == "fail"
    missed = int((result.outcomes("white_box") & ~result.outcomes("white_box", "noise")).sum())
    assert f"breaks {missed} of 120 images" in noise.evidence
    assert check(result, "zero_gradient").status == "pass"  # the gradients are there, they only lead astray


class Bump(nn.Module):
    """Class 1 only in a narrow band of brightness, which long steps jump over."""

    def forward(self, x: Tensor) -> Tensor:
        over = 0.002 - (x.flatten(1).mean(dim=1) - 0.51).abs()
        return torch.stack([-over, over], dim=1)


def test_a_larger_budget_that_breaks_less_is_seen() -> None:
    x, y = torch.full((100, 1, 8, 8), 0.5), torch.zeros(100, dtype=torch.int64)
    axes = ["white_box", "eps_curve"]
    result = evaluate(Bump().eval(), x, y, threat=THREAT, axes=axes, budget=Budget(restarts=1, curve_steps=4))
    found = check(result, "monotone_eps")
    assert found.status == "fail"
    low = result.outcomes("eps_curve", str(Threat("linf", 0.0125)))
    assert result.outcomes("white_box")[~low].any()  # broken at an eighth of the budget, not at the whole
    assert not (result.outcomes("eps_curve") & ~low).any()  # the curve remembers


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * 0 + x.new_tensor([1.0, 0.0])


def test_accuracy_that_never_reaches_chance_is_seen() -> None:
    x, y = torch.rand(100, 1, 4, 4), torch.zeros(100, dtype=torch.int64)
    result = evaluate(Constant().eval(), x, y, threat=THREAT, axes=["eps_curve"], budget=QUICK)
    found = check(result, "chance_level")
    assert found.status == "fail" and found.evidence == f"accuracy 1.000 at {Threat('linf', 1.0)}; chance is 0.500"
    assert check(result, "classes").status == "warn"


def test_softmax_outputs_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, same, softmax).eval()
    assert check(evaluate(broken, x, y, axes=["clean"]), "logits").status == "warn"


def test_random_nets_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)

    found = check(evaluate(Wrapped(net, noisy, same).eval(), x, y, axes=["clean"]), "deterministic")
    assert found.status == "warn" and "EOT" in found.remedy


def test_live_dropout_is_named(net: nn.Module, x: Tensor, y: Tensor) -> None:
    odd = nn.Sequential(nn.Dropout(0.2), net).eval()
    odd[0].train()
    found = check(evaluate(odd, x, y, axes=["clean"]), "eval_mode")
    assert found.status == "warn" and "0 (Dropout)" in found.evidence


class Counting(nn.Module):
    """Updates a buffer in eval mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        z: Tensor = self.net(x)
        return z


def test_changing_buffers_are_seen_and_put_back(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Counting(net).eval()
    found = check(evaluate(broken, x, y, axes=["clean"]), "bn_statistics")
    assert found.status == "fail" and "first seen" in found.evidence
    assert broken.seen == 120  # the probe's 32 images were taken back, the measurement's were not


@pytest.mark.parametrize(
    ("threat", "status"),
    [
        (Threat("linf", 8.0), "fail"),
        (Threat("linf", 0.8), "warn"),
        (Threat("linf", 8 / 255), "pass"),
        (Threat("linf", 8 / 255 / 255), "warn"),
        (Threat("l2", 20.0), "fail"),
        (Threat("l2", 5.0), "warn"),
        (Threat("l2", 0.5), "pass"),
        (Threat("l2", 0.002), "warn"),
    ],
)
def test_budgets_on_another_scale_are_seen(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, status: str) -> None:
    assert check(evaluate(net, x, y, threat=threat, axes=["clean"]), "eps_scale").status == status


def test_black_images_and_few_images_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = evaluate(net, x[:30] / 255, y[:30], axes=["clean"])
    assert check(result, "input_range").status == "warn"
    assert check(result, "few_images").status == "warn"


def test_full_checks_find_what_a_small_budget_missed_and_nothing_where_it_did_not(
    net: nn.Module, x: Tensor, y: Tensor
) -> None:
    weak = Budget(steps=1, restarts=1, step_size=0.01)
    found = check(evaluate(net, x, y, threat=THREAT, axes=["white_box"], budget=weak, checks="full"), "more_budget")
    assert found.status == "fail" and found.evidence.startswith("5 steps and 2 restarts break")
    strong = evaluate(net, x, y, threat=Threat("linf", 0.02), axes=["white_box"], checks="full")
    assert check(strong, "more_budget").status == "pass"
    everything = evaluate(net, x, y, threat=Threat("linf", 0.4), axes=["white_box"], budget=QUICK, checks="full")
    assert check(everything, "more_budget").evidence == "no image was left to break"


def test_guards_cost_two_passes_of_a_few_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    shapes: list[int] = []
    tap = net.register_forward_hook(lambda _, inputs, __: shapes.append(len(inputs[0])))
    evaluate(net, x, y, axes=["clean"])
    tap.remove()
    assert shapes == [16, 16, 120]
