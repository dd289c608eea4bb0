"""Each check is tripped by a net broken in just that way, and not by a sound one."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks import PGD, Noise, Square, attack
from hardy.evaluation import Budget, evaluate
from hardy.results import Check, Result
from hardy.threats import Threat

QUICK = Budget(
    curve_steps=4, noise_draws=10, transfer_steps=5, queries=30, min_norm_steps=5, corruptions=("contrast",),
    severities=(5,), drop_shares=(0.5,), fills=("mean",), bands=2, band_steps=2, weight_radii=(0.01,), weight_steps=2,
    weight_restarts=1, bits=(8,), smoothing_draws=12,
)  # fmt: skip
PGD5 = (PGD(steps=5),)
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
    found = check(evaluate(broken, x, y, threat=THREAT, axes=["white_box"], suite=PGD5, budget=QUICK), "zero_gradient")
    assert found.status == "fail" and "attacked images gave no gradient" in found.evidence and found.remedy


def test_noise_and_transfer_beat_a_net_with_reversed_gradients(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, reversed_gradient, same).eval()
    axes = ["white_box", "transfer"]
    result = evaluate(broken, x, y, threat=Threat("linf", 0.3), axes=axes, sources=[net], suite=PGD5, budget=QUICK)
    noise, transfer = check(result, "noise_beats_gradients"), check(result, "transfer_beats_white_box")
    assert noise.status == transfer.status == "fail"
    found = attack(broken, x, y, Noise(draws=10), threat=Threat("linf", 0.3))
    missed = int((result.outcomes("white_box") & found.success).sum())
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
    result = evaluate(
        Bump().eval(), x, y, threat=THREAT, axes=axes, suite=[PGD(steps=20)], budget=Budget(curve_steps=40)
    )
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
    result = evaluate(Constant().eval(), x, y, threat=THREAT, axes=["eps_curve"], suite=PGD5, budget=QUICK)
    found = check(result, "chance_level")
    assert found.status == "fail" and found.evidence == (
        f"accuracy 1.000 at {Threat('linf', 1.0)}; a working attack gets to 0.05"
    )
    assert check(result, "classes").status == "warn"


@pytest.mark.parametrize("squash", [softmax, torch.sigmoid])
def test_probabilities_are_seen(net: nn.Module, x: Tensor, y: Tensor, squash: Callable[[Tensor], Tensor]) -> None:
    broken = Wrapped(net, same, squash).eval()
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
    assert broken.seen == 120  # the probe's 64 images were taken back, the measurement's were not


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
        (Threat("l1", 200.0), "fail"),
        (Threat("l1", 40.0), "warn"),
        (Threat("l1", 5.0), "pass"),
        (Threat("l1", 0.002), "warn"),
    ],
)
def test_budgets_on_another_scale_are_seen(net: nn.Module, x: Tensor, y: Tensor, threat: Threat, status: str) -> None:
    assert check(evaluate(net, x, y, threat=threat, axes=["clean"]), "eps_scale").status == status


def test_black_images_and_few_images_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    result = evaluate(net, x[:30] / 255, y[:30], axes=["clean"])
    assert check(result, "input_range").status == "warn"
    assert check(result, "few_images").status == "warn"


def test_guards_cost_four_passes_of_a_few_images(net: nn.Module, x: Tensor, y: Tensor) -> None:
    shapes: list[int] = []
    tap = net.register_forward_hook(lambda _, inputs, __: shapes.append(len(inputs[0])))
    evaluate(net, x, y, axes=["clean"])
    tap.remove()
    assert shapes == [16, 16, 16, 16, 60, 60]


def test_vanished_gradients_count_once_and_singly(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def scaled(z: Tensor) -> Tensor:
        return 8 * z

    broken = Wrapped(net, same, scaled).eval()
    found = [
        check(evaluate(broken, x, y, threat=THREAT, axes=axes, suite=PGD5, budget=QUICK), "zero_gradient")
        for axes in (["white_box"], ["eps_curve"], ["white_box", "eps_curve"])
    ]
    assert found[0] == found[1] == found[2]
    assert found[0].status == "fail"
    few = Wrapped(net, same, lambda z: 4 * z).eval()  # few images are blind all the way, many gradients vanish
    suite = [PGD(steps=20, restarts=2)]
    seen = check(evaluate(few, x, y, threat=THREAT, axes=["white_box"], suite=suite), "zero_gradient")
    words = re.findall(r"\b\d+\b(?!-)", seen.evidence.replace("1e-12", ""))
    blind, _, zeros, total = (int(word) for word in words[:4])
    assert blind / 120 < 0.1 < zeros / total and seen.status == "fail"


@pytest.mark.parametrize("k", [2, 10])
def test_an_attack_that_only_gets_to_chance_is_seen(k: int) -> None:
    class Half(nn.Module):
        """Without gradient, right on the dark half of the images, whatever is done to them."""

        def forward(self, x: Tensor) -> Tensor:
            z = torch.zeros(len(x), k)
            z[:, 0] = 1
            return z + 0 * x.flatten(1)[:, :1]

    n = 200
    x, y = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % k
    found = check(
        evaluate(Half().eval(), x, y, threat=THREAT, axes=["eps_curve"], suite=PGD5, budget=QUICK), "chance_level"
    )
    assert found.status == "fail" and found.evidence.startswith(f"accuracy {1 / k:.3f} at linf 1")


class Across(nn.Module):
    """Normalises over the batch, as BatchNorm without running statistics does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(1, track_running_stats=False), net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(self.norm(x))
        return z


@pytest.mark.parametrize("n", [1, 5, 120])
def test_nets_that_look_across_the_batch_are_seen(net: nn.Module, x: Tensor, y: Tensor, n: int) -> None:
    result = evaluate(Across(net).eval(), x[:n], y[:n], axes=["clean"])
    assert check(result, "batch_independent").status == "fail"
    assert check(evaluate(net, x[:n], y[:n], axes=["clean"]), "batch_independent").status == "pass"


class Backwards(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:  # type: ignore[override]
        ctx.how = how
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.how(g), None


@pytest.mark.parametrize(
    ("how", "status"),
    [(torch.clone, "pass"), (torch.randn_like, "fail"), (torch.neg, "fail"), (torch.zeros_like, "fail")],
)
def test_gradients_that_are_no_slope_are_seen(
    net: nn.Module, x: Tensor, y: Tensor, how: Callable[[Tensor], Tensor], status: str
) -> None:
    broken = Wrapped(net, lambda x: Backwards.apply(x, how), same).eval()
    assert check(evaluate(broken, x, y, threat=THREAT, axes=["clean"]), "gradient_slope").status == status


@pytest.mark.parametrize("levels", [4, 16])
def test_straight_through_gradients_only_warn(net: nn.Module, x: Tensor, y: Tensor, levels: int) -> None:
    def through(x: Tensor) -> Tensor:
        return x + ((levels * x).round() / levels - x).detach()

    found = check(evaluate(Wrapped(net, through, same).eval(), x, y, threat=THREAT, axes=["clean"]), "gradient_slope")
    assert found.status == "warn" and "straight-through" in found.evidence


def test_a_clamp_that_blinds_black_and_white_pixels_is_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def inner(x: Tensor) -> Tensor:
        return torch.where((x > 0) & (x < 1), x, x.detach())

    def status(net: nn.Module, x: Tensor) -> str:
        return check(evaluate(net, x, y, threat=THREAT, axes=["clean"]), "border_gradient").status

    assert status(Wrapped(net, inner, same).eval(), x) == "fail"
    assert status(Wrapped(net, inner, same).eval(), 0.1 + 0.8 * x) == status(net, x) == "pass"


def test_slopes_of_random_nets_are_not_judged(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, lambda x: x + 0.1 * torch.randn_like(x), same).eval()
    result = evaluate(broken, x, y, axes=["clean"])
    assert check(result, "gradient_slope").status == check(result, "batch_independent").status == "not_run"


def test_nan_outputs_are_a_failure_and_never_right(net: nn.Module, x: Tensor, y: Tensor, tmp_path: Path) -> None:
    broken = Wrapped(net, same, lambda z: z / 0 * 0).eval()
    result = evaluate(broken, x, 0 * y, threat=THREAT, suite="quick", budget=QUICK)
    assert all(p.accuracy == 0 for axis in result.axes for p in axis.points)
    found = check(result, "logits")
    assert found.status == "fail" and "16 of 16 outputs of plain images are NaN or infinite" in found.evidence
    assert (result.arrays["predictions"] == -1).all()
    assert "median_margin_of_robust" not in result.point("white_box").details
    result.save(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


def test_a_source_that_is_the_model_is_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    masked = copy.deepcopy(net)
    masked[2].register_forward_hook(lambda _, __, out: 0.5 * out)  # the same weights, another function
    sources = [("copy", copy.deepcopy(net)), ("masked", masked)]
    result = evaluate(net, x, y, threat=THREAT, axes=["transfer"], sources=sources, budget=QUICK)
    found = check(result, "source_is_model")
    assert found.status == "fail" and found.evidence == "1 of 2 sources are the model itself: copy" and found.remedy
    one, two, _ = (p.details["source_weights"] for p in result.axis("transfer").points)
    assert one == two == result.arrays["model_weights"].tobytes().hex()


def test_ambient_autocast_changes_no_guard(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = evaluate(net, x, y, axes=["clean"])
    want = evaluate(net, x, y, axes=["clean"])
    assert [c.status for c in low.checks] == [c.status for c in want.checks]
    assert check(low, "logits") == check(want, "logits")


class OfBrightness(nn.Module):
    """Logits 0 and ``shape(mean - 0.5)``: a loss surface drawn by hand."""

    def __init__(self, shape: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        z = self.shape(x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([torch.zeros_like(z), z], dim=1)


def flat(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full_like(x, 0.5), torch.zeros(len(x), dtype=torch.int64)


def test_many_steps_caught_in_a_hollow_lose_to_a_single_one(x: Tensor) -> None:
    def hollow(m: Tensor) -> Tensor:  # rises to a hill at 0.02 that is not high enough; beyond 0.09 all is lost
        return torch.where(m < 0.02, m, 0.04 - m) - 0.03 + 0.2 * (m > 0.09)

    images, labels = flat(x)
    net = OfBrightness(hollow).eval()
    result = evaluate(net, images, labels, threat=THREAT, axes=["white_box"], suite=[PGD(steps=20)], budget=QUICK)
    found = check(result, "single_step_beats_many")
    assert (
        found.status == "fail"
        and found.evidence == "a single gradient step breaks 120 of 120 images that the suite does not"
    )


def test_queries_that_break_what_gradients_do_not_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, rounded, same).eval()
    suite = [PGD(steps=5), Square(queries=100)]
    result = evaluate(broken, x, y, threat=THREAT, axes=["white_box"], suite=suite, budget=QUICK)
    found = check(result, "black_box_beats_white_box")
    assert found.status == "fail"
    assert f"queries alone break {result.point('white_box', 'square').details['broke']} of 120" in found.evidence
    alone = evaluate(broken, x, y, threat=THREAT, axes=["white_box", "query"], suite=PGD5, budget=Budget(queries=100))
    assert check(alone, "black_box_beats_white_box").status == "fail"  # seen by the axis too
    blind = evaluate(net, x, y, threat=THREAT, axes=["white_box"], suite=["noise"])
    assert check(blind, "black_box_beats_white_box").status == "not_run"


def test_attacks_that_get_nowhere_are_seen(net: nn.Module, x: Tensor, y: Tensor) -> None:
    broken = Wrapped(net, reversed_gradient, same).eval()
    result = evaluate(broken, x, y, threat=THREAT, axes=["white_box"], suite=PGD5, budget=QUICK)
    found = check(result, "no_progress")
    assert found.status == "fail" and "no attack lowered the margin" in found.evidence


def test_robustness_that_rests_on_an_unknown_draw_is_seen(x: Tensor) -> None:
    class Sometimes(nn.Module):
        """Can be fooled in one draw of three: never by most of its answers, always by one who knows the draw."""

        def forward(self, x: Tensor) -> Tensor:
            z = (x.flatten(1).mean(dim=1) - 0.5) * (torch.rand(()) < 1 / 3) - 0.05
            return torch.stack([torch.zeros_like(z), z], dim=1)

    def draws(seed: int) -> Tensor:
        return torch.stack(
            [torch.rand((), generator=g) for g in [torch.Generator().manual_seed(seed)] for _ in range(2)]
        )

    seed = next(s for s in range(100) if (draws(s) < 1 / 3).tolist() == [True, False])  # the first two passes differ
    images, labels = 0.5 + 0.02 * (x - 0.5), torch.zeros(len(x), dtype=torch.int64)
    result = evaluate(Sometimes().eval(), images, labels, threat=THREAT, axes=["white_box"], suite="quick", seed=seed)
    found = check(result, "frozen_randomness")
    assert check(result, "deterministic").status == "warn" and result.accuracy("white_box") == 1
    assert found.status == "warn" and found.evidence.startswith("with its draw known, 32 of 32 images fall")


def test_an_attack_that_forgets_what_it_found_is_seen_and_made_good(net: nn.Module, x: Tensor, y: Tensor) -> None:
    def forgetful(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found = attack(model, x, y, PGD(steps=10), threat=THREAT).x_adv
        model(found)
        return x

    def honest(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack(model, x, y, PGD(steps=10), threat=THREAT).x_adv

    lost, kept = (
        evaluate(net, x, y, threat=THREAT, axes=["white_box"], suite=[mine], budget=QUICK)
        for mine in (forgetful, honest)
    )
    assert torch.equal(lost.outcomes("white_box"), kept.outcomes("white_box"))
    broke = lost.point("white_box").details["broke"]
    assert isinstance(broke, int) and broke > 20
    assert (
        check(lost, "silent_success").evidence == f"forgetful passed {broke} adversarial images without returning them"
    )
    assert check(lost, "silent_success").status == "warn" and check(kept, "silent_success").status == "pass"
