"""Sound attacks find what was planted in sound nets; random search does not, nor weak attacks, nor broken gradients."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hardy
from hardy import seeding
from hardy.attacks import APGD, PGD, attack
from hardy.attacks.norms import norm_of
from hardy.attacks.state import Ball
from hardy.attacks.verify import inside
from hardy.errors import DataError, HardyError, ParameterError, ShapeError
from hardy.evaluation import self_test as module
from hardy.evaluation.self_test import Find, Planted, SelfTest, discriminate, plant, random_search, self_test
from hardy.methods import DefectiveConv
from hardy.threats import Threat

LINF = Threat("linf", 0.1)
THREATS = [LINF, Threat("linf", 0.2), Threat("l2", 0.5), Threat("l1", 2.0)]


def keys(n: int, seed: int = 0) -> Tensor:
    return seeding.keys(seeding.root(seed, "test"), torch.arange(n))


def by(attack_: Any, threat: Threat) -> Find:
    """Make a suite of one attack."""
    return lambda model, x, y: attack(model, x, y, attack_, threat=threat).success


class Wrapped(nn.Module):
    """A net with something done to its input."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before = net, before

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(self.before(x))
        return z


class Shatter(nn.Module):
    """Turns the gradient of features about every few thousandths."""

    def forward(self, z: Tensor) -> Tensor:
        return z + 0.5 * torch.sin(200 * z)


class Flat(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z.flatten(1)


class NoHead(nn.Module):
    """Logits that no linear layer makes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x).flatten(1)
        return torch.stack([z[:, i::10].logsumexp(dim=1) for i in range(10)], dim=1)


def shattered(net: nn.Module) -> nn.Module:
    assert isinstance(net, nn.Sequential)
    return nn.Sequential(*net[:6], Shatter(), net[6]).eval()


def rounded(net: nn.Module) -> nn.Module:
    return Wrapped(net, lambda x: (x * 16).round() / 16).eval()


def reversed_(net: nn.Module) -> nn.Module:
    return Wrapped(net, lambda x: 2 * x.detach() - x).eval()


@pytest.fixture(scope="module")
def few(x: Tensor) -> Tensor:
    return x[:24]


@pytest.fixture(scope="module")
def planted(net: nn.Module, few: Tensor) -> Planted:
    return plant(net, few, threat=LINF, key=keys(24))


def score(planted: Planted, x: Tensor) -> Tensor:
    with torch.no_grad():
        z: Tensor = planted.model(x)
    return z[:, 1] - z[:, 0]


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_sound_attacks_find_what_random_search_does_not(net: nn.Module, x: Tensor, threat: Threat) -> None:
    x = x[:40]
    found = self_test(net, x, threat=threat, key=keys(len(x)), find=by(PGD(steps=20), threat), inner=100)
    assert found.tried == len(x) and found.planted >= 15
    assert found.found >= 0.9 * found.planted and found.random <= 0.1 * found.planted


def test_apgd_finds_them(planted: Planted) -> None:
    assert by(APGD(steps=30), LINF)(planted.model, planted.x, planted.y).float().mean() >= 0.9


@pytest.mark.parametrize("break_", [rounded, reversed_, shattered])
def test_pgd_fails_where_gradients_are_broken(
    net: nn.Module, few: Tensor, break_: Callable[[nn.Module], nn.Module]
) -> None:
    found = self_test(break_(net), few, threat=LINF, key=keys(24), find=by(PGD(steps=20), LINF))
    assert found.planted >= 20 and found.random <= 0.1 * found.planted
    assert found.found < 0.2 * found.planted


def test_an_attack_that_hardly_moves_is_caught(net: nn.Module, few: Tensor) -> None:
    weak = PGD(steps=1, step_size=LINF.eps / 10, random_start=False)
    found = self_test(net, few, threat=LINF, key=keys(24), find=by(weak, LINF))
    assert found.planted == 24 and found.found < 0.2 * found.planted


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_witnesses_lie_in_ball_and_box_and_are_what_an_attack_must_find(
    net: nn.Module, few: Tensor, threat: Threat
) -> None:
    made = plant(net, few, threat=threat, key=keys(24), inner=50)
    m = len(made.x)
    assert m > 5 and made.sites == ("6@input",) and not made.model.training
    assert torch.equal(made.x, few[made.index]) and torch.equal(made.y, torch.zeros(m, dtype=torch.int64))
    assert inside(made.witness, made.x, Ball(threat.norm, torch.full((m,), threat.eps))).all()
    assert (score(made, made.witness) >= 1e-3).all()
    assert (score(made, made.x) <= -1e-3).all()
    for i in range(m):  # and so are all the points it was fitted on
        own = keys(24)[made.index[i]]
        assert (score(made, module._points(made.x[i], own, threat, 50)) < -1e-3).all()


def test_random_search_finds_what_is_easy(planted: Planted) -> None:
    easy = copy.deepcopy(planted)
    easy.model.get_buffer("bias")[:3] += 2
    lucky = random_search(easy, threat=LINF, key=keys(24), draws=1)
    assert lucky[:3].all() and not lucky[3:].any()


def test_random_search_is_the_loop_over_its_draws(planted: Planted) -> None:
    near = copy.deepcopy(planted)
    near.model.get_buffer("bias")[:] += 0.6  # some are found by chance now
    lucky = random_search(near, threat=LINF, key=keys(24), draws=11, batch_size=4)
    own = seeding.fold(keys(24), seeding.root(0, "self_test:random"))
    expected = []
    for i in range(24):
        uniform = module._points(near.x[i], own[i], LINF, 6, radius=1.0)
        corners = module._points(near.x[i], own[i], LINF, 5, border=True)
        expected.append(bool((score(near, torch.cat([uniform, corners])) > 0).any()))
    assert lucky.tolist() == expected and 0 < sum(expected) < 24


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_draws_fill_the_smaller_ball_and_the_border(threat: Threat) -> None:
    gray = torch.full((1, 6, 6), 0.5)
    inner = module._points(gray, keys(1)[0], threat, 300) - gray
    border = module._points(gray, keys(1)[0], threat, 300, border=True) - gray
    lengths = norm_of(inner, norm=threat.norm)
    assert lengths.max() <= 0.95 * threat.eps * (1 + 1e-5) and lengths.max() > 0.9 * threat.eps
    assert torch.allclose(norm_of(border, norm=threat.norm), torch.tensor(threat.eps), rtol=1e-5)
    spread = border.std(dim=0) / (300**0.5)  # mean 0, all 300 different
    assert (border.mean(dim=0).abs() < 5 * spread).all() and len(border.unique(dim=0)) == 300
    if threat.norm == "linf":
        assert torch.allclose(border.abs(), torch.full_like(border, threat.eps))


def test_the_discriminator_is_ridge_regression(rng: torch.Generator) -> None:
    """On the points 0 and 1 as seen from the inner mean; solved here as a long least-squares problem."""
    inner = torch.randn(40, 12, generator=rng) * torch.linspace(0.1, 2, 12) + 3
    border = 5 * torch.randn(6, 12, generator=rng) * torch.linspace(0.1, 2, 12) + 3
    head = discriminate(inner, border)
    assert head is not None
    unit = inner.double().std(dim=0).max()
    z, v = (inner.double() - inner.double().mean(dim=0)) / unit, (border.double() - inner.double().mean(dim=0)) / unit
    ridge = (40 * module.RIDGE) ** 0.5 * torch.eye(12, dtype=torch.float64)
    gaps = []
    for point in v:
        long = torch.cat([z, point[None], ridge])
        target = torch.zeros(len(long), 1, dtype=torch.float64)
        target[40] = 1
        w = torch.linalg.lstsq(long, target).solution[:, 0]
        gaps.append(1 - float((z @ w).max() / (point @ w)))
        if len(gaps) == head.chosen + 1:
            cosine = torch.cosine_similarity(w, head.weight.double(), dim=0)
    assert head.chosen == max(range(6), key=gaps.__getitem__) and cosine > 1 - 1e-9
    side = ((torch.cat([inner, border[head.chosen][None]]) - head.centre) * head.weight).sum(dim=1) + head.bias
    gap = gaps[head.chosen]
    assert float(side[-1]) == pytest.approx((1 - module.CLOSENESS) * gap, rel=1e-3)
    assert float(side[:-1].max()) == pytest.approx(-module.CLOSENESS * gap, rel=1e-3)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_what_cannot_be_told_apart_is_not_planted(rng: torch.Generator) -> None:
    inner = torch.randn(40, 5, generator=rng)
    assert discriminate(inner, inner[:4]) is None
    assert discriminate(inner, inner.mean(dim=0, keepdim=True)) is None
    assert discriminate(torch.ones(40, 5), torch.ones(3, 5)) is None
    assert discriminate(inner, torch.full((1, 5), torch.inf)) is None
    outside = torch.cat([inner[:3], torch.full((1, 5), 20.0)])
    head = discriminate(inner, outside)
    assert head is not None and head.chosen == 3


def test_every_image_has_its_own_head_and_gradient(net: nn.Module, planted: Planted) -> None:
    """Against the same thing written out for one image at a time."""
    assert isinstance(net, nn.Sequential)
    order = torch.tensor([5, 0, 23, 5, 11])
    x = planted.witness[order].clone().requires_grad_()
    (together,) = torch.autograd.grad(planted.model(x)[:, 1].sum(), x)
    weight, centre, bias = (planted.model.get_buffer(name) for name in ("weight", "centre", "bias"))
    for row, i in enumerate(order.tolist()):
        one = planted.witness[i : i + 1].clone().requires_grad_()
        alone = (weight[i] * (net[:6](one)[0] - centre[i])).sum() + bias[i]
        assert float(alone.detach()) == pytest.approx(float(score(planted, one)), abs=1e-5)
        (g,) = torch.autograd.grad(alone / 2, one)
        assert torch.allclose(g[0], together[row], atol=1e-5)


def test_the_same_key_gives_the_same_test_in_any_batch_and_company(
    net: nn.Module, few: Tensor, planted: Planted
) -> None:
    small = plant(net, few, threat=LINF, key=keys(24), batch_size=7)
    assert torch.equal(small.index, planted.index) and torch.equal(small.witness, planted.witness)
    assert torch.allclose(small.model.get_buffer("weight"), planted.model.get_buffer("weight"), atol=1e-4)
    some = torch.tensor([20, 3, 9])
    alone = plant(net, few[some], threat=LINF, key=keys(24)[some])
    assert torch.equal(alone.witness, planted.witness[some])
    other = plant(net, few, threat=LINF, key=keys(24, seed=1))
    assert not torch.equal(other.witness, planted.witness)


def test_images_close_to_an_earlier_one_are_left_out(net: nn.Module, few: Tensor) -> None:
    close = (few[:1] + 0.28).clamp(0, 1)  # 2.8 eps
    far = (few[:1] + 0.32).clamp(0, 1)
    mixed = torch.cat([few[:2], close, few[:1], far])
    made = plant(net, mixed, threat=LINF, key=keys(5), inner=50)
    assert made.index.tolist() == [0, 1, 4]


def test_the_model_is_left_as_it_was(net: nn.Module, few: Tensor) -> None:
    odd = nn.Sequential(nn.Dropout(0.0), net).eval()
    odd[0].train()
    before = {name: value.clone() for name, value in odd.state_dict().items()}
    names, state = [name for name, _ in odd.named_modules()], torch.get_rng_state()
    pixels = few.clone()
    made = plant(odd, few, threat=LINF, key=keys(24), inner=20)
    random_search(made, threat=LINF, key=keys(24), draws=4)
    attack(made.model, made.x, made.y, PGD(steps=2), threat=LINF)
    assert all(torch.equal(value, before[name]) for name, value in odd.state_dict().items())
    assert [name for name, _ in odd.named_modules()] == names and torch.equal(torch.get_rng_state(), state)
    for part in (odd, made.model):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in part.modules())
    assert odd[0].training and not odd.training and torch.equal(few, pixels)
    assert made.model.get_submodule("net.0").training  # modes inside are not switched in the copy either
    assert all(p.grad is None for p in odd.parameters())
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(odd.parameters(), made.model.parameters(), strict=True))


def test_nets_with_live_methods_and_other_heads_work(net: nn.Module, few: Tensor) -> None:
    assert isinstance(net, nn.Sequential)
    masked = copy.deepcopy(net)
    hardy.attach(masked, [DefectiveConv(keep=0.7)], example=few[:1], seed=0)
    conv = Flat(nn.Sequential(*net[:5], nn.Conv2d(16, 10, 1), nn.AdaptiveAvgPool2d(1))).eval()
    for model, site in ((masked, "6@input"), (conv, "net.5@input")):
        made = plant(model, few, threat=LINF, key=keys(24))
        found = attack(made.model, made.x, made.y, PGD(steps=20), threat=LINF).success
        assert made.sites == (site,) and len(made.x) >= 20 and found.float().mean() >= 0.9
    assert hardy.strip(masked, live=True)(few).shape == (24, 10)


@pytest.mark.parametrize("wrap", [NoHead, nn.DataParallel])
def test_logits_serve_where_no_classifier_is_found(net: nn.Module, few: Tensor, wrap: type[nn.Module]) -> None:
    assert isinstance(net, nn.Sequential)
    model = NoHead(net[:5]).eval() if wrap is NoHead else nn.DataParallel(net).eval()
    made = plant(model, few, threat=LINF, key=keys(24))
    assert made.sites == () and made.model.get_buffer("weight").shape == (len(made.x), 10)
    assert len(made.x) >= 12 and (score(made, made.witness) > 0).all()


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * 0 + x.new_tensor([1.0, 0.0])


def test_nothing_planted_is_nothing_found(few: Tensor) -> None:
    def find(*_: object) -> Tensor:
        raise AssertionError("there is nothing to find")

    result = self_test(Constant().eval(), few, threat=LINF, key=keys(24), find=find, inner=20)
    assert result == SelfTest(planted=0, found=0, random=0, tried=24)
    made = plant(Constant().eval(), few, threat=LINF, key=keys(24), inner=20)
    assert made.witness.shape == (0, 1, 8, 8) and len(random_search(made, threat=LINF, key=keys(0))) == 0


def test_what_find_says_is_counted(net: nn.Module, few: Tensor) -> None:
    seen: list[tuple[int, ...]] = []

    def find(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append((*model(x).shape, int(y.sum())))
        return torch.arange(len(x)) < 5

    result = self_test(net, few, threat=LINF, key=keys(24), find=find, inner=30)
    assert (result.found, result.planted, result.tried) == (5, 24, 24) and seen == [(24, 2, 0)]


class Lists(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return [x]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(0, 1, 8, 8), "key": keys(0)}, ShapeError, "n >= 1"),
        ({"x": torch.zeros(2, 1, 8, 8) + 2}, DataError, "self_test: x must be pixels in"),
        ({"x": torch.zeros(2, 1, 8, 8, dtype=torch.float64)}, DataError, "float32"),
        ({"inner": 0}, ParameterError, "inner must be at least 1; got 0"),
        ({"batch_size": 0}, ParameterError, "batch_size must be at least 1"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, ParameterError, "eval mode"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval().half()}, DataError, "float32"),
        ({"model": Lists().eval()}, ShapeError, "Lists: model"),
        ({"find": lambda *_: torch.ones(1, dtype=torch.bool)}, ShapeError, "find must return one bool per image"),
        ({"find": lambda _, x, __: torch.zeros(len(x))}, ShapeError, "find must return one bool per image"),
    ],
)
def test_bad_input_fails_with_a_reason(change: dict[str, Any], error: type[HardyError], text: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    given = {"model": model, "x": torch.rand(2, 1, 8, 8), "key": keys(2), "find": by(PGD(), LINF), "inner": 5}
    given |= {"threat": LINF} | change
    with pytest.raises(error, match=text):
        self_test(given.pop("model"), given.pop("x"), **given)


def test_keys_must_be_one_per_image(net: nn.Module) -> None:
    with pytest.raises(ShapeError, match=r"key must be \(2,\), one per image; got \(3,\)"):
        module._check(net, torch.rand(2, 1, 8, 8), keys(3), {})


def test_what_the_net_itself_does_not_confirm_is_dropped(planted: Planted) -> None:
    odd = copy.deepcopy(planted)
    odd.model.get_buffer("bias")[2] += 2  # the image is "border" as well
    odd.model.get_buffer("bias")[4] -= 2  # the witness is "inside" as well
    odd.witness[7] = planted.witness[7] + 0.001 * (planted.witness[7] - planted.x[7]).sign()
    with torch.no_grad():
        assert module._verified(odd, LINF, 10) == [i for i in range(24) if i not in {2, 4, 7}]


def test_a_random_net_gives_the_same_test_and_does_not_move_the_generators(net: nn.Module, few: Tensor) -> None:
    noisy = Wrapped(net, lambda x: x + 0.001 * torch.randn_like(x)).eval()
    state = torch.get_rng_state()
    first = plant(noisy, few, threat=LINF, key=keys(24), inner=20)
    random_search(first, threat=LINF, key=keys(24), draws=4)
    assert torch.equal(torch.get_rng_state(), state) and len(first.x) > 20
    torch.rand(1)
    second = plant(noisy, few, threat=LINF, key=keys(24), inner=20)
    assert torch.equal(first.model.get_buffer("weight"), second.model.get_buffer("weight"))


def test_random_search_has_the_keys_of_the_planted_images(
    net: nn.Module, few: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []

    def spy(planted: Planted, *, key: Tensor, draws: int, **_: Any) -> Tensor:
        given.append(key)
        assert draws == 30
        return torch.ones(len(planted.x), dtype=torch.bool)

    monkeypatch.setattr(module, "random_search", spy)
    doubled = torch.cat([few[:1], few[:4]])
    result = self_test(net, doubled, threat=LINF, key=keys(5), find=by(PGD(steps=1), LINF), inner=30)
    assert torch.equal(given[0], keys(5)[torch.tensor([0, 2, 3, 4])]) and result.random == 4 and result.tried == 5
