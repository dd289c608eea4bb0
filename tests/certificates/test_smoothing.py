"""Randomised smoothing on classifiers whose smoothed radius is known, and against loops."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hardy import seeding
from hardy.certificates import ABSTAIN, certified_radius, certify, largest_radius, predict, votes
from hardy.errors import ParameterError, ShapeError

SHAPE = (1, 3, 3)


class Plane(nn.Module):
    """Two classes on the two sides of a plane: the smoothed classifier is the net, its radius the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = torch.randn(9, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.normal
        return torch.stack([z, torch.zeros_like(z)], dim=1)

    def at(self, distance: Tensor) -> Tensor:
        """Give images at this signed distance from the plane."""
        unit = self.normal / self.normal.norm()
        side = torch.rand(len(distance), 9, generator=torch.Generator().manual_seed(1))
        side = side - (side @ unit)[:, None] * unit
        return (side + distance[:, None] * unit).reshape(-1, *SHAPE)


class Recorder(nn.Module):
    """Answers class 0 and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(x), 3)


def keys(n: int) -> Tensor:
    return seeding.keys(seeding.root(0, "test"), torch.arange(n))


@pytest.fixture
def plane() -> Plane:
    return Plane().eval()


class TestCertify:
    def test_radius_of_a_plane_is_its_distance_less_what_the_draws_leave_open(self, plane: Plane) -> None:
        sigma, draws, distance = 0.5, 1500, torch.linspace(-1.2, 1.2, 25)
        found, radius = certify(
            plane, plane.at(distance), sigma=sigma, draws=draws, select=50, alpha=1e-3, key=keys(25), batch_size=500
        )
        assert (radius <= distance.abs() + 1e-6).all()  # sound: with 25 images and alpha 1e-3, wrong in 1 of 40 runs
        assert (radius <= largest_radius(sigma=sigma, draws=draws, alpha=1e-3) + 1e-6).all()
        right = torch.where(distance > 0, 0, 1)
        assert ((found == right) | (found == ABSTAIN)).all()
        p = stats.norm.cdf(distance.abs().numpy() / sigma)
        few = torch.from_numpy(stats.binom.ppf(1e-4, draws, p)).long()  # a count below has probability 1e-4
        assert (radius >= certified_radius(few, sigma=sigma, draws=draws, alpha=1e-3)).all()
        assert radius[0] > 0.9 and found[12] == ABSTAIN and radius[12] == 0  # on the plane itself
        assert ((found == ABSTAIN) == (radius == 0)).all()

    def test_is_wrong_about_as_rarely_as_it_says(self, plane: Plane) -> None:
        n, alpha = 600, 0.2
        distance = torch.full((n,), 0.3)
        _, radius = certify(plane, plane.at(distance), sigma=0.5, draws=60, select=1, alpha=alpha, key=keys(n))
        wrong = float((radius > 0.3).float().mean())
        se = math.sqrt(alpha * (1 - alpha) / n)
        assert 0.05 < wrong < alpha + 3 * se  # discrete counts make it rarer than alpha; not idle, though

    def test_no_shift_inside_the_radius_changes_the_majority(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 30), nn.Tanh(), nn.Linear(30, 3, bias=False)).eval()
        with torch.no_grad():
            net[1].weight.mul_(6)
        x = torch.rand(8, *SHAPE)
        found, radius = certify(net, x, sigma=0.3, draws=800, select=50, alpha=1e-3, key=keys(8), batch_size=800)
        rows = (found != ABSTAIN).nonzero()[:, 0]
        assert len(rows) >= 4
        for seed in range(6):
            shift = torch.randn(len(rows), 9, generator=torch.Generator().manual_seed(seed))
            shift = (shift / shift.norm(dim=1, keepdim=True) * 0.99 * radius[rows, None]).reshape(-1, *SHAPE)
            counts = votes(net, x[rows] + shift, sigma=0.3, draws=800, key=keys(len(rows)) + seed, batch_size=800)
            share = counts.gather(1, found[rows, None])[:, 0] / 800
            assert (share > 0.5 - 3 * 0.5 / math.sqrt(800)).all()

    def test_the_class_is_chosen_from_draws_that_do_not_count(self) -> None:
        net = Recorder().eval()
        found, radius = certify(net, torch.rand(3, *SHAPE), sigma=1.0, draws=20, select=7, alpha=1e-3, key=keys(3))
        asked = torch.cat(net.seen)
        assert len(asked) == 3 * 27 == len(torch.unique(asked, dim=0))
        assert (found == 0).all()
        want = largest_radius(sigma=1.0, draws=20, alpha=1e-3)
        assert radius.tolist() == pytest.approx([want] * 3, rel=1e-6)
        assert want == pytest.approx(stats.norm.ppf(1e-3 ** (1 / 20)))

    def test_abstains_where_the_logits_are_nan(self) -> None:
        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.full((len(x), 3), math.nan)

        assert votes(Broken().eval(), torch.rand(2, *SHAPE), sigma=1.0, draws=5, key=keys(2), batch_size=4).sum() == 0
        found, radius = certify(Broken().eval(), torch.rand(2, *SHAPE), sigma=1.0, draws=20, alpha=0.1, key=keys(2))
        assert found.tolist() == [ABSTAIN] * 2 and radius.tolist() == [0, 0]


class TestVotes:
    def test_equal_a_loop_and_do_not_depend_on_the_batch(self, plane: Plane) -> None:
        x, key, rng = plane.at(torch.linspace(-0.5, 0.5, 6)), keys(6), torch.get_rng_state()
        want = torch.zeros(6, 2, dtype=torch.int64)
        for i in range(6):
            for draw in range(15):
                noise = seeding.normal(seeding.fold(key[i : i + 1], draw), 0, SHAPE)
                want[i, int(plane(x[i : i + 1] + 0.5 * noise).argmax())] += 1
        for size in (1, 7, 1000):
            assert torch.equal(votes(plane, x, sigma=0.5, draws=15, key=key, batch_size=size), want)
        order = torch.tensor([4, 1])
        assert torch.equal(votes(plane, x[order], sigma=0.5, draws=15, key=key[order], batch_size=8), want[order])
        assert not torch.equal(votes(plane, x, sigma=0.5, draws=15, key=key + 1, batch_size=8), want)
        assert torch.equal(rng, torch.get_rng_state())

    def test_the_noise_is_normal_and_not_clipped(self) -> None:
        net = Recorder().eval()
        votes(net, torch.full((4, *SHAPE), 0.5), sigma=0.7, draws=60, key=keys(4), batch_size=50)
        assert all(len(x) == 50 for x in net.seen)  # one shape: the last batch is filled up
        noise = (torch.cat(net.seen)[:240] - 0.5).flatten().double() / 0.7
        assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
        assert noise.min() * 0.7 < -0.5 and noise.max() * 0.7 > 0.5

    def test_no_gradients_and_parameters_alone(self, plane: Plane) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).eval()
        votes(net, torch.rand(2, *SHAPE), sigma=0.1, draws=3, key=keys(2), batch_size=2)
        assert net[1].weight.grad is None and not net.training


class TestPredict:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.6, 0.9])
    def test_abstains_as_the_binomial_test_says(self, share: float) -> None:
        class Coin(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                u = 0.5 + 0.5 * torch.erf((x[:, 0, 0, 0] - 0.5) / math.sqrt(2))  # uniform under the noise
                return torch.stack([share - u, u - share, torch.full_like(u, -2.0)], dim=1)

        n, draws = 40, 30
        x = torch.full((n, *SHAPE), 0.5)
        found = predict(Coin().eval(), x, sigma=1.0, draws=draws, alpha=0.05, key=keys(n))
        counts = votes(Coin().eval(), x, sigma=1.0, draws=draws, key=seeding.fold(keys(n), 0), batch_size=128)
        assert counts[:, 2].sum() == 0
        for got, (a, b, _) in zip(found.tolist(), counts.tolist(), strict=True):
            sure = stats.binomtest(max(a, b), a + b, 0.5).pvalue <= 0.05
            assert got == ((0 if a > b else 1) if sure else ABSTAIN)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"sigma": 0.0}, "sigma must be a finite number above 0; got 0.0"),
        ({"sigma": math.inf}, "sigma must be a finite number above 0"),
        ({"draws": 9}, "with alpha = 0.001 nothing can be certified from 9 draws. Take at least 10"),
        ({"draws": 0}, "draws must be a finite number, at least 1; got 0"),
        ({"select": 0}, "select must be a finite number, at least 1; got 0"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\); got 0.0"),
        ({"batch_size": 0}, "batch_size must be a finite number, at least 1"),
    ],
)
def test_numbers_out_of_range_are_errors(plane: Plane, facts: dict[str, float], text: str) -> None:
    given = {"sigma": 0.5, "draws": 10, "select": 5, "alpha": 1e-3, "batch_size": 8} | facts
    with pytest.raises(ParameterError, match=text):
        certify(plane, torch.rand(1, *SHAPE), key=keys(1), **given)  # type: ignore[arg-type]


def test_ten_draws_are_the_fewest_for_one_in_a_thousand() -> None:
    assert 0 < largest_radius(sigma=1.0, draws=10, alpha=1e-3) < 0.01


def test_train_mode_and_no_logits_are_errors(plane: Plane) -> None:
    with pytest.raises(ParameterError, match="votes: the model must be in eval mode"):
        votes(Plane(), torch.rand(1, *SHAPE), sigma=0.5, draws=2, key=keys(1), batch_size=2)
    with pytest.raises(ShapeError, match=r"the model must return logits \(n, k\)"):
        votes(nn.Identity().eval(), torch.rand(1, *SHAPE), sigma=0.5, draws=2, key=keys(1), batch_size=2)
    with pytest.raises(ParameterError, match="predict: alpha must be above 0"):
        predict(plane, torch.rand(1, *SHAPE), sigma=0.5, draws=2, alpha=0.0, key=keys(1))
