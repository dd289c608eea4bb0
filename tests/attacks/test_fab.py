"""FAB: the reference's walk point by point, the closed-form distance on linear nets, and rows that do not mix."""

import types
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hardy.attacks.fab import FAB, FABState, target_lead
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of
from hardy.attacks.run import AttackResult, run
from hardy.attacks.state import Ball, concat, select
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat

FULL = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def attack(net: nn.Module, x: Tensor, y: Tensor, fab: FAB, threat: Threat, **other: object) -> AttackResult:
    given = {"targets": None, "rows": None, "seed": 0, "batch_size": 64, "sources": None, "stop": None}
    return run(net, x, y, fab, threat=threat, skip_wrong=True, on_progress=None, **(given | other))  # type: ignore[arg-type]


def second_best(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).scatter(1, y[:, None], -torch.inf).argmax(dim=1)


def begin(fab: FAB, x: Tensor, y: Tensor, target: Tensor, *, norm: Norm, must_hit: bool = False) -> FABState:
    goal = Goal(y, target, torch.full_like(y, must_hit, dtype=torch.bool))
    return fab.start(x, goal, Ball(norm, torch.full((len(x),), 0.3)), torch.arange(len(x)))


def advance(fab: FAB, state: FABState, net: nn.Module, rounds: int, seen: list[Tensor] | None = None) -> FABState:
    for _ in range(rounds):
        query = fab.ask(state)
        leaf = query.x.clone().requires_grad_()
        logits = net(leaf)
        gradient = None
        if query.gradient:
            (gradient,) = torch.autograd.grad(fab.loss(logits, state.goal).sum(), leaf)
        if seen is not None:
            seen.append(query.x)
        state = fab.tell(state, logits.detach(), gradient)
    return state


def oracle(net: nn.Module, norm: Norm, steps: int, eps: float) -> types.SimpleNamespace:
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    made: types.SimpleNamespace = fab_pt.FABAttack_PT(
        net, norm=FULL[norm], n_iter=steps, eps=eps, targeted=True, n_target_classes=4, device="cpu"
    )
    return made


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rank", [2, 4])
def test_walks_where_the_reference_walks(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, rank: int) -> None:
    x, y, steps = x[3:], y[3:], 25
    reference, theirs = oracle(net, norm, steps, 0.3), []
    reference.target_class = rank
    tapped = net.register_forward_hook(lambda _, inputs, __: theirs.append(inputs[0].detach().clone()))
    best = reference.attack_single_run(x, y, is_targeted=True)
    tapped.remove()
    with torch.no_grad():
        target = net(x).sort(dim=1).indices[:, -rank]
    mine: list[Tensor] = []
    fab = FAB(steps=steps)
    state = advance(fab, begin(fab, x, y, target, norm=norm), net, 2 * steps, mine)
    assert fab.finished(state).all() and len(mine) == len(theirs) - 2  # it predicts the images twice before the walk
    for mine_at, theirs_at in zip(mine[:20], theirs[2:], strict=False):
        torch.testing.assert_close(mine_at, theirs_at, rtol=0, atol=1e-4)
    length = norm_of(best - x, norm=norm)
    assert torch.equal(state.distance.isfinite(), length > 0)
    ratio = (state.distance / length)[length > 0]
    assert len(ratio) > 40 and ratio.max() < 1.001 and ratio.min() > 0.89
    assert rank > 2 or ratio.min() > 0.999  # towards far classes, points that it goes back to may still fool the net


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.1), ("l1", 0.5)])
def test_breaks_what_the_reference_breaks(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, eps: float) -> None:
    x, y = x[3:], y[3:]
    with torch.no_grad():
        theirs = net(oracle(net, norm, 100, eps).perturb(x, y)).argmax(dim=1) != y
    mine = attack(net, x, y, FAB(), Threat(norm, eps))
    assert 0.1 < float(mine.success.float().mean()) < 0.95
    assert (mine.success | ~theirs).all() and (mine.success == theirs).float().mean() > 0.97


@pytest.mark.parametrize("norm", NORMS)
def test_finds_the_distance_to_a_plane(norm: Norm) -> None:
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 12, generator=g))
    x = 0.4 + 0.2 * torch.rand(30, 3, 2, 2, generator=g)  # far from the box
    with torch.no_grad():
        net[1].bias.copy_(-net[1].weight @ x.mean(dim=0).flatten())
        z = net(x)
    y = z.argmax(dim=1)
    w = net[1].weight.detach()[0] - net[1].weight.detach()[1]
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    distance = (z[:, 0] - z[:, 1]).abs() / dual
    found = attack(net, x, y, FAB(steps=40, stop="min_norm"), Threat(norm, 12.0))
    assert found.success.all()
    ratio = norm_of(found.x_adv - x, norm=norm) / distance
    assert ratio.min() > 1 - 1e-3 and ratio.max() < 1.01


def test_min_norm_is_smaller_than_the_first_success(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat = Threat(norm, 1.0)
    first, least = (
        attack(net, x[3:], y[3:], FAB(steps=12, stop=stop), threat) for stop in ("first_success", "min_norm")
    )
    assert first.success.all() and least.success.all()
    far, near = (norm_of(found.x_adv - x[3:], norm=norm) for found in (first, least))
    assert (near <= far + 1e-6).all() and near.mean() < 0.95 * far.mean()
    assert first.passes["backward"] < 0.2 * least.passes["backward"]


def test_takes_two_forwards_and_one_backward_per_step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = attack(net, x[3:10], y[3:10], FAB(steps=6, restarts=9), Threat("linf", 1e-5))
    assert not found.success.any()
    assert found.backward_passes.tolist() == [6 * 4] * 7  # four wrong classes
    assert found.forward_passes.tolist() == [2 * 6 * 4 + 4 + 1] * 7  # each result once more, and the clean images


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_walks_alone_as_in_any_batch(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    x, y, fab = x[3:9], y[3:9], FAB(steps=7)
    target = second_best(net, x, y)
    together = begin(fab, x, y, target, norm=norm)
    alone = advance(fab, together, net, 14)
    for delay in (3, 4):  # joins between two steps, and while the others wait for a prediction
        early = advance(fab, select(together, torch.arange(3)), net, delay)
        mixed = concat([early, select(together, torch.arange(3, 6))])
        for _ in range(20):
            mixed = advance(fab, mixed, net, 1)
        assert fab.finished(mixed).all()
        torch.testing.assert_close(mixed.best, alone.best, rtol=0, atol=2e-5)
        torch.testing.assert_close(mixed.x_adv, alone.x_adv, rtol=0, atol=2e-5)


def test_a_row_that_waits_stays_where_it_is(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Also where it went back to a point that still fools the net."""
    fab, still = FAB(steps=5), torch.tensor([True, False, True, False])
    state = begin(fab, x[3:7], y[3:7], second_best(net, x[3:7], y[3:7]), norm="linf")
    state = replace(state, x_adv=(state.x + 0.1).clamp(0, 1), tested=still)
    assert not fab.ask(state).gradient
    fooled = torch.nn.functional.one_hot((y[3:7] + 1) % 5, 5).float()
    told = fab.tell(state, fooled, None)
    assert torch.equal(told.x_adv[still], state.x_adv[still]) and told.tested.all() and not told.step.any()
    torch.testing.assert_close(told.x_adv[~still] - told.x[~still], 0.9 * (state.x_adv - state.x)[~still])
    torch.testing.assert_close(told.distance, norm_of(state.x_adv - state.x, norm="linf"))
    assert torch.equal(fab.result(begin(fab, x, y, y, norm="linf")), x)


def test_batch_size_and_order_do_not_matter(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat, turned = Threat(norm, 0.02 if norm == "linf" else 0.1), torch.arange(len(x)).flip(0)
    whole = attack(net, x, y, FAB(steps=6, restarts=2), threat)
    small = attack(net, x[turned], y[turned], FAB(steps=6, restarts=2), threat, rows=turned, batch_size=7)
    near = whole.margin.abs() < 1e-4
    assert torch.equal(whole.success[~near], small.success.flip(0)[~near])
    assert 0.05 < float(whole.success.float().mean()) < 0.95


def test_given_targets_are_reached_from_several_places(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    targets = (y + 2) % 5
    fab = FAB(steps=20, restarts=3, stop="min_norm")
    found = attack(net, x, y, fab, Threat(norm, 2.0), targets=targets)
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(dim=1) == targets, found.success)
    assert found.success.float().mean() > 0.9
    state = begin(fab, x, y, targets, norm=norm, must_hit=True)
    length = norm_of(state.x_adv - x, norm=norm)
    assert (length <= 0.15 + 1e-6).all() and length.mean() > 0.1  # half of the budget, less what the box takes
    assert torch.equal(begin(fab, x, y, targets, norm=norm).x_adv, x)


def test_lead_is_against_the_label_or_against_all() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0]] * 3)
    label, target = torch.tensor([1, 1, 1]), torch.tensor([2, 2, 1])
    goal = Goal(label, target, torch.tensor([False, True, False]))
    assert target_lead(z, goal).tolist() == [1, -1, 2]


@pytest.mark.parametrize("norm", NORMS)
def test_a_net_without_gradients_breaks_nothing(norm: Norm) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    x = torch.rand(4, 3, 2, 2)
    found = attack(net, x, torch.zeros(4, dtype=torch.int64), FAB(steps=3), Threat(norm, 0.1))
    assert not found.success.any()
    torch.testing.assert_close(found.x_adv, x)
    assert found.zero_gradients.equal(found.gradients)


def test_what_it_gives_back_is_in_the_ball_even_if_nothing_was_found_there(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm
) -> None:
    found = attack(net, x[3:], y[3:], FAB(steps=5), Threat(norm, 1e-3))
    robust = ~found.success
    assert robust.any() and found.margin.isfinite().all()
    assert (norm_of(found.x_adv - x[3:], norm=norm) <= 1e-3 + 1e-6).all()
    assert (norm_of(found.x_adv - x[3:], norm=norm)[robust] > 5e-4).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps and restarts must be at least 1; got 0 and 9"),
        ({"beta": 1.0}, "beta in \\(0, 1\\); got 0.1, 1.05 and 1.0"),
        ({"eta": 0.9}, "eta at least 1"),
        ({"alpha_max": -0.1}, "alpha_max must be in"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        FAB(**wrong)  # type: ignore[arg-type]
