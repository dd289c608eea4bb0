"""Square: the reference's patterns, sizes and query curve, a plain loop per image, and the linear optimum."""

import math
import types

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import _patches
from hardy.attacks.goal import Goal
from hardy.attacks.norms import norm_of, project
from hardy.attacks.run import AttackResult, run
from hardy.attacks.square import Square, SquareState
from hardy.attacks.state import Ball, concat, select
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat

FULL = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS = {"linf": 0.05, "l2": 0.5, "l1": 3.0}


def attack(net: nn.Module, x: Tensor, y: Tensor, square: Square, threat: Threat, **other: object) -> AttackResult:
    given = {"targets": None, "rows": None, "seed": 0, "batch_size": 64, "sources": None, "stop": None}
    return run(net, x, y, square, threat=threat, skip_wrong=True, on_progress=None, **(given | other))  # type: ignore[arg-type]


def begin(square: Square, x: Tensor, *, norm: Norm, must_hit: bool = False) -> SquareState:
    zeros = torch.zeros(len(x), dtype=torch.int64)
    goal = Goal(zeros, zeros + must_hit, (zeros + must_hit).bool())
    key = seeding.keys(seeding.root(0, "test"), torch.arange(len(x)))
    return square.start(x, goal, Ball(norm, torch.full((len(x),), EPS[norm])), key)


def oracle(net: nn.Module, norm: Norm, **settings: object) -> types.SimpleNamespace:
    square = pytest.importorskip("pyautoattack.square")
    made: types.SimpleNamespace = square.SquareAttack(net, norm=FULL[norm], eps=EPS[norm], device="cpu", **settings)
    return made


@pytest.mark.parametrize("rescale", [False, True])
def test_squares_shrink_as_the_reference_says(net: nn.Module, rescale: bool) -> None:
    reference = oracle(net, "linf", n_queries=5000, resc_schedule=rescale)
    steps = torch.arange(5000)
    got = 0.8 / 2.0 ** _patches.stage(steps * 10000 // 5000 if rescale else steps)
    assert got.tolist() == pytest.approx([reference.p_selection(i) for i in range(5000)])


def test_sides_are_those_of_the_reference() -> None:
    assert _patches.sides(32, 32, p_init=0.8, norm="linf") == (29, 20, 14, 10, 7, 5, 4, 3, 2, 1)
    assert _patches.sides(32, 32, p_init=0.8, norm="l2") == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert _patches.sides(4, 9, p_init=1.0, norm="linf")[0] == 4
    assert _patches.sides(2, 2, p_init=0.1, norm="l1") == (2,) * 10


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_patterns_are_those_of_the_reference(net: nn.Module, norm: Norm) -> None:
    reference, sizes = oracle(net, norm), (1, 2, 3, 5, 6, 21, 29)
    table = _patches.pattern_table(sizes, norm, torch.device("cpu"))
    for row, size in zip(table, sizes, strict=True):
        seen = {0, 1}
        with torch.random.fork_rng():
            torch.manual_seed(size)
            for _ in range(12):
                want = reference.eta(size)
                close = [i for i in (0, 1) if torch.allclose(row[i, :size, :size], want, rtol=0, atol=1e-6)]
                assert close
                seen -= set(close)
        assert not seen and not row[:, size:].any() and not row[:, :, size:].any()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 6, 6), (1, 3, 4), (1, 14, 11)])
def test_tiles_are_patterns_upright_or_lying(norm: Norm, shape: tuple[int, int, int]) -> None:
    side, margin, rows, columns = _patches.tile_grid(*shape[1:])
    u = seeding.uniform(torch.arange(5), 0, (rows * columns, 1 + shape[0]))
    got = _patches.tiles(u, shape, norm)
    assert got.shape == (5, *shape) and margin + rows * side <= shape[1] and margin + columns * side <= shape[2]
    upright, lying = _patches.pattern_table((side,), norm, torch.device("cpu"))[0]
    tile = got[:, :, margin : margin + side, margin : margin + side]
    for i in range(5):
        for c in range(shape[0]):
            assert any(torch.equal(tile[i, c], s * p) for s in (-1, 1) for p in (upright, lying))
    assert got.abs().sum(dim=(2, 3)).allclose(got.abs().sum(dim=(2, 3))[:1, :1], rtol=1e-5)
    if side > 1:
        assert not torch.equal(got[0], got[1])


def test_linf_moves_one_square_to_the_sides_of_the_ball() -> None:
    square, x = Square(queries=3000), torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    state = begin(square, x, norm="linf")
    stripes = state.proposal
    assert ((stripes - x).abs() > 0.049).any(dim=2).all()
    low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    sizes = _patches.sides(9, 9, p_init=0.8, norm="linf")
    for step in range(60):
        state = square.tell(state, -torch.full((40, 2), float(step)) * torch.tensor([1, 0]), None)  # always better
        proposal, here = state.proposal, state.x_adv
        assert ((proposal - low).abs().minimum((proposal - high).abs()) < 1e-6).all()
        changed = (proposal != here).any(dim=1)
        for row in changed[:5]:
            if row.any():
                down, right = row.any(dim=1).nonzero(), row.any(dim=0).nonzero()
                side = sizes[int(_patches.stage(torch.tensor([step])))]
                assert down.max() - down.min() < side and right.max() - right.min() < side


def test_windows_are_uniform_over_all_places() -> None:
    at = seeding.uniform(torch.arange(6000), 0, ())
    begin_at = -_patches.window(at, torch.full((6000,), 3), 9)[:, 0]
    counts = torch.bincount(begin_at, minlength=7)
    assert len(counts) == 7 and stats.chisquare(counts.numpy()).pvalue > 1e-4
    full = _patches.window(at, torch.full((6000,), 9), 9)
    assert torch.equal(full, torch.arange(9).expand(6000, 9))


@pytest.mark.parametrize("norm", NORMS)
def test_proposals_equal_a_plain_loop(norm: Norm) -> None:
    """One image at a time, with slices, as the authors' code has it."""
    square, x = Square(queries=500), torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    state = begin(square, x, norm=norm)
    for query in range(1, 70):
        state = square.tell(state, -torch.full((6, 2), float(query)) * torch.tensor([1, 0]), None)
        if query not in {1, 2, 11, 30, 69}:
            continue
        u = seeding.uniform(seeding.fold(state.key, query), 0, (8,)).double()
        for i in range(6):
            want = plain_proposal(x[i].double(), state.x_adv[i].double(), u[i], query - 1, norm)
            torch.testing.assert_close(state.proposal[i].double(), want, rtol=0, atol=1e-6)


def plain_proposal(x: Tensor, x_adv: Tensor, u: Tensor, step: int, norm: Norm) -> Tensor:
    eps, sign = EPS[norm], torch.where(u[5:] < 0.5, -1.0, 1.0)[:, None, None].double()
    level = [step > t for t in _patches.STAGES].count(True)
    s = _patches.sides(16, 16, p_init=0.8, norm=norm)[level]
    a, b, a2, b2 = (min(int(v * (16 - s + 1)), 16 - s) for v in u[:4].tolist())
    if norm == "linf":
        out = x_adv.clone()
        out[:, a : a + s, b : b + s] = (x + sign * eps).clamp(0, 1)[:, a : a + s, b : b + s]
        return out
    size = torch.square if norm == "l2" else torch.abs
    delta = x_adv - x
    both = torch.zeros(16, 16, dtype=torch.float64)
    both[a : a + s, b : b + s] = both[a2 : a2 + s, b2 : b2 + s] = 1
    length = (
        (lambda z: size(z).sum(dim=(1, 2), keepdim=True).sqrt())
        if norm == "l2"
        else (lambda z: size(z).sum(dim=(1, 2), keepdim=True))
    )
    total, windows, old = size(delta).sum(), length(delta * both), delta[:, a : a + s, b : b + s]
    table = _patches.pattern_table((s,), norm, torch.device("cpu"))
    new = table[0, int(u[4] > 0.5)].double() * sign + old / (1e-12 + length(old))
    new = new / (1e-12 + length(new))
    if norm == "l2":
        new = new * ((max(eps**2 - float(total), 0) / 3 + windows**2).sqrt())
    else:
        new = new * (max(eps - float(total), 0) / 3 + windows) * 3
    delta[:, a2 : a2 + s, b2 : b2 + s] = 0
    delta[:, a : a + s, b : b + s] = new
    if norm == "l1":
        return project((x + delta)[None].float(), x=x[None].float(), eps=torch.tensor([eps]), norm="l1")[0].double()
    return (x + delta / delta.norm() * eps).clamp(0, 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("must_hit", [False, True])
def test_best_loss_only_falls_and_points_stay_inside(net: nn.Module, x: Tensor, norm: Norm, must_hit: bool) -> None:
    square = Square(queries=80)
    state = begin(square, x, norm=norm, must_hit=must_hit)
    before = state.loss
    while not square.finished(state).all():
        query = square.ask(state)
        assert not query.gradient and query.x.min() >= 0 and query.x.max() <= 1
        assert (norm_of(query.x - x, norm=norm) <= EPS[norm] * (1 + 1e-6)).all()
        with torch.no_grad():
            state = square.tell(state, net(query.x), None)
        assert ((state.loss <= before) | (state.margin <= 0)).all()  # the first success is kept whatever its loss
        before = state.loss
    assert state.query.tolist() == [81] * len(x)
    with torch.no_grad():
        logits = net(square.result(state))
    want = torch.nn.functional.cross_entropy(logits, state.goal.target, reduction="none")
    torch.testing.assert_close(state.loss, want if must_hit else state.goal.margin(logits), rtol=0, atol=1e-5)


def test_the_first_success_is_kept_whatever_its_loss() -> None:
    square, x = Square(), torch.rand(3, 1, 5, 5)
    logits = torch.tensor([[0.0, 9.0, 9.1], [0.0, 1.0, -9.0], [0.0, 0.5, -9.0]])  # loss of class 1: 0.7, 0.3, 0.5
    state = begin(square, x, norm="linf", must_hit=True)
    for query, kept in enumerate((True, True, False)):
        told = square.tell(state, logits[query].expand(3, 3), None)
        assert torch.equal(told.x_adv, state.proposal if kept else state.x_adv)
        state = told
    worse = torch.tensor([[0.0, 0.1, 0.09]])  # loss 1.06, though class 1 is predicted
    state = square.tell(begin(square, x, norm="linf", must_hit=True), logits[:1].expand(3, 3), None)
    assert torch.equal(square.tell(state, worse.expand(3, 3), None).x_adv, state.proposal)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_searches_alone_as_in_any_batch(net: nn.Module, x: Tensor, norm: Norm) -> None:
    square, x = Square(queries=60), x[:6]

    def advance(state: SquareState, rounds: int) -> SquareState:
        for _ in range(rounds):
            # per row, so that the net's own rounding does not depend on the batch
            with torch.no_grad():
                logits = torch.cat([net(row[None]) for row in square.ask(state).x])
            state = square.tell(state, logits, None)
        return state

    together = begin(square, x, norm=norm)
    alone = torch.cat([advance(select(together, torch.tensor([i])), 25).x_adv for i in range(6)])
    early = advance(select(together, torch.tensor([4, 1])), 14)  # crosses a change of size at different times
    mixed = advance(concat([early, select(together, torch.tensor([0]))]), 11)
    last = advance(select(mixed, torch.tensor([2])), 14)
    got = torch.cat([mixed.x_adv[:2], last.x_adv])
    torch.testing.assert_close(got, alone[torch.tensor([4, 1, 0])], rtol=0, atol=1e-6)


def test_reaches_the_optimum_of_a_linear_net() -> None:
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=g)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 16, generator=g))
        net[1].bias.copy_(torch.tensor([30.0, 0.0]))  # never fooled
        clean = net(x)[:, 0] - net(x)[:, 1]
        w = net[1].weight[0] - net[1].weight[1]
    y = torch.zeros(20, dtype=torch.int64)
    found = attack(net, x, y, Square(queries=300, rescale=True), Threat("linf", 0.1))
    gained = (clean - found.margin) / (0.1 * w.abs().sum())
    assert gained.max() <= 1 + 1e-4 and gained.median() > 0.999
    found = attack(net, x, y, Square(queries=50), Threat("l2", 0.2))  # whose patterns cannot build every direction
    gained = (clean - found.margin) / (0.2 * w.norm())
    assert gained.max() <= 1 + 1e-4 and gained.median() > 0.4


def test_counts_one_query_per_proposal_and_one_for_the_start(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = attack(net, x[3:8], y[3:8], Square(queries=20), Threat("linf", 1e-5))
    assert not found.success.any()
    assert found.forward_passes.tolist() == [20 + 1 + 2] * 5  # and the clean images and the results
    assert not found.backward_passes.any() and not found.gradients.any()


def test_batch_size_and_order_do_not_matter(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat, turned = Threat(norm, EPS[norm] / 2), torch.arange(len(x)).flip(0)
    whole = attack(net, x, y, Square(queries=25), threat)
    small = attack(net, x[turned], y[turned], Square(queries=25), threat, rows=turned, batch_size=7)
    near = whole.margin.abs() < 1e-4
    assert torch.equal(whole.success[~near], small.success.flip(0)[~near])
    assert 0.05 < float(whole.success.float().mean()) < 0.95


def test_targets_are_hit(net: nn.Module, x: Tensor, y: Tensor) -> None:
    targets = (y + 2) % 5
    found = attack(net, x, y, Square(queries=150), Threat("linf", 0.3), targets=targets)
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(dim=1) == targets, found.success)
    assert found.success.float().mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_needs_as_many_queries_as_the_reference(norm: Norm) -> None:
    """Over several seeds, the share of images still robust after each number of queries agrees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2), nn.ReLU(), nn.Flatten()
        )
        net.append(nn.Linear(12 * 49, 5)).eval()
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = net(x).argmax(dim=1)
    queries, seeds = 150, 4 if norm == "l1" else 8
    scale = {"linf": 0.02, "l2": 0.5, "l1": 12.0}[norm]
    reference = oracle(net, norm, n_queries=queries, resc_schedule=False)
    reference.eps = scale
    reference.init_hyperparam(x)
    theirs, mine = [], []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            used, found = reference.attack_single_run(x, y)
        with torch.no_grad():
            broken = net(found).argmax(dim=1) != y
        theirs.append(torch.where(broken, used, queries + 2))
        got = attack(net, x, y, Square(queries=queries), Threat(norm, scale), seed=seed)
        mine.append(torch.where(got.success, got.forward_passes - 2, queries + 2))
    a, b = torch.stack(theirs).float(), torch.stack(mine).float()
    for limit in (1, 3, 10, 30, 100, queries + 1):
        fa, fb = (a > limit).float().mean(dim=1), (b > limit).float().mean(dim=1)
        error = math.sqrt(float(fa.var() + fb.var()) / seeds) + 0.5 / a.numel() ** 0.5
        assert abs(float(fa.mean() - fb.mean())) < 4 * error
    assert 0.05 < float((b > queries + 1).float().mean()) < 0.95


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"queries": 0}, "queries and restarts must be at least 1; got 0 and 1"),
        ({"p_init": 1.5}, "p_init must be above 0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Square(**wrong)  # type: ignore[arg-type]
