"""The step of FAB: feasible, optimal by linear and quadratic programs, equal to the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from hardy.attacks._hyperplane import to_hyperplane
from hardy.attacks.norms import norm_of
from hardy.threats import Norm

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def problem(seed: int, n: int, d: int, *, reach: float = 0.3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Random images (a fifth of the pixels at 0 or 1), normals (some zeros) and values (some out of reach)."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.rand(n, 1, 1, d, generator=g, dtype=dtype), torch.randn(n, 1, 1, d, generator=g, dtype=dtype)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.2, x.round(), x)
    w = torch.where(torch.rand(w.shape, generator=g) < 0.1, 0, w * 10 ** (4 * torch.rand(n, 1, 1, 1, generator=g) - 2))
    value = reach * w.flatten(1).abs().sum(dim=1) * torch.randn(n, generator=g, dtype=dtype)
    return x, w, value


@given(st.sampled_from(NORMS), st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_lands_on_the_plane_or_in_the_nearest_corner(norm: Norm, seed: int, d: int) -> None:
    x, w, value = problem(seed, 5, d, dtype=torch.float32)
    moved = x + to_hyperplane(x, normal=w, value=value, norm=norm)
    assert moved.min() >= -1e-6 and moved.max() <= 1 + 1e-6
    left = value + (w * (moved - x)).flatten(1).sum(dim=1)
    room = torch.where((w > 0) == (value >= 0)[:, None, None, None], x, 1 - x)
    reach = (w.abs() * room).flatten(1).sum(dim=1)
    want = (value.abs() - reach).clamp(min=0) * torch.where(value < 0, -1, 1)
    assert ((left - want).abs() <= 3e-6 * (value.abs() + reach) + 1e-30).all()
    assert torch.equal(moved[w == 0], x[w == 0])


@pytest.mark.parametrize("norm", NORMS)
def test_no_program_finds_a_smaller_change(norm: Norm) -> None:
    x, w, value = problem(3, 25, 7, reach=0.3)
    size = norm_of(to_hyperplane(x, normal=w, value=value, norm=norm), norm=norm)
    solved = 0
    for i in range(len(x)):
        best = smallest(x[i].flatten().numpy(), w[i].flatten().numpy(), float(value[i]), norm)
        if best is not None:
            assert float(size[i]) == pytest.approx(best, rel=1e-5, abs=1e-9)
            solved += 1
    assert 15 < solved < 25  # some planes are out of reach


def smallest(x: np.ndarray, w: np.ndarray, value: float, norm: Norm) -> float | None:
    """Solve the program in the change (up to its signs, which are known)."""
    sign = -np.sign(w * value)
    room = np.where(sign > 0, 1 - x, x) * (w != 0)
    if np.abs(w) @ room < abs(value):
        return None
    scale = np.abs(w).max()
    w, value, d = np.abs(w) / scale, abs(value) / scale, len(w)
    if norm == "l2":
        # the length of every value is min(t * w, room); a scalar root finder knows nothing of Newton's method
        t = optimize.brentq(lambda t: w @ np.minimum(t * w, room) - value, 0, 1e12, xtol=1e-14, rtol=1e-14)
        return float(np.linalg.norm(np.minimum(t * w, room)))
    if norm == "l1":
        found = optimize.linprog(np.ones(d), A_eq=[w], b_eq=[value], bounds=list(zip(np.zeros(d), room, strict=True)))
    else:
        rows = np.c_[np.eye(d), -np.ones(d)]
        found = optimize.linprog(
            np.r_[np.zeros(d), 1],
            A_ub=rows,
            b_ub=np.zeros(d),
            A_eq=[np.r_[w, 0]],
            b_eq=[value],
            bounds=[*zip(np.zeros(d), room, strict=True), (0, None)],
        )
    assert found.success
    return float(found.fun)


def test_l2_equals_a_general_solver() -> None:
    x, w, value = problem(5, 8, 5, reach=0.1)
    change = to_hyperplane(x, normal=w, value=value, norm="l2")
    for i in range(len(x)):
        xi, wi, v = x[i].flatten().numpy(), w[i].flatten().numpy(), float(value[i])
        scale = np.abs(wi).max()
        found = optimize.minimize(
            lambda z: z @ z,
            np.zeros(5),
            jac=lambda z: 2 * z,
            method="SLSQP",
            bounds=list(zip(-xi, 1 - xi, strict=True)),
            constraints={"type": "eq", "fun": lambda z, wi=wi, v=v, s=scale: (v + wi @ z) / s},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        if found.success:
            np.testing.assert_allclose(change[i].flatten().numpy(), found.x, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "d"), [(50, 4), (40, 27), (30, 300)])
def test_equals_the_reference(norm: Norm, n: int, d: int) -> None:
    reference = pytest.importorskip("pyautoattack.fab_projections")
    x, w, value = problem(d, n, d)
    w = torch.where(w == 0, 1e-3, w)  # the reference divides by it
    b = (w * x).flatten(1).sum(dim=1) - value
    want = getattr(reference, f"projection_{norm}")(x.flatten(1), w.flatten(1), b)
    got = to_hyperplane(x, normal=w, value=value, norm=norm).flatten(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_change(norm: Norm) -> None:
    x = torch.rand(3, 1, 2, 2)
    for scale in (0.0, 1e-30):
        change = to_hyperplane(x, normal=torch.full_like(x, scale), value=torch.tensor([1.0, -1.0, 0.0]), norm=norm)
        assert change.isfinite().all()
        moved = x + change
        assert torch.equal(moved[2], x[2])
        if scale == 0:
            assert torch.equal(moved, x)
        else:
            torch.testing.assert_close(moved[:2], torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]))
