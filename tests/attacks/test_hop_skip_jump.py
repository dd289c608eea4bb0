"""HopSkipJump against a plain loop over single queries, the boundary of an affine net, and Foolbox."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from hardy import seeding
from hardy.attacks import attack, hop_skip_jump
from hardy.attacks.fmn import FMN
from hardy.attacks.goal import Goal
from hardy.attacks.hop_skip_jump import HopSkipJump
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.errors import ParameterError
from hardy.threats import Norm, Threat


def far(norm: Norm) -> Threat:
    """More than the box: the ball decides nothing."""
    return Threat(norm, 1.0 if norm == "linf" else 20.0)


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one estimate takes several rounds."""
    monkeypatch.setattr(hop_skip_jump, "PROBES", 7)


def drive(spec: HopSkipJump, net: nn.Module, x: Tensor, y: Tensor, *, norm: Norm, key: Tensor) -> Tensor:
    """Run all rows together without the engine, in the dtype of ``x``: float64 rounds too little to turn a verdict."""
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    threat = Ball(norm, torch.full_like(x[:, 0, 0, 0], 20.0))
    state = spec.start(x, goal, threat, key)
    out, done = x, torch.zeros_like(y, dtype=torch.bool)
    while not done.all():
        query = spec.ask(state)
        with torch.no_grad():
            state = spec.tell(state, net(query.x), None)
        out = torch.where(done[:, None, None, None], out, spec.result(state))
        done |= spec.finished(state)
    return out


class SpentError(Exception):
    """The budget of the plain loop is spent."""


class Plain:
    """The published algorithm for one image, one query at a time, on the same draws."""

    def __init__(self, spec: HopSkipJump, net: nn.Module, *, x: Tensor, y: int, key: Tensor, norm: Norm) -> None:
        self.net, self.x, self.y, self.key, self.norm, self.spec = net, x, y, key, norm, spec
        self.d, self.queries, self.best, self.nearest = x.numel(), 0, x, math.inf

    def length(self, delta: Tensor) -> float:
        return float(delta.abs().max() if self.norm == "linf" else delta.double().norm())

    def fooled(self, point: Tensor, keep: bool) -> bool:
        if self.queries >= self.spec.queries:
            raise SpentError
        self.queries += 1
        with torch.no_grad():
            found = int(self.net(point[None]).argmax()) != self.y
        if found and keep and self.length(point - self.x) < self.nearest:
            self.best, self.nearest = point, self.length(point - self.x)
        return found

    def between(self, far: Tensor, share: float, blend: bool) -> Tensor:
        if blend or self.norm == "l2":
            return ((1 - share) * self.x + share * far).clamp(0, 1)
        return torch.minimum(torch.maximum(far, self.x - share), self.x + share).clamp(0, 1)

    def halve(self, far: Tensor, blend: bool) -> Tensor:
        reach = self.length(far - self.x)
        low, high = 0.0, reach if self.norm == "linf" and not blend else 1.0
        fine = self.spec.gamma / self.d**1.5
        if self.norm == "linf":
            fine = self.spec.gamma / self.d**2 * min(reach, 1)
        while high - low > (1e-3 if blend else fine):
            middle = (low + high) / 2
            if middle in {low, high}:
                break
            if self.fooled(self.between(far, middle, blend), high - low >= 1e-4 * high):
                high = middle
            else:
                low = middle
        return self.between(far, high, blend)

    def direction(self, edge: Tensor, radius: float, t: int) -> Tensor:
        answers, directions = [], []
        for k in range(min(int(self.spec.first_probes * math.sqrt(t)), self.spec.max_probes)):
            key = seeding.fold(seeding.fold(self.key, t), k)
            draw = seeding.uniform(key, 0, self.x.shape)[0] * 2 - 1
            if self.norm == "l2":
                draw = seeding.normal(key, 0, self.x.shape)[0]
            draw = draw.to(self.x.dtype)
            point = (edge + radius * draw / draw.norm()).clamp(0, 1)
            answers.append(1.0 if self.fooled(point, keep=False) else -1.0)
            directions.append((point - edge) / radius)
        f, u = torch.tensor(answers)[:, None, None, None], torch.stack(directions)
        if f.mean().abs() != 1:
            f = f - f.mean()
        mean = (f * u).mean(dim=0)
        return mean.sign() if self.norm == "linf" else mean / mean.norm()

    def walk(self) -> None:
        for draw in range(self.spec.draws):
            noise = seeding.uniform(seeding.fold(self.key, draw), 0, self.x.shape)[0].to(self.x.dtype)
            if self.fooled(noise, keep=True):
                break
        point, t = self.halve(noise, blend=True), 1
        while True:
            reach = self.length(point - self.x)
            edge = self.halve(point, blend=False)
            radius = 0.1 if t == 1 else self.spec.gamma * reach / self.d
            update, step = self.direction(edge, radius, t), self.length(edge - self.x) / math.sqrt(t)
            while not self.fooled(point := (edge + step * update).clamp(0, 1), keep=True):
                step /= 2
            t += 1


@pytest.mark.parametrize(
    "spec",
    [
        HopSkipJump(queries=150, first_probes=20),
        HopSkipJump(queries=150, first_probes=2, max_probes=3, gamma=0.01),  # bad directions, fine halvings
        HopSkipJump(queries=9, first_probes=10),
    ],
)
@pytest.mark.usefixtures("few_at_once")
def test_equals_a_plain_loop(net: nn.Module, x: Tensor, y: Tensor, norm: Norm, spec: HopSkipJump) -> None:
    net, x, y, keys = copy.deepcopy(net).double(), x[3:6].double(), y[3:6], seeding.keys(3, torch.arange(3))
    got = drive(spec, net, x, y, norm=norm, key=keys)
    for i in range(3):
        plain = Plain(spec, net, x=x[i], y=int(y[i]), key=keys[i : i + 1], norm=norm)
        with pytest.raises(SpentError):
            plain.walk()
        assert plain.nearest < math.inf
        torch.testing.assert_close(got[i], plain.best, rtol=0, atol=1e-6)


def test_spends_its_queries_and_no_gradient(net: nn.Module, x: Tensor, y: Tensor) -> None:
    found = attack(net, x[3:6], y[3:6], HopSkipJump(queries=77), threat=far("l2"))
    assert found.forward_passes.tolist() == [77 + 2] * 3  # the clean image and the verification
    assert found.backward_passes.tolist() == [0] * 3


def test_finds_the_boundary_of_an_affine_net(norm: Norm) -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 27, generator=g)
    net = nn.Sequential(nn.Flatten(), nn.Linear(27, 2)).eval()
    net[1].weight.data, net[1].bias.data = weight, -weight.sum(dim=1) / 2
    x = 0.4 + 0.2 * torch.rand(6, 3, 3, 3, generator=g)
    z = net(x).detach()
    optimum = (z[:, 0] - z[:, 1]).abs() / (weight[0] - weight[1]).norm(p=1 if norm == "linf" else 2)
    few, many = (
        norm_of(attack(net, x, z.argmax(dim=1), HopSkipJump(queries=q), threat=far(norm)).x_adv - x, norm=norm)
        for q in (200, 1000)
    )
    assert (many >= optimum * (1 - 1e-5)).all() and (many <= 1.2 * optimum).all()
    assert (many <= few).all() and many.mean() < few.mean()


def test_sees_nothing_but_the_predicted_class(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    class Veiled(nn.Module):
        """Other logits, equal classes."""

        def forward(self, points: Tensor) -> Tensor:
            z = net(points)
            top = nn.functional.one_hot(z.argmax(dim=1), 5).float()
            return top * (1 + points.mean(dim=(1, 2, 3)))[:, None] * 1e3 + top.roll(1, dims=1) * points[:, 0, 0, :1]

    spec = HopSkipJump(queries=90, first_probes=20)
    plain, veiled = (attack(m, x[3:13], y[3:13], spec, threat=far(norm)) for m in (net, Veiled().eval()))
    assert torch.equal(plain.x_adv, veiled.x_adv) and torch.equal(plain.success, veiled.success)
    assert not torch.equal(plain.margin, veiled.margin) and spec.hard_label


def test_a_row_alone_equals_the_row_in_a_batch(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    spec, rows = HopSkipJump(queries=80, first_probes=20), torch.randperm(8)
    whole = attack(net, x[3:11], y[3:11], spec, threat=far(norm))
    parts = attack(net, x[3:11][rows], y[3:11][rows], spec, threat=far(norm), rows=rows, batch_size=4)
    assert torch.equal(whole.success[rows], parts.success)
    same = (whole.x_adv[rows] - parts.x_adv).flatten(1).abs().amax(dim=1) < 1e-5
    assert same.float().mean() > 0.8  # one class of one probe may fall on the other side, by rounding


def test_rows_in_different_phases_share_a_batch_and_get_ever_nearer(
    net: nn.Module, x: Tensor, y: Tensor, norm: Norm
) -> None:
    x, y, spec = x[3:15], y[3:15], HopSkipJump(queries=120, first_probes=20)
    goal = Goal(y, y, torch.zeros_like(y, dtype=torch.bool))
    state = spec.start(x, goal, Ball(norm, torch.full((12,), 20.0)), seeding.keys(3, torch.arange(12)))
    together, seen = 0, set()
    while not spec.finished(state).any():
        query = spec.ask(state)
        assert query.row.unique().tolist() == list(range(12)) and not query.gradient
        assert query.x.min() >= 0 and query.x.max() <= 1
        with torch.no_grad():
            told = spec.tell(state, net(query.x), None)
        assert torch.equal(told.queries - state.queries, torch.bincount(query.row, minlength=12))
        assert (told.nearest <= state.nearest).all() and (told.queries <= spec.queries).all()
        seen |= set(told.phase.tolist())
        together = max(together, len(told.phase.unique()))
        state = told
    assert seen >= {hop_skip_jump.BOUNDARY, hop_skip_jump.ESTIMATE, hop_skip_jump.STEP} and together > 1


def test_first_success_saves_queries(net: nn.Module, x: Tensor, y: Tensor) -> None:
    threat = Threat("l2", 1.0)
    early = attack(net, x[3:9], y[3:9], HopSkipJump(queries=200, stop="first_success"), threat=threat)
    late = attack(net, x[3:9], y[3:9], HopSkipJump(queries=200), threat=threat)
    assert (early.success >= late.success).all() and late.success.any()
    assert (early.forward_passes < late.forward_passes)[late.success].all()


def test_gives_up_where_no_noise_fools_the_net() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    net[1].weight.data.zero_()
    net[1].bias.data = torch.tensor([1.0, 0.0])
    x, y = torch.full((3, 3, 4, 4), 0.25), torch.zeros(3, dtype=torch.int64)
    found = attack(net, x, y, HopSkipJump(draws=20), threat=Threat("l2", 1.0))
    assert torch.equal(found.x_adv, x) and not found.success.any()
    assert found.forward_passes.tolist() == [22] * 3


def test_a_target_is_the_only_success(net: nn.Module, x: Tensor, y: Tensor) -> None:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        common = int(net(torch.rand(200, 3, 6, 6, generator=g)).argmax(dim=1).mode().values)
    targets = torch.where(y == common, (y + 1) % 5, common)
    found = attack(net, x, y, HopSkipJump(queries=100, draws=50), threat=far("l2"), targets=targets)
    with torch.no_grad():
        assert torch.equal(net(found.x_adv).argmax(dim=1) == targets, found.success)
    assert found.success[y != common].all()


@pytest.mark.slow
def test_gets_as_near_as_foolbox(net: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> None:
    """One image at a time: Foolbox divides the l2 direction of all images of a batch by one length."""
    foolbox = pytest.importorskip("foolbox")
    x, y = x[3:28], y[3:28]
    judged = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.HopSkipJumpAttack(steps=10, constraint=norm)  # about 2,500 queries
    want = torch.cat(
        [theirs.run(judged, x[i : i + 1], foolbox.criteria.Misclassification(y[i : i + 1])) for i in range(25)]
    )
    mine = attack(net, x, y, HopSkipJump(queries=2500), threat=far(norm))
    best = attack(net, x, y, FMN(steps=300), threat=far(norm))
    reference, got, optimum = (norm_of(found - x, norm=norm).median() for found in (want, mine.x_adv, best.x_adv))
    assert mine.success.all() and got <= 1.1 * reference and optimum <= got


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"queries": 0},
            r"queries, first_probes, max_probes and draws must be at least 1; got \(0, 100, 10000, 1000\)",
        ),
        ({"gamma": 0.0}, "gamma must be above 0; got 0.0"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        HopSkipJump(**wrong)  # type: ignore[arg-type]
