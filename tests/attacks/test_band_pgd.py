"""Band PGD: never outside band, ball and box; near the optimum where that is known; blind where the net is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from hardy.attacks import PGD, BandPGD, Goal, attack
from hardy.attacks.band_pgd import LEAST_SHARE, closest
from hardy.attacks.bands import Band, make_band
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.seeding import keys, normal, root
from hardy.threats import Norm, Threat


class Linear(nn.Module):
    """Class 1 where the slope rises above ``bias`` over ``centre``, class 0 elsewhere."""

    def __init__(self, slope: Tensor, bias: float, centre: float | Tensor = 0.5) -> None:
        super().__init__()
        self.slope, self.bias, self.centre = slope, bias, centre

    def forward(self, x: Tensor) -> Tensor:
        rise = ((x - self.centre) * self.slope).sum(dim=(1, 2, 3))
        return torch.stack([torch.full_like(rise, self.bias), rise], dim=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(band: Band) -> np.ndarray:
    """Give the band's waves as columns, (h * w, size)."""
    terms = band.mask.flatten().nonzero()[:, 0]
    units = torch.zeros(len(terms), *band.mask.shape)
    units.view(len(terms), -1)[torch.arange(len(terms)), terms] = 1
    waves = band.rows.T @ units @ band.columns
    found: np.ndarray = waves.flatten(1).T.double().numpy()
    return found


def highest_rise(slope: Tensor, x: Tensor, *, band: Band, eps: float) -> float:
    """Solve the linear program: the highest rise of one channel inside band, linf ball and box."""
    waves = basis(band)
    low, high = ((-x).clamp(min=-eps).flatten().numpy(), (1 - x).clamp(max=eps).flatten().numpy())
    found = linprog(
        -slope.flatten().double().numpy() @ waves,
        A_ub=np.concatenate([waves, -waves]),
        b_ub=np.concatenate([high, -low]),
        bounds=(None, None),
    )
    assert found.status == 0
    return -float(found.fun)


@given(
    norm=st.sampled_from(["linf", "l2"]),
    size=st.sampled_from([(1, 8, 8), (3, 6, 10), (3, 16, 16)]),
    band=st.integers(0, 5),
    eps=st.floats(0.002, 0.6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_every_step_is_in_band_and_ball_and_box(
    norm: Norm, size: tuple[int, int, int], band: int, eps: float, seed: int
) -> None:
    made, n = BandPGD(band=band, bands=6, steps=4), 4
    g = torch.Generator().manual_seed(seed)
    black = torch.tensor([0.0, 0.02, 0.1, 0.6]).reshape(4, 1, 1, 1)  # share of pixels that are black or white
    x = torch.rand(n, *size, generator=g)
    x = torch.where(torch.rand(x.shape, generator=g) < black, x.round(), x)
    goal = Goal(torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool())
    where = make_band(band, 6, height=size[1], width=size[2])
    state = made.start(x, goal, Ball(norm, torch.full((n,), eps)), keys(root(seed, "test"), torch.arange(n)))
    while True:
        inside = where.project(state.delta)
        assert (inside - state.delta).abs().max() <= 1e-5 * state.delta.abs().max() + 1e-12
        assert (norm_of(state.delta, norm=norm) <= eps * (1 + 1e-6)).all()
        x_adv = made.ask(state).x
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert (norm_of(x_adv - x, norm=norm) <= eps + 1e-6).all()
        moved = (x_adv != x).flatten(1).any(dim=1)
        torch.testing.assert_close(x_adv[moved], (x + state.delta).clamp(0, 1)[moved], rtol=0, atol=0)
        assert (where.share(x_adv - x) >= LEAST_SHARE - 1e-6).all()
        if made.finished(state).all():
            break
        state = made.tell(state, torch.zeros(n, 2), torch.randn(n, *size, generator=g))
    assert state.step.tolist() == [4] * n


@pytest.mark.parametrize("band", [0, 3, 7])
def test_l2_finds_the_optimum_of_a_linear_net(band: int) -> None:
    slope, eps, x = noise(3, 12, 12), 0.7, torch.full((4, 3, 12, 12), 0.5)
    inside = make_band(band, 8, height=12, width=12).project(slope[None])
    best = eps * float(inside.norm())  # along the slope inside the band
    y = torch.zeros(4).long()
    for bias, broken in ((0.98 * best, True), (1.001 * best, False)):
        found = attack(
            Linear(slope, bias).eval(), x, y, BandPGD(band=band, steps=10), threat=Threat("l2", eps), stop="never"
        )
        assert found.success.tolist() == [broken] * 4
        torch.testing.assert_close(
            found.x_adv - x, (eps * inside / inside.norm()).expand(4, -1, -1, -1), rtol=0, atol=0.02
        )


@pytest.mark.parametrize(("side", "band"), [(8, 0), (8, 4), (16, 2), (16, 7)])
def test_linf_comes_close_to_a_linear_program(side: int, band: int) -> None:
    slope, eps, where = noise(1, side, side), 0.1, make_band(band, 8, height=side, width=side)
    x = torch.full((3, 1, side, side), 0.5)
    x[1] = torch.rand(side, side, generator=torch.Generator().manual_seed(1))
    x[2] = 0.3 * x[1].clamp(min=0.03)  # the box binds below
    best = torch.tensor([highest_rise(slope, each, band=where, eps=eps) for each in x])
    net = Linear(slope, 8.0, centre=0.5).eval()
    found = attack(
        net, x, torch.zeros(3).long(), BandPGD(band=band, steps=10), threat=Threat("linf", eps), stop="never"
    )
    rise = ((found.x_adv - x) * slope).sum(dim=(1, 2, 3))
    assert (rise >= 0.88 * best).all()
    assert (rise <= 1.06 * best).all()  # what the box cuts off leaves the band, which helps a little
    assert rise[0] <= best[0] + 1e-4


def test_filtering_and_shrinking_leaves_a_third_of_the_rise_on_the_table() -> None:
    slope, eps, where = noise(1, 16, 16), 0.1, make_band(3, 8, height=16, width=16)
    x = torch.full((1, 1, 16, 16), 0.5)
    best, delta = highest_rise(slope, x[0], band=where, eps=eps), torch.zeros_like(x)
    for _ in range(10):  # the simpler scheme
        delta = where.project(delta + 0.25 * eps * where.project(slope[None]).sign())
        delta *= min(1, eps / float(delta.abs().max()))
    assert float((delta * slope).sum()) < 0.75 * best
    found = attack(
        Linear(slope, 0.9 * best).eval(), x, torch.tensor([0]), BandPGD(band=3, steps=10), threat=Threat("linf", eps)
    )
    assert found.success.all()


def test_closest_for_linf_obeys_the_variational_inequality() -> None:
    """No feasible change lies further along ``delta - found`` than ``found``; the furthest is a linear program."""
    where, eps = make_band(2, 5, height=8, width=8), 0.1
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    delta = 0.3 * noise(1, 1, 8, 8)
    found = closest(delta, x=x, band=where, eps=torch.tensor([eps]), norm="linf", rounds=3000)
    away = delta - found
    furthest = highest_rise(away, x, band=where, eps=eps)
    assert furthest - float((away * found).sum()) < 1e-3 * furthest


@pytest.mark.parametrize("rounds", [10, 1000])
def test_closest_is_where_plain_alternating_projections_end(norm: Norm, rounds: int) -> None:
    """Dykstra's algorithm, line by line in float64."""
    eps, waves = (0.1 if norm == "linf" else 0.5), basis(make_band(1, 5, height=8, width=8))
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4
    delta = 0.2 * noise(1, 1, 8, 8)
    flat = x.flatten().double().numpy()
    low, high = (np.maximum(-flat, -eps), np.minimum(1 - flat, eps)) if norm == "linf" else (-flat, 1 - flat)
    z, p, q = delta.flatten().double().numpy(), 0.0, 0.0
    for _ in range(20000):
        a = waves @ (waves.T @ (z + p))
        a = a * min(1, eps / np.linalg.norm(a)) if norm == "l2" else a
        p = z + p - a
        z = np.clip(a + q, low, high)
        q = a + q - z
    got = closest(
        delta, x=x, band=make_band(1, 5, height=8, width=8), eps=torch.tensor([eps]), norm=norm, rounds=rounds
    )
    assert norm == "linf" or (np.linalg.norm(z) > 0.499 and (np.abs(z - low) < 1e-9).any())  # ball and box bind
    error = np.linalg.norm(got.flatten().numpy() - z) / np.linalg.norm(z)
    assert error < (0.1 if rounds == 10 else 3e-3)


@given(eps=st.floats(0.01, 1), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_closest_leaves_alone_what_is_inside(eps: float, seed: int) -> None:
    where, radius = make_band(1, 4, height=6, width=9), torch.tensor([eps, eps])
    x = 0.5 + 0.2 * (torch.rand(2, 2, 6, 9, generator=torch.Generator().manual_seed(seed)) - 0.5)
    for norm in ("linf", "l2"):
        inside = where.project(noise(2, 2, 6, 9, seed=seed))
        delta = inside / norm_of(inside, norm=norm)[:, None, None, None] * 0.99 * min(eps, 0.35)
        got = closest(delta, x=x, band=where, eps=radius, norm=norm)
        torch.testing.assert_close(got, delta, rtol=0, atol=1e-6)


def test_one_band_is_pgd(net: nn.Module, x: Tensor, y: Tensor) -> None:
    where, eps, delta = make_band(0, 1, height=6, width=6), torch.full((50,), 0.1), 0.2 * noise(50, 3, 6, 6)
    got = closest(delta, x=x, band=where, eps=eps, norm="linf")
    torch.testing.assert_close(x + got, (x + delta.clamp(-0.1, 0.1)).clamp(0, 1), rtol=0, atol=1e-5)
    threat = Threat("linf", 0.03)
    whole, pgd = (attack(net, x, y, made, threat=threat, stop="never") for made in (BandPGD(bands=1), PGD()))
    assert (whole.success == pgd.success).float().mean() > 0.95
    half = attack(net, x, y, BandPGD(bands=2), threat=threat, stop="never")
    assert half.success.sum() < whole.success.sum()


def test_a_net_falls_only_where_it_reads(norm: Norm) -> None:
    """The slope is made of one band; changes of every other band do not exist for this net, whatever their size."""
    slope = make_band(1, 4, height=8, width=8).project(noise(1, 3, 8, 8))[0]
    x = 0.3 + 0.4 * torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = Linear(slope, 2.0).eval()
    y = net(x).argmax(dim=1)
    for band in range(4):
        found = attack(net, x, y, BandPGD(band=band, bands=4), threat=Threat(norm, {"linf": 0.25, "l2": 3.0}[norm]))
        assert found.success.float().mean() == (band == 1), band


def test_what_may_only_grow_cannot_swing(norm: Norm) -> None:
    x = torch.zeros(2, 1, 8, 8)
    x[0, 0, :2] = 0.6  # a quarter of it is not black
    net = Linear(noise(1, 8, 8), 0.01, centre=x[:1]).eval()
    y = net(x).argmax(dim=1)
    high = attack(net, x, y, BandPGD(band=5), threat=Threat(norm, 0.5), stop="never")
    assert not high.success.any() and torch.equal(high.x_adv, x)
    low = attack(
        Linear(torch.ones(1, 8, 8), 3.0, centre=x[:1]).eval(), x[:1], y[:1], BandPGD(), threat=Threat(norm, 0.5)
    )
    assert low.success.all()  # all pixels may grow together


def test_no_image_depends_on_the_others(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    threat, made = Threat(norm, 0.05 if norm == "linf" else 0.4), BandPGD(band=1, bands=4, steps=6, restarts=2)
    whole = attack(net, x, y, made, threat=threat, stop="never")
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    mixed = attack(net, x[order], y[order], made, threat=threat, rows=order, batch_size=7, stop="never")
    alone = attack(net, x[9:10], y[9:10], made, threat=threat, rows=torch.tensor([9]), stop="never")
    torch.testing.assert_close(mixed.x_adv, whole.x_adv[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(alone.x_adv, whole.x_adv[9:10], rtol=0, atol=1e-4)
    assert torch.equal(mixed.success, whole.success[order]) and 0 < whole.success.sum() < 50
    assert whole.backward_passes[~whole.success].tolist() == [12] * int((~whole.success).sum())


def test_restarts_differ_and_add_successes(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("linf", 0.03)
    one, many = (attack(net, x, y, BandPGD(bands=3, steps=2, restarts=r), threat=threat) for r in (1, 8))
    assert (many.success | ~one.success).all() and many.success.sum() > one.success.sum()


def test_draws_of_a_random_net_are_averaged(x: Tensor) -> None:
    n, shape = len(x), x.shape[1:]
    goal = Goal(torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool())
    ball, key = Ball("linf", torch.full((n,), 0.1)), keys(root(0, "test"), torch.arange(n))
    first, second = (normal(key, counter, shape) for counter in (5, 6))
    twice, once = BandPGD(bands=3, eot=2), BandPGD(bands=3)
    state = twice.start(x, goal, ball, key)
    query = twice.ask(state)
    assert torch.equal(query.x[:n], query.x[n:]) and query.row.tolist() == [*range(n), *range(n)]
    got = twice.tell(state, torch.zeros(2 * n, 2), torch.cat([first, second]))
    want = once.tell(once.start(x, goal, ball, key), torch.zeros(n, 2), (first + second) / 2)
    torch.testing.assert_close(got.x_adv, want.x_adv, rtol=0, atol=1e-6)


def test_gradients_of_any_size_give_the_same_step(x: Tensor) -> None:
    n = len(x)
    goal = Goal(torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool())
    made, key = BandPGD(band=1, bands=3), keys(root(0, "test"), torch.arange(n))
    for norm in made.norms:
        state = made.start(x, goal, Ball(norm, torch.full((n,), 0.1)), key)
        slope = noise(*x.shape)
        large, tiny = (made.tell(state, torch.zeros(n, 2), slope * size) for size in (1e20, 1e-30))
        torch.testing.assert_close(large.delta, tiny.delta, rtol=0, atol=1e-4)
        still = made.tell(state, torch.zeros(n, 2), torch.zeros_like(x))
        torch.testing.assert_close(still.delta, state.delta, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"eot": 0}, "eot must be at least 1"),
        ({"bands": 0}, "bands must be at least 1"),
        ({"band": 8}, "got band 8 of 8"),
        ({"band": -1}, "got band -1 of 8"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BandPGD(**wrong)  # type: ignore[arg-type]


def test_more_bands_than_pixels_are_an_error(net: nn.Module, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ParameterError, match="at most the number of pixels, 36 of 6x6 images; got 40"):
        attack(net, x, y, BandPGD(bands=40), threat=Threat("linf", 0.1))
    with pytest.raises(ParameterError, match="norm must be one of linf, l2; got 'l1'"):
        attack(net, x, y, BandPGD(), threat=Threat("l1", 1.0))
