"""DI-FGSM against a plain loop with the same draws, torchattacks and a closed form; what counts as a success."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import attack, di_fgsm
from hardy.attacks._momentum import Path as Walk
from hardy.attacks.di_fgsm import DIFGSM, shrink_matrix
from hardy.attacks.goal import Goal
from hardy.attacks.mi_fgsm import MIFGSM
from hardy.attacks.state import Ball, concat, select
from hardy.errors import ParameterError
from hardy.threats import Threat


def goal_of(y: Tensor) -> Goal:
    return Goal(label=y, target=y, must_hit=torch.zeros_like(y, dtype=torch.bool))


def move(spec: DIFGSM, net: nn.Module, state: Walk, y: Tensor) -> Walk:
    """One round, without the engine."""
    query = spec.ask(state)
    leaf = query.x.clone().requires_grad_()
    z = net(leaf)
    (g,) = torch.autograd.grad(spec.loss(z, select(goal_of(y), query.row)).sum(), leaf)
    return spec.tell(state, z.detach(), g)


def begin(spec: DIFGSM, x: Tensor, y: Tensor, eps: float, key: Tensor) -> Walk:
    return spec.start(x, goal_of(y), Ball("linf", torch.full((len(x),), eps, dtype=torch.float64)), key)


def path(spec: DIFGSM, net: nn.Module, x: Tensor, y: Tensor, *, eps: float, key: Tensor) -> list[Tensor]:
    """All points in float64, without the engine."""
    state, out = begin(spec, x, y, eps, key), []
    while not spec.finished(state).all():
        state = move(spec, net, state, y)
        out.append(spec.result(state))
    return out


def slow_copy(x: Tensor, u: list[float], *, probability: float, resize: float) -> Tensor:
    """One image, with torch's own resizing; differentiable."""
    if u[0] >= probability:
        return x
    sizes, ends = [], []
    for side, v in zip(x.shape[1:], u[2:], strict=True):
        choices = list(range(max(1, int(side * resize)), side)) or [side]
        sizes.append(choices[int(u[1] * len(choices))])
        places = list(range(side - sizes[-1] + 1))
        before = places[int(v * len(places))]
        ends.append((before, side - sizes[-1] - before))
    small = F.interpolate(x[None], size=sizes, mode="bilinear", align_corners=False)[0]
    return F.pad(small, [*ends[1], *ends[0]])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), side=st.integers(1, 20))
def test_matrix_equals_torch_resizing_and_padding(data: st.DataObject, side: int) -> None:
    size = data.draw(st.integers(1, side))
    offset = data.draw(st.integers(0, side - size))
    matrix = shrink_matrix(side, size=torch.tensor([size]), offset=torch.tensor([offset]))[0].double()
    line = torch.randn(1, 1, side, dtype=torch.float64)
    want = F.pad(F.interpolate(line, size=size, mode="linear", align_corners=False), [offset, side - size - offset])
    torch.testing.assert_close(matrix @ line[0, 0], want[0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.sum(dim=1)[offset : offset + size], torch.ones(size).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("probability", "resize", "shape"), [(0.5, 0.9, (6, 6)), (1.0, 0.6, (6, 6)), (0.7, 0.5, (9, 5))]
)
def test_equals_a_plain_loop(probability: float, resize: float, shape: tuple[int, int]) -> None:
    """The slow one differentiates through torch's resizing, the fast one multiplies by transposed matrices."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)).double().eval()
        x = torch.rand(6, 3, *shape, dtype=torch.float64)
        y = net(x).argmax(dim=1)
    spec, key, eps = DIFGSM(probability=probability, resize=resize), torch.arange(6) * 31, 0.1
    got = torch.stack(path(spec, net, x, y, eps=eps, key=key))
    for i in range(6):
        x_adv, g = x[i], torch.zeros_like(x[i])
        for t in range(10):
            u = seeding.uniform(seeding.fold(key[i : i + 1], t), 0, (4,))[0].tolist()
            leaf = x_adv.clone().requires_grad_()
            seen = slow_copy(leaf, u, probability=probability, resize=resize)
            (grad,) = torch.autograd.grad(F.cross_entropy(net(seen[None]), y[i : i + 1]), leaf)
            g = g + grad / grad.abs().mean()
            x_adv = (x[i] + (x_adv + eps / 10 * g.sign() - x[i]).clamp(-eps, eps)).clamp(0, 1)
            torch.testing.assert_close(got[t, i], x_adv, rtol=0, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_equals_torchattacks_where_it_draws_the_same(
    net: nn.Module, x: Tensor, y: Tensor, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 6 pixels it can only draw size 5 at the top left; so do we if all uniform numbers are 0."""
    exact, x, y = copy.deepcopy(net).double(), x[3:].double(), y[3:]
    other = torchattacks.DIFGSM(exact, eps=0.05, alpha=0.011, steps=7, decay=decay, resize_rate=0.9, diversity_prob=1.0)
    want = other(x, y)
    monkeypatch.setattr(di_fgsm.seeding, "uniform", lambda key, _, shape: torch.zeros(len(key), *shape))
    got = path(DIFGSM(steps=7, step_size=0.011, decay=decay), exact, x, y, eps=0.05, key=torch.arange(len(x)))[-1]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_draws_are_uniform_over_sizes_and_places() -> None:
    """On white images of 12 pixels a copy is a white rectangle of side 6 to 11 at every place that has room."""
    n, spec = 4000, DIFGSM(resize=0.5, probability=0.75)
    x, y = torch.ones(n, 1, 12, 12), torch.zeros(n, dtype=torch.int64)
    threat = Ball("linf", torch.full((n,), 0.1))
    seen = spec.ask(spec.start(x, goal_of(y), threat, seeding.keys(0, torch.arange(n)))).x[:, 0]
    copied = (seen == 0).flatten(1).any(dim=1)
    assert abs(copied.float().mean() - 0.75) < 4 * (0.75 * 0.25 / n) ** 0.5
    rows, columns = seen[copied].amax(dim=2) > 0, seen[copied].amax(dim=1) > 0
    size, m = rows.sum(dim=1), int(copied.sum())
    assert torch.equal(size, columns.sum(dim=1))  # both sides by the same draw
    for side in range(6, 12):
        assert abs((size == side).float().mean() - 1 / 6) < 4 * (5 / 36 / m) ** 0.5
    top, left = rows.int().argmax(dim=1), columns.int().argmax(dim=1)
    assert set(zip(size.tolist(), top.tolist(), strict=True)) == {(s, t) for s in range(6, 12) for t in range(13 - s)}
    share = top / (12 - size)  # uniform on 0, 1/k, ..., 1: mean 1/2, variance at most 1/4
    assert abs(share.mean() - 0.5) < 4 * (1 / 4 / m) ** 0.5
    both = ((top / (12 - size) - 0.5) * (left / (12 - size) - 0.5)).mean()
    assert abs(both) < 4 * (1 / 16 / m) ** 0.5


def test_a_new_step_is_a_new_draw() -> None:
    spec, x, y = (
        DIFGSM(resize=0.3, probability=1.0),
        torch.ones(5, 1, 16, 16).double(),
        torch.zeros(5, dtype=torch.int64),
    )
    state, seen = begin(spec, x, y, 0.1, torch.arange(5)), []
    for _ in range(4):
        seen.append(spec.ask(state).x)
        state = spec.tell(state, torch.zeros(5, 2), torch.zeros_like(x))
    points = torch.stack(seen).flatten(0, 1).flatten(1)
    assert len(torch.unique(points, dim=0)) > 15


def test_without_copies_it_is_mi_fgsm(net: nn.Module, x: Tensor, y: Tensor) -> None:
    specs = (DIFGSM(probability=0.0), MIFGSM())
    a, b = (attack(net, x, y, spec, threat=Threat("linf", 0.03)) for spec in specs)
    assert torch.equal(a.x_adv, b.x_adv) and a.passes == b.passes


@pytest.mark.parametrize("side", [1, 2, 8])
def test_reaches_the_corner_on_a_linear_net_with_one_sign_per_channel(side: int) -> None:
    """Shrinking averages pixels of a channel, so the gradient that comes back keeps the channel's sign."""
    head = nn.Linear(3 * side**2, 2).eval()
    net, x = nn.Sequential(nn.Flatten(), head).eval(), torch.full((6, 3, side, side), 0.5)
    sign = torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, side, side)
    with torch.no_grad():
        head.weight.copy_(head.weight.abs() * torch.stack([-sign.flatten(), sign.flatten()]))
        y = net(x).argmax(dim=1)
    corner = torch.where(y[:, None, None, None] == 0, sign, -sign)
    found = attack(net, x, y, DIFGSM(), threat=Threat("linf", 0.1), stop="never")
    torch.testing.assert_close(found.x_adv, x + 0.1 * corner, rtol=0, atol=1e-6)


class Darkest(nn.Module):
    """Class 1 where a pixel is darker than 0.2, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        dark = 0.2 - x.amin(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(dark), dark], dim=1)


def test_a_copy_outside_the_ball_that_fools_the_net_is_no_success() -> None:
    """The black border of every copy fools this net, no image of the ball does."""
    net, x, y = Darkest().eval(), torch.full((5, 1, 6, 6), 0.5), torch.zeros(5, dtype=torch.int64)
    fooled: list[Tensor] = []
    net.register_forward_hook(lambda *call: fooled.append(call[2].detach().argmax(dim=1)))
    found = attack(net, x, y, DIFGSM(probability=1.0), threat=Threat("linf", 0.1), batch_size=5)
    assert sum(int(f.sum()) for f in fooled) == 5 * 10
    assert not found.success.any() and found.backward_passes.tolist() == [10] * 5
    assert (found.x_adv - x).abs().max() <= 0.1 + 1e-6


def test_a_copy_inside_the_ball_that_fools_the_net_is_one() -> None:
    net, x, y = Darkest().eval(), torch.full((5, 1, 6, 6), 0.5), torch.zeros(5, dtype=torch.int64)
    found = attack(net, x, y, DIFGSM(probability=1.0), threat=Threat("linf", 0.6))
    assert found.success.all() and found.backward_passes.tolist() == [1] * 5
    assert (found.x_adv.amin(dim=(1, 2, 3)) == 0).all()


def test_images_leave_early_only_at_their_own_points(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """A step without a copy that fools the net ends the path there; success is what the net says of the result."""
    threat = Threat("linf", 0.05)
    found = attack(net, x, y, DIFGSM(), threat=threat)
    with torch.no_grad():
        assert torch.equal(found.success, net(found.x_adv).argmax(dim=1) != y)
    early = found.clean_correct & found.success & (found.backward_passes < 10)
    assert early.sum() > 10
    key = seeding.fold(seeding.keys(seeding.root(0, "attack:di_fgsm"), torch.arange(50)), 0)
    last = seeding.fold(key, found.backward_passes - 1)
    assert (seeding.uniform(last, 0, (4,))[early, 0] >= 0.5).all()  # no copy in that step


def test_rows_of_different_age_share_a_batch(net: nn.Module, x: Tensor, y: Tensor) -> None:
    exact, x, y, spec = copy.deepcopy(net).double(), x[3:7].double(), y[3:7], DIFGSM(steps=4, resize=0.5)
    key = torch.tensor([5, 6, 7, 8])
    alone = path(spec, exact, x, y, eps=0.1, key=key)[-1]
    old = begin(spec, x[:2], y[:2], 0.1, key[:2])
    for _ in range(2):
        old = move(spec, exact, old, y[:2])
    both = concat([begin(spec, x[2:], y[2:], 0.1, key[2:]), old])
    for _ in range(2):
        both = move(spec, exact, both, torch.cat([y[2:], y[:2]]))
    assert spec.finished(both).tolist() == [False, False, True, True]
    torch.testing.assert_close(spec.result(both)[2:], alone[:2], rtol=0, atol=1e-12)
    young = select(both, torch.tensor([0, 1]))
    for _ in range(2):
        young = move(spec, exact, young, y[2:])
    torch.testing.assert_close(spec.result(young), alone[2:], rtol=0, atol=1e-12)


def test_verdicts_do_not_depend_on_batches(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat, order = Threat("linf", 0.03), torch.randperm(50)
    whole = attack(net, x, y, DIFGSM(), threat=threat)
    parts = attack(net, x[order], y[order], DIFGSM(), threat=threat, rows=order, batch_size=7)
    clear = whole.margin[order].abs() > 1e-5
    assert clear.sum() > 40 and torch.equal(whole.success[order][clear], parts.success[clear])


def test_defaults_are_published() -> None:
    assert DIFGSM() == DIFGSM(steps=10, step_size=None, decay=1.0, probability=0.5, resize=0.9, stop="first_success")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "DIFGSM: steps must be at least 1"),
        ({"probability": 1.1}, r"probability must be in \[0, 1\]; got 1.1"),
        ({"resize": 1.0}, "resize must be above 0 and below 1; got 1.0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        DIFGSM(**wrong)  # type: ignore[arg-type]
