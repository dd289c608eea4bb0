"""The engine: same verdicts whatever the batch, passes counted, jobs cancelled, claims verified, no trace left."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.attacks import FGSM, PGD, Attack, Noise, Progress, Query, attack, passes
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.passes import bucket
from hardy.attacks.state import Ball, concat, select
from hardy.threats import Norm, Threat

ATTACKS = {
    "fgsm": FGSM(),
    "pgd": PGD(steps=5, restarts=3),
    "targeted": PGD(targeted=True, restarts=2),
    "noise": Noise(),
}


def assert_same_verdicts(a: Tensor, b: Tensor, margin: Tensor) -> None:
    odd = (a != b).nonzero()[:, 0].tolist()
    close = [row for row in odd if abs(float(margin[row])) < 1e-5]
    assert odd == close, f"rows {odd} differ, of which only {close} are within 1e-5 of the border"


@pytest.mark.parametrize("name", ATTACKS)
def test_verdicts_do_not_depend_on_batch_size_order_or_company(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm, name: str
) -> None:
    threat = Threat(norm, 0.03 if norm == "linf" else 0.25)
    want = attack(net, x, y, ATTACKS[name], threat=threat, batch_size=64)
    if name != "noise":
        assert 3 < want.success.sum() < 50
    small = attack(net, x, y, ATTACKS[name], threat=threat, batch_size=7)
    assert_same_verdicts(small.success, want.success, want.margin)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    mixed = attack(net, x[order], y[order], ATTACKS[name], threat=threat, batch_size=16, rows=order)
    assert_same_verdicts(mixed.success, want.success[order], want.margin[order])
    if name in {"fgsm", "noise"}:  # of several restarts, which comes first depends on the batch
        torch.testing.assert_close(mixed.x_adv, want.x_adv[order], rtol=0, atol=1e-6)
    for i in (0, 5, 31):
        alone = attack(net, x[i : i + 1], y[i : i + 1], ATTACKS[name], threat=threat, rows=torch.tensor([i]))
        assert_same_verdicts(alone.success, want.success[i : i + 1], want.margin[i : i + 1])


def test_the_seed_and_the_row_matter(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("linf", 0.03)
    a, b = (attack(net, x, y, PGD(steps=1), threat=threat, seed=s, stop="never").x_adv for s in (0, 1))
    assert not torch.equal(a, b)
    twice = attack(net, x[[5, 5]], y[[5, 5]], PGD(steps=1), threat=threat, stop="never").x_adv
    assert not torch.equal(twice[0], twice[1])


def test_results_are_inside_and_what_they_say(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat = Threat(norm, 0.03 if norm == "linf" else 0.25)
    found = attack(net, x, y, "pgd", threat=threat)
    assert (norm_of(found.x_adv - x, norm=norm) <= threat.eps + 1e-6).all()
    assert found.x_adv.min() >= 0 and found.x_adv.max() <= 1
    with torch.no_grad():
        z = net(found.x_adv)
    assert torch.equal(z.argmax(dim=1) != y, found.success)
    others = z.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(found.margin, z.gather(1, y[:, None])[:, 0] - others)
    assert found.clean_correct.tolist() == [False] * 3 + [True] * 47
    assert torch.equal(found.x_adv[:3], x[:3]) and found.success[:3].all()


def test_nothing_is_left_behind(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net = copy.deepcopy(net)
    net[0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before, rng = copy.deepcopy(net), torch.get_rng_state()
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    given = x.clone()
    with torch.no_grad():  # the caller's own mode does not matter
        for each in ATTACKS.values():
            attack(net, x, y, each, threat=Threat("linf", 0.02))
    assert torch.equal(rng, torch.get_rng_state()) and torch.equal(x, given)
    assert flags == [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()]
    for (name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) and p.requires_grad == q.requires_grad, name
        assert p.grad is None if p is not net[3].weight else torch.equal(p.grad, torch.ones_like(p))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before.buffers(), strict=True))


def test_passes_are_those_of_a_hand_count(x: Tensor) -> None:
    always_right = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    nn.init.zeros_(always_right[1].weight)
    always_right[1].bias = nn.Parameter(torch.tensor([1.0, 0.0]))
    y = torch.zeros(10, dtype=torch.int64)
    found = attack(always_right.eval(), x[:10], y, PGD(steps=4, restarts=3), threat=Threat("linf", 0.1), batch_size=8)
    assert found.backward_passes.tolist() == [12] * 10
    assert found.forward_passes.tolist() == [1 + 12 + 3] * 10  # plain image, steps, one verification per restart
    assert found.passes == {"forward": 160, "backward": 120}
    assert torch.equal(found.gradients, torch.full((10,), 12)) and torch.equal(found.zero_gradients, found.gradients)
    assert not found.success.any() and torch.equal(found.margin, torch.ones(10))


def test_two_sources_are_averaged_and_both_counted(net: nn.Module, x: Tensor, y: Tensor) -> None:
    twin = copy.deepcopy(net)
    twin[6].bias.data += torch.arange(5.0)

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (net(x) + twin(x)) / 2

    threat = Threat("linf", 0.05)
    got = attack(net, x, y, PGD(steps=3), threat=threat, sources=[net, twin])
    want = attack(net, x, y, PGD(steps=3), threat=threat, sources=[Mean().eval()])
    torch.testing.assert_close(got.x_adv, want.x_adv)
    assert got.backward_passes[3:].tolist() == [6] * 47 and want.backward_passes[3:].tolist() == [3] * 47
    assert got.forward_passes[3:].tolist() == [8] * 47


def test_a_broken_image_cancels_its_other_jobs(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("linf", 0.5)  # every restart breaks within a few steps
    one = attack(net, x, y, PGD(), threat=threat, batch_size=4)
    many = attack(net, x, y, PGD(restarts=8), threat=threat, batch_size=4)
    assert one.success.all() and many.success.all()
    assert many.passes["backward"] <= one.passes["backward"] * 1.5
    whole = attack(net, x, y, PGD(restarts=8, steps=3), threat=threat, stop="never")
    assert whole.backward_passes[3:].tolist() == [8 * 3] * 47


def test_the_batch_stays_full(net: nn.Module, x: Tensor, y: Tensor) -> None:
    shapes = shapes_of(net, lambda: attack(net, x, y, PGD(restarts=4, steps=8), threat=WEAK, batch_size=32))
    assert shapes.count(32) > 0.7 * len(shapes)


def test_on_a_cpu_no_row_is_padded_while_searching(net: nn.Module, x: Tensor, y: Tensor) -> None:
    five, threat = slice(3, 8), Threat("linf", 1e-6)  # nothing breaks, nothing leaves early
    shapes = shapes_of(net, lambda: attack(net, x[five], y[five], PGD(steps=4), threat=threat, batch_size=64))
    assert shapes == [5] * (1 + 4 + 1)


WEAK = Threat("linf", 0.015)


def shapes_of(net: nn.Module, run: Callable[[], object]) -> list[int]:
    shapes: list[int] = []
    tap = net.register_forward_hook(lambda _, inputs, __: shapes.append(len(inputs[0])))
    run()
    tap.remove()
    return shapes


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("n", "size", "want"), [(1, 128, 8), (8, 128, 8), (9, 128, 16), (65, 128, 72), (3, 7, 3), (99, 100, 100)]
)
def test_buckets_are_multiples_of_a_sixteenth_or_exact(n: int, size: int, want: int) -> None:
    assert bucket(n, size, CUDA) == want
    assert bucket(n, size, torch.device("cpu")) == n


@settings(max_examples=30)
@given(size=st.integers(1, 300), n=st.integers(1, 300))
def test_buckets_are_few_and_hold_the_rows(size: int, n: int) -> None:
    assert min(n, size) <= bucket(min(n, size), size, CUDA) <= size
    assert len({bucket(k, size, CUDA) for k in range(1, size + 1)}) <= 16


def test_progress_rises_to_the_total(net: nn.Module, x: Tensor, y: Tensor) -> None:
    seen: list[Progress] = []
    found = attack(net, x, y, PGD(restarts=3), threat=Threat("linf", 0.03), batch_size=8, on_progress=seen.append)
    done = [p.done for p in seen]
    assert done[0] == 0 and done[-1] == seen[-1].total == 47 * 3 and all(p.attack == "pgd" for p in seen)
    assert [p.broken for p in seen] == sorted(p.broken for p in seen)
    assert seen[-1].broken == int(found.success[3:].sum())


class Fickle(nn.Module):
    """Wrong on noisy images, but only in batches that are not of the verification's shape."""

    def __init__(self, shape: int, times: int) -> None:
        super().__init__()
        self.shape, self.left = shape, times

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        wrong = (x.flatten(1).std(dim=1) > 1e-3) & (len(x) != self.shape)
        self.left -= int(wrong.any())
        return torch.stack([0 * mean + 0.5, torch.where(wrong, 1.0, 0.0)], dim=1)


def test_a_success_that_does_not_hold_is_not_counted_and_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "bucket", lambda *_: 16)  # the search has another shape than the verification
    model = Fickle(shape=10, times=0).eval()
    x, y = torch.full((10, 1, 4, 4), 0.5), torch.zeros(10, dtype=torch.int64)
    found = attack(model, x, y, Noise(draws=5), threat=Threat("linf", 0.1), batch_size=64)
    assert not found.success.any()
    assert found.forward_passes.tolist() == [1 + 5 + 5] * 10  # every draw claimed, every claim refused
    assert torch.equal(found.margin, torch.full((10,), 0.5))


@dataclass(frozen=True)
class PairState:
    x: Tensor
    key: Tensor
    threat: Ball
    step: Tensor


@dataclass(frozen=True)
class Pairs:
    """Asks three points per row, the middle one outside the ball; a min-norm attack besides."""

    name: str = "pairs"
    norms: tuple[Norm, ...] = ("linf",)
    targeted: bool = False
    hard_label: bool = True
    stop: str = "first_success"
    restarts: int = 1
    loss: object = None

    def start(self, x: Tensor, y: Goal, threat: Ball, key: Tensor) -> PairState:
        return PairState(x, key, threat, torch.zeros_like(key))

    def ask(self, state: PairState) -> Query:
        e = state.threat.eps[:, None, None, None]
        points = torch.stack([state.x + 0.1 * e, state.x + 3 * e, state.x + 0.9 * e], dim=1)
        return Query(points.flatten(0, 1), torch.arange(len(state.x)).repeat_interleave(3), gradient=False)

    def tell(self, state: PairState, logits: Tensor, gradient: Tensor | None) -> PairState:
        assert gradient is None and len(logits) == 3 * len(state.x)
        return replace(state, step=state.step + 1)

    def finished(self, state: PairState) -> Tensor:
        return state.step >= 4

    def result(self, state: PairState) -> Tensor:
        return state.x + 0.1 * state.threat.eps[:, None, None, None]


def test_a_row_may_ask_several_points_and_only_those_inside_count() -> None:
    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            over = x.flatten(1).mean(dim=1) - x.new_tensor(0.2 + 0.05)
            return torch.stack([-over, over], dim=1)

    x, y = torch.full((9, 1, 2, 2), 0.2), torch.zeros(9, dtype=torch.int64)
    pairs = Pairs()
    assert isinstance(pairs, Attack)
    hit = attack(Threshold().eval(), x, y, pairs, threat=Threat("linf", 0.1), batch_size=4)
    assert hit.success.all()
    torch.testing.assert_close(hit.x_adv, x + 0.09)
    assert hit.forward_passes.tolist() == [1 + 3 + 1] * 9
    miss = attack(Threshold().eval(), x, y, pairs, threat=Threat("linf", 0.05), batch_size=4)
    assert not miss.success.any()  # 3 * eps would do, but is outside
    assert miss.forward_passes.tolist() == [1 + 4 * 3 + 1] * 9


def test_states_are_selected_and_joined_at_every_depth() -> None:
    goal = Goal(torch.arange(4), torch.arange(4) + 1, torch.zeros(4, dtype=torch.bool))
    state = PairState(torch.rand(4, 1, 2, 2), torch.arange(4), Ball("l2", torch.rand(4)), torch.zeros(4))
    again = concat([select(state, torch.tensor([0, 1])), select(state, torch.tensor([2, 3]))])
    assert torch.equal(again.x, state.x) and torch.equal(again.threat.eps, state.threat.eps)
    assert again.threat.norm == "l2"
    assert torch.equal(select(goal, torch.tensor([False, True, False, True])).target, torch.tensor([2, 4]))


@dataclass(frozen=True)
class Shrinking(Pairs):
    """Restart r ends at the distance that its key gives; the nearest success is wanted."""

    stop: str = "min_norm"
    restarts: int = 6

    def result(self, state: PairState) -> Tensor:
        share = (state.key % 1000).abs() / 1000
        return state.x + (share * state.threat.eps)[:, None, None, None]


def test_min_norm_keeps_the_nearest_success_of_all_restarts() -> None:
    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            over = x.flatten(1).mean(dim=1) - x.new_tensor(0.23)
            return torch.stack([-over, over], dim=1)

    x, y = torch.full((9, 1, 2, 2), 0.2), torch.zeros(9, dtype=torch.int64)
    found = attack(Threshold().eval(), x, y, Shrinking(), threat=Threat("linf", 0.1))
    size = norm_of(found.x_adv - x, norm="linf")
    assert found.success.any() and (size[found.success] >= 0.03 - 1e-6).all()
    more = attack(Threshold().eval(), x, y, replace(Shrinking(), restarts=40), threat=Threat("linf", 0.1))
    assert more.success.all() and (norm_of(more.x_adv - x, norm="linf") < 0.04).all()


def test_nan_logits_are_a_wrong_prediction() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.flatten(1).mean(dim=1)
            return torch.stack([torch.where(mean > 0.52, torch.nan, 1.0), 0 * mean], dim=1)

    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    found = attack(Breaks().eval(), x, y, Noise(draws=50), threat=Threat("linf", 0.1))
    assert found.success.all() and (found.margin == -torch.inf).all()


class Bright(nn.Module):
    """Class 1 where the mean is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        over = x.flatten(1).mean(dim=1) - x.new_tensor(0.5)
        return torch.stack([-over, over], dim=1)


def test_other_restarts_rest_while_a_claim_waits() -> None:
    x = torch.full((10, 1, 4, 4), 0.1)  # nine images out of reach keep the batch busy
    x[4] = 0.485  # some restarts start close enough to get there, most do not
    y = torch.zeros(10, dtype=torch.int64)
    each = PGD(restarts=8, steps=20, step_size=5e-4)
    found = attack(Bright().eval(), x, y, each, threat=Threat("linf", 0.06))
    assert found.success.tolist() == [i == 4 for i in range(10)]
    rounds, odd = divmod(int(found.backward_passes[4]), 8)
    assert odd == 0 and 1 <= rounds < 20  # all eight stopped in the round of the first claim
    assert found.backward_passes.tolist()[:4] == [160] * 4


def test_every_verification_has_one_shape(net: nn.Module, x: Tensor, y: Tensor) -> None:
    shapes = []
    tap = net.register_forward_hook(
        lambda _, inputs, __: None if torch.is_grad_enabled() else shapes.append(len(inputs[0]))
    )
    attack(net, x, y, PGD(restarts=2, steps=3), threat=Threat("linf", 0.02), batch_size=16)
    attack(net, x[:13], y[:13], PGD(steps=3), threat=Threat("linf", 0.02))
    tap.remove()
    assert set(shapes[:-2]) == {16} and shapes[-2:] == [13, 13]


class NanTrap(nn.Module):
    """NaN where the second pixel is bright, else class 1 where the first one is dark."""

    def forward(self, x: Tensor) -> Tensor:
        a = x.flatten(1)
        z = torch.stack([0 * a[:, 0], 50 * (0.45 - a[:, 0]), 0 * a[:, 0] - 9], dim=1)
        return torch.where(a[:, 1:2] > 0.53, torch.nan, z)


def test_a_restart_that_ends_in_nan_does_not_hide_a_later_hit() -> None:
    x, y = torch.full((64, 1, 2, 2), 0.5), torch.zeros(64, dtype=torch.int64)
    for stop in ("first_success", "never", "min_norm"):
        shares = [
            float(
                attack(NanTrap().eval(), x, y, PGD(restarts=r), threat=Threat("linf", 0.1), targets=y + 1, stop=stop)
                .success.float()
                .mean()
            )
            for r in (1, 8)
        ]
        assert shares[0] < 0.9 and shares[1] > 0.95, stop
    found = attack(NanTrap().eval(), x, y, PGD(), threat=Threat("linf", 0.1), targets=y + 1, stop="never")
    assert not (found.margin == -torch.inf).any()


def test_min_norm_tells_tiny_distances_apart() -> None:
    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            over = x.flatten(1).mean(dim=1) - x.new_tensor(0.2)
            return torch.stack([-over, over], dim=1)

    x, y = torch.full((9, 1, 2, 2), 0.2), torch.zeros(9, dtype=torch.int64)
    sizes = []
    for restarts in (1, 3, 10, 30):
        each = replace(Shrinking(), restarts=restarts)
        found = attack(Threshold().eval(), x, y, each, threat=Threat("linf", 1e-4))
        assert found.success.all()
        sizes.append(norm_of(found.x_adv - x, norm="linf"))
    assert all((more <= less).all() for less, more in itertools.pairwise(sizes))
    assert (sizes[-1] < sizes[0]).any() and (sizes[-1] < 3e-5).all()


def test_a_success_with_a_tie_beats_a_failure_with_a_tie() -> None:
    class Ties(nn.Module):
        """Class 1 beside 2 on dark images, class 0 beside 1 on others: the first of the two is predicted."""

        def forward(self, x: Tensor) -> Tensor:
            dark = (x.flatten(1).mean(dim=1) < 0.23).float()
            return torch.stack([1 - dark, torch.ones_like(dark), dark], dim=1)

    x, y = torch.full((9, 1, 2, 2), 0.2), torch.ones(9, dtype=torch.int64)
    each = replace(Shrinking(), restarts=40, stop="never")
    found = attack(Ties().eval(), x, y, each, threat=Threat("linf", 0.1))
    assert found.success.all() and not found.margin.any()
