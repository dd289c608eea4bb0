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
from hardy.threats import Norm

NORMS = st.sampled_from(["linf", "l2"])
SEEDS = st.integers(0, 2**32)


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
    dual = gradient.flatten(1).abs().sum(dim=1) if norm == "linf" else norm_of(gradient, norm="l2")
    torch.testing.assert_close(rise, dual)


def test_zero_gradients_give_no_step_and_tiny_ones_a_full_step(norm: Norm) -> None:
    assert not steepest_step(torch.zeros(2, 1, 2, 2), norm=norm).any()
    tiny = steepest_step(torch.full((1, 1, 2, 2), 1e-30), norm=norm)
    torch.testing.assert_close(norm_of(tiny, norm=norm), torch.ones(1))


def test_starts_fill_the_ball_uniformly(norm: Norm) -> None:
    n, shape, eps = 2000, (1, 2, 2), 0.3
    delta = random_start(keys(n), 0, shape, eps=torch.full((n,), eps), norm=norm)
    length = norm_of(delta, norm=norm).double()
    assert (length <= eps * (1 + 1e-6)).all()
    # in d dimensions the norm of a uniform point has the distribution function (r / eps)^d, for either norm
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
