"""Balls and boxes: properties of every projection, step and start, by norm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hardy import seeding
from hardy.attacks.norms import norm_of, on_sphere, project, project_ball, random_start, steepest_step
from hardy.attacks.state import Ball
from hardy.attacks.verify import inside
from hardy.threats import Norm

NORMS = st.sampled_from(["linf", "l2", "l1"])
SEEDS = st.integers(0, 2**32)


@pytest.fixture(params=["linf", "l2", "l1"])
def norm(request: pytest.FixtureRequest) -> Norm:
    chosen: Norm = request.param
    return chosen


def draw(seed: int, scale: float = 1.0, n: int = 6) -> Tensor:
    return scale * torch.randn(n, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


def radii(seed: int, n: int = 6) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)) * 2


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


def test_norms_equal_the_definition() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert norm_of(delta, norm="linf").tolist() == [4, 0]
    assert norm_of(delta, norm="l2").tolist() == [5, 0]
    assert norm_of(delta, norm="l1").tolist() == [7, 0]


@given(NORMS, SEEDS, st.floats(0.01, 10))
@settings(max_examples=40, deadline=None)
def test_ball_projection_is_feasible_idempotent_and_leaves_the_inside_alone(
    norm: Norm, seed: int, scale: float
) -> None:
    delta, eps = draw(seed, scale), radii(seed)
    got = project_ball(delta, eps=eps, norm=norm)
    assert (norm_of(got, norm=norm) <= eps * (1 + 1e-6)).all()
    torch.testing.assert_close(project_ball(got, eps=eps, norm=norm), got, rtol=1e-6, atol=1e-7)
    inside = norm_of(delta, norm=norm) <= eps
    assert torch.equal(got[inside], delta[inside])


@given(NORMS, SEEDS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_point_of_the_ball_is_closer(norm: Norm, seed: int, other: int) -> None:
    delta, eps = draw(seed, 3.0), radii(seed)
    got = project_ball(delta, eps=eps, norm=norm)
    rival = project_ball(draw(other, 3.0), eps=eps, norm=norm)
    near, far = norm_of(delta - got, norm="l2"), norm_of(delta - rival, norm="l2")
    assert (near <= far + 1e-5).all()
    # and the obtuse-angle condition, which holds for the closest point of a convex set and for no other
    assert (((delta - got) * (rival - got)).flatten(1).sum(dim=1) <= 1e-4).all()


@given(NORMS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_projection_onto_ball_and_box_is_in_both(norm: Norm, seed: int) -> None:
    x = torch.rand(6, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    eps = radii(seed)
    got = project(x + draw(seed, 2.0), x=x, eps=eps, norm=norm)
    assert got.min() >= 0 and got.max() <= 1
    assert (norm_of(got - x, norm=norm) <= eps + 1e-6).all()
    torch.testing.assert_close(project(got, x=x, eps=eps, norm=norm), got, rtol=0, atol=1e-6)
    assert torch.equal(project(x, x=x, eps=eps, norm=norm), x)


def test_a_zero_radius_gives_zero(norm: Norm) -> None:
    assert not project_ball(draw(0), eps=torch.zeros(6), norm=norm).any()


@given(NORMS, SEEDS, SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_step_of_norm_one_rises_faster(norm: Norm, seed: int, other: int) -> None:
    gradient = draw(seed)
    step = steepest_step(gradient, norm=norm)
    torch.testing.assert_close(norm_of(step, norm=norm), torch.ones(6))
    rival = project_ball(draw(other), eps=torch.ones(6), norm=norm)
    rise = (gradient * step).flatten(1).sum(dim=1)
    assert (rise >= (gradient * rival).flatten(1).sum(dim=1) - 1e-4).all()
    dual: Norm = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]  # type: ignore[assignment]
    torch.testing.assert_close(rise, norm_of(gradient, norm=dual))


def test_zero_gradients_give_no_step_and_tiny_ones_a_full_step(norm: Norm) -> None:
    assert not steepest_step(torch.zeros(2, 1, 2, 2), norm=norm).any()
    tiny = steepest_step(torch.full((1, 1, 2, 2), 1e-30), norm=norm)
    torch.testing.assert_close(norm_of(tiny, norm=norm), torch.ones(1))


def test_starts_fill_the_ball_uniformly(norm: Norm) -> None:
    n, shape, eps = 2000, (1, 2, 2), 0.3
    delta = random_start(keys(n), 0, shape, eps=torch.full((n,), eps), norm=norm)
    length = norm_of(delta, norm=norm).double()
    assert (length <= eps * (1 + 1e-6)).all()
    # in d dimensions the norm of a uniform point has the distribution function (r / eps)^d, for every norm
    assert stats.kstest(((length / eps) ** math.prod(shape)).numpy(), "uniform").pvalue > 1e-3
    assert (delta.mean(dim=0).abs() < 4 * eps / n**0.5).all()


def test_starts_depend_on_the_key_alone(norm: Norm) -> None:
    eps, key = torch.full((9,), 0.1), keys(9)
    whole = random_start(key, 3, (1, 2, 2), eps=eps, norm=norm)
    order = torch.tensor([4, 0, 8])
    assert torch.equal(random_start(key[order], 3, (1, 2, 2), eps=eps[order], norm=norm), whole[order])


@pytest.mark.parametrize("counter", [0, torch.arange(5)])
def test_sphere_points_have_the_length_asked_for(counter: int | Tensor) -> None:
    delta = on_sphere(keys(5), counter, (2, 3, 3), eps=torch.linspace(0.1, 1, 5))
    torch.testing.assert_close(norm_of(delta, norm="l2"), torch.linspace(0.1, 1, 5))


def box(seed: int, *shape: int) -> Tensor:
    """Images with many values at the very border of the box."""
    return (1.5 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.25).clamp(0, 1)


@given(SEEDS, SEEDS, st.floats(0.01, 10), st.sampled_from(["linf", "l1"]))
@settings(max_examples=60, deadline=None)
def test_no_point_of_ball_and_box_is_closer(seed: int, other: int, scale: float, norm: Norm) -> None:
    x, eps = box(seed, 6, 2, 3, 4), radii(seed) * 3
    moved = x + draw(seed, scale)
    got = project(moved, x=x, eps=eps, norm=norm)
    rival = project(x + draw(other, scale), x=x, eps=eps, norm=norm)
    assert (norm_of(moved - got, norm="l2") <= norm_of(moved - rival, norm="l2") + 1e-5).all()
    assert (((moved - got) * (rival - got)).flatten(1).sum(dim=1) <= 1e-4 * max(scale, 1)).all()


def test_l1_in_the_box_spends_what_clamping_would_give_away() -> None:
    x = torch.tensor([1.0, 0.5, 0.5]).reshape(1, 1, 1, 3)
    moved, eps = x + torch.tensor([1.0, 0.4, 0.3]).reshape(1, 1, 1, 3), torch.tensor([0.5])
    got = project(moved, x=x, eps=eps, norm="l1")
    torch.testing.assert_close((got - x).flatten(), torch.tensor([0.0, 0.3, 0.2]))
    apart = (x + project_ball(moved - x, eps=eps, norm="l1")).clamp(0, 1)
    assert torch.equal(apart, x)


def test_l1_projection_equals_bisection() -> None:
    x, delta, eps = box(0, 50, 3, 8, 8), 0.3 * torch.randn(50, 3, 8, 8), torch.linspace(0.01, 40, 50)
    size, most = delta.abs().double(), torch.where(delta > 0, 1 - x, x).double()
    low, high = torch.zeros(50, 1, 1, 1, dtype=torch.float64), size.amax(dim=(1, 2, 3), keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        total = torch.minimum((size - middle).clamp(min=0), most).sum(dim=(1, 2, 3), keepdim=True)
        low, high = (
            torch.where(total > eps.view(-1, 1, 1, 1), middle, low),
            torch.where(total > eps.view(-1, 1, 1, 1), high, middle),
        )
    want = x + delta.sign() * torch.minimum((size - high).clamp(min=0), most)
    got = project(x + delta, x=x, eps=eps, norm="l1")
    torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-7)
    fits = torch.minimum(size, most).sum(dim=(1, 2, 3)) <= eps
    assert fits.any() and (~fits).any()
    torch.testing.assert_close(norm_of(got - x, norm="l1")[~fits], eps[~fits], rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [0.5, 12.0])
def test_many_small_changes_do_not_leave_the_l1_ball_by_rounding(eps: float) -> None:
    x, radius = torch.rand(20, 3, 32, 32), torch.full((20,), eps)
    for scale in (1e-3, 0.1, 1.0):
        got = project(x + scale * torch.randn(20, 3, 32, 32), x=x, eps=radius, norm="l1")
        assert (norm_of(got - x, norm="l1") <= eps * (1 + 1e-7)).all()


def test_l1_points_rounded_to_float32_count_as_inside() -> None:
    x, eps = torch.rand(200, 3, 32, 32), torch.full((200,), 1.0)
    delta = random_start(keys(200), 0, (3, 32, 32), eps=eps, norm="l1").double()
    on_border = (x.double() + delta / delta.abs().sum(dim=(1, 2, 3), keepdim=True)).clamp(0, 1).float()
    assert (norm_of(on_border - x, norm="l1") > 1 + 1e-6).any()  # so it matters
    assert inside(on_border, x, Ball("l1", eps)).all()
    assert not inside(x + 1.01 * (on_border - x), x, Ball("l1", eps)).any()


def test_sparse_steps_move_the_share_of_largest_values_by_the_same_amount() -> None:
    gradient = draw(3)
    step = steepest_step(gradient, norm="l1", share=torch.tensor([0.0, 0.01, 0.25, 0.5, 0.99, 1.0]))
    size, moved = gradient.flatten(1).abs(), step.flatten(1) != 0
    assert moved.sum(dim=1).tolist() == [1, 1, 6, 12, 24, 24]
    for row in range(6):
        assert size[row, moved[row]].min() >= size[row, ~moved[row]].amax() if (~moved[row]).any() else True
        assert step[row].abs().max() == step[row][step[row] != 0].abs().min()
    torch.testing.assert_close(norm_of(step, norm="l1"), torch.ones(6))
    assert ((step == 0) | (step.sign() == gradient.sign())).all()
    zeros = torch.zeros(6, 1, 2, 2)
    assert not steepest_step(zeros, norm="l1", share=torch.full((6,), 0.5)).any()


def test_l1_starts_have_the_right_spread_in_every_coordinate() -> None:
    n, shape = 4000, (1, 2, 3)
    delta = random_start(keys(n), 1, shape, eps=torch.ones(n), norm="l1").flatten(1).double()
    # of a uniform point of the simplex with its inside, one coordinate has the Beta(1, d) distribution; signs are fair
    assert stats.kstest(delta[:, 0].abs().numpy(), stats.beta(1, 6).cdf).pvalue > 1e-3
    assert ((delta > 0).double().mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / n**0.5
    assert torch.corrcoef(delta.T).fill_diagonal_(0).abs().max() < 4.5 / n**0.5
