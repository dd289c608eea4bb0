"""Values shrink as the formula says, thresholds are learned and saved, and attacks see through what is silent."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

import hardy
from hardy.attacks import PGD, Square, attack
from hardy.errors import AttachError, ParameterError, ShapeError
from hardy.evaluation.adaptive import twin_of, without_methods
from hardy.methods.soft_threshold import CARD, Shrinkage, SoftThreshold, shrinkage_slope, soft_threshold
from hardy.objective import Objective
from hardy.surgery import Attachment, attachments, capture, strip
from hardy.threats import Threat
from hardy.training import TrainRecipe, train
from hardy.training.optim import make_optimizer


def net(*, classes: int = 4, channels: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((channels, 8, 1), (8, 8, 2), (8, 16, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def layers(a: Attachment) -> dict[str, Shrinkage]:
    found = {site: tap.get_submodule("layer") for site, tap in zip(a.sites, a.insert.taps, strict=True)}
    return {site: layer for site, layer in found.items() if isinstance(layer, Shrinkage)}


numbers = st.floats(-10, 10, width=32)


class TestFunction:
    @settings(max_examples=100, deadline=None)
    @given(us=st.lists(numbers, min_size=1, max_size=8), lam=st.floats(0, 5, width=32))
    def test_equals_the_formula(self, us: list[float], lam: float) -> None:
        got = soft_threshold(torch.tensor(us), torch.tensor([lam]))
        for u, s in zip(us, got.tolist(), strict=True):
            want = math.copysign(max(abs(u) - lam, 0.0), u)
            assert s == pytest.approx(want, abs=1e-5)
            assert (s == 0) is (abs(u) <= lam or want == 0)  # exactly zero inside, and nowhere else

    @settings(max_examples=100, deadline=None)
    @given(u=numbers, v=numbers, lam=st.floats(0, 5))
    def test_is_1_lipschitz_and_odd(self, u: float, v: float, lam: float) -> None:
        points, t = torch.tensor([u, v, -u], dtype=torch.float64), torch.tensor([lam], dtype=torch.float64)
        s = soft_threshold(points, t)
        assert abs(s[0] - s[1]) <= abs(u - v) + 1e-12 and s[2] == -s[0] and abs(s[0]) <= abs(u)

    def test_gradients_are_those_of_the_formula(self) -> None:
        g = torch.Generator().manual_seed(0)
        u = torch.randn(5, 3, 4, generator=g, dtype=torch.float64).requires_grad_()
        lam = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64)[:, None].requires_grad_()
        assert torch.autograd.gradcheck(soft_threshold, (u, lam))
        du, dlam = torch.autograd.grad(soft_threshold(u, lam).sum(), (u, lam))
        out = u.abs() > lam
        assert torch.equal(du, out.double()) and 0.2 < out.double().mean() < 0.8
        torch.testing.assert_close(dlam[:, 0], -(out * u.sign()).sum((0, 2)))

    def test_before_a_relu_it_is_a_relu_that_begins_later(self) -> None:
        u = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        lam = torch.tensor([0.0, 0.3, 2.0])[:, None, None]
        assert torch.equal(soft_threshold(u, lam).relu(), (u - lam).relu())

    def test_the_slope_rises_from_next_to_0_to_1_through_a_half_at_the_threshold(self) -> None:
        lam = torch.tensor([0.5])
        u = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
        want = torch.tensor([1 / (1 + math.exp(8 - 16 * v)) for v in u.tolist()])
        torch.testing.assert_close(shrinkage_slope(u, lam), want)
        torch.testing.assert_close(shrinkage_slope(-u, lam), want)
        assert shrinkage_slope(torch.tensor([0.0, 1e-3]), torch.zeros(1)).tolist() == [0.5, 1.0]  # no 0 / 0


class TestLayer:
    @pytest.mark.parametrize("threshold", [1e-6, 0.1, 1.0, 3.3, 50.0])
    def test_begins_with_its_threshold_in_every_channel(self, threshold: float) -> None:
        torch.testing.assert_close(Shrinkage(3, threshold=threshold).lam, torch.full((3,), threshold))

    def test_thresholds_never_fall_below_zero(self) -> None:
        layer, u = Shrinkage(2, threshold=0.1), torch.full((1, 2, 1, 1), 3.0)
        optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
        seen = []
        for _ in range(20):  # the larger the output the better: thresholds want to go down
            optimizer.zero_grad()
            (-layer(u).sum()).backward()
            optimizer.step()
            seen.append(layer.lam.detach().clone())
        assert all((lam >= 0).all() for lam in seen) and (seen[-1] < seen[0]).all() and (seen[-1] < 1e-3).all()
        layer.soft = True
        v = torch.zeros(1, 2, 1, 1, requires_grad=True)
        with torch.no_grad():
            layer.raw.fill_(-300)  # softplus gives 0
        layer(v).sum().backward()
        assert v.grad is not None and v.grad.isfinite().all()

    def test_each_channel_has_its_own(self) -> None:
        layer = Shrinkage(3, threshold=0.1)
        with torch.no_grad():
            layer.raw.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        for shape in ((2, 3, 4, 5), (2, 3, 7), (4, 3)):
            u = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            want = [F.softshrink(u[:, c], layer.lam[c].item()) for c in range(3)]
            torch.testing.assert_close(layer(u), torch.stack(want, 1))

    def test_other_channels_than_it_was_made_for_are_an_error(self) -> None:
        with pytest.raises(ShapeError, match=r"soft_threshold: the thresholds are for 3 channels; got \(2, 4, 5, 5\)"):
            Shrinkage(3, threshold=0.1)(torch.zeros(2, 4, 5, 5))


class TestAttach:
    def test_shrinks_what_the_norm_gives_in_both_modes(self, x: Tensor) -> None:
        model, plain = net(), net()
        a = SoftThreshold(threshold=0.4).attach(model, example=x, seed=0)
        assert a.sites == ("1", "4") and a.notes == () and a.insert.live
        for mode in (False, True):
            model.train(mode), plain.train(mode)
            with torch.no_grad(), capture(model, ["1"]) as seen, capture(plain, ["1"]) as bare:
                model(x), plain(x)
            torch.testing.assert_close(seen["1"], F.softshrink(bare["1"], 0.4))
            assert 0.1 < (seen["1"] == 0).float().mean() < 0.9

    @pytest.mark.parametrize(("position", "site"), [("post_conv", "0"), ("post_norm", "1"), ("post_activation", "2")])
    def test_the_position_says_where(self, position: str, site: str, x: Tensor) -> None:
        spec = SoftThreshold(position=position, sites=("stem",))  # type: ignore[arg-type]  # a parameter
        assert spec.attach(net(), example=x, seed=0).sites == (site,)

    def test_a_place_without_a_norm_is_noted(self, x: Tensor) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ELU(), nn.Flatten(), nn.Linear(8 * 10 * 8, 4))
        a = SoftThreshold().attach(model, example=x, seed=0)
        assert a.sites == ("0",) and "after the convolution itself" in a.notes[0]

    def test_works_at_any_size_and_on_vectors(self, x: Tensor) -> None:
        model = net().eval()
        a = SoftThreshold(sites=("stem", "10")).attach(model, example=x, seed=0)
        assert [len(layer.raw) for layer in layers(a).values()] == [8, 16]  # 10: what flatten gives, (n, 16)
        assert model(torch.rand(2, 3, 21, 33)).shape == (2, 4)

    def test_training_moves_each_threshold_and_weight_decay_does_not(self, x: Tensor) -> None:
        model = net()
        a = SoftThreshold().attach(model, example=x, seed=0)
        raws = [layer.raw for layer in layers(a).values()]
        groups = make_optimizer(model, TrainRecipe(weight_decay=0.5)).param_groups
        free = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
        assert all(any(raw is p for p in free) for raw in raws)
        losses = Objective(model)(x, torch.arange(4))[1]
        losses["task"].backward()
        assert all(raw.grad is not None and (raw.grad != 0).all() for raw in raws)

    def test_comes_off_again_only_with_live(self, x: Tensor) -> None:
        model, want = net().eval(), net().eval()
        SoftThreshold(threshold=0.5).attach(model, example=x, seed=0)
        assert not torch.equal(model(x), want(x))
        assert torch.equal(strip(model)(x), model(x)) and torch.equal(strip(model, live=True)(x), want(x))
        bare = without_methods(model)
        assert bare is not None and torch.equal(bare(x), want(x))


class StopError(Exception):
    """Stops a training."""


def stop(progress: object) -> None:
    if getattr(progress, "row", None) is not None:
        raise StopError


class TestFiles:
    def test_learned_thresholds_are_saved_resumed_and_loaded(self, tmp_path: Path) -> None:
        data = hardy.load_data("digits", split="train").limit(128)
        methods, options = [SoftThreshold(threshold=0.2)], TrainRecipe(epochs=2, batch_size=64, lr=0.1)
        made = []
        for name in ("whole", "part"):
            for resume in (False, True)[: 1 + (name == "part")]:
                model = hardy.load_model("cifar_resnet8", num_classes=10, in_channels=1, args={"width": 4}, seed=0)
                kept = {"methods": methods, "options": options, "augment": (), "seed": 0, "device": "cpu"}
                if name == "part" and not resume:
                    with pytest.raises(StopError):
                        train(model, data, out=tmp_path / name, on_progress=stop, **kept)  # type: ignore[arg-type]
                else:
                    made.append(train(model, data, out=tmp_path / name, resume=resume, **kept))  # type: ignore[arg-type]
        whole, resumed = (run.model for run in made)
        assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
        lams = [layer.lam for layer in layers(attachments(whole)[0]).values()]
        assert all((lam - 0.2).abs().min() > 1e-6 for lam in lams)
        loaded = hardy.load(tmp_path / "part" / "model.safetensors")
        images = data.images()[:8]
        assert torch.equal(loaded(images), whole(images)) and attachments(loaded)[0].insert.spec == methods[0]
        again = list(layers(attachments(loaded)[0]).values())
        assert all(
            torch.equal(layer.lam, lam) and layer.raw.requires_grad for layer, lam in zip(again, lams, strict=True)
        )


class TestTwin:
    """What attacks get to see."""

    def test_gives_the_values_of_the_net_and_smooth_slopes(self, x: Tensor) -> None:
        model = net().eval()
        a = SoftThreshold(threshold=0.4).attach(model, example=x, seed=0)
        twin = twin_of(model)
        assert twin is not None
        torch.testing.assert_close(twin(x), model(x), atol=1e-5, rtol=1e-5)
        assert not any(layer.soft for layer in layers(a).values())  # the twin is a copy
        hard = layers(a)["1"]
        soft = layers(attachments(twin)[0])["1"]
        u = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.testing.assert_close(soft(u), hard(u), atol=1e-5, rtol=0)
        w = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(1))
        (g,) = torch.autograd.grad((soft(u) * w).sum(), u)
        torch.testing.assert_close(g, w * shrinkage_slope(u, hard.lam[:, None, None]))
        assert (g != 0).all()

    def test_a_relu_behind_it_does_not_stop_the_gradient_of_what_is_silent(self) -> None:
        layer = Shrinkage(1, threshold=1.0)
        grads = []
        for soft in (False, True):
            layer.soft = soft
            u = torch.tensor([[[[0.9, -0.9]]]], requires_grad=True)
            layer(u).relu().sum().backward()
            assert u.grad is not None
            grads.append(u.grad.flatten().tolist())
        assert grads[0] == [0, 0] and grads[1] == [pytest.approx(1 / (1 + math.exp(0.8))), 0]

    def test_pgd_is_blind_on_a_silent_net_and_sees_through_the_twin(self) -> None:
        x, y, model = silent()
        assert (model(x).argmax(1) == y).float().mean() > 0.9
        threat, twin = Threat("linf", 0.2), twin_of(model)
        assert twin is not None
        blind = attack(model, x, y, PGD(steps=10), threat=threat)
        seeing = attack(model, x, y, PGD(steps=10), threat=threat, sources=[twin])
        assert blind.zero_gradients.sum() > 0.6 * blind.gradients.sum()
        assert seeing.zero_gradients.sum() == 0
        queries = attack(model, x, y, Square(queries=300), threat=threat)  # needs no gradient: it finds what PGD misses
        broken = [float((a.success & a.clean_correct).float().mean()) for a in (blind, queries, seeing)]
        assert broken[0] < 0.2 and broken[1] > broken[0] and broken[2] > broken[0] + 0.2 and broken[2] >= broken[1]

    def test_the_evaluation_attacks_through_it_by_itself(self) -> None:
        x, y, model = silent()
        result = hardy.evaluate(
            model, x, y, threat=Threat("linf", 0.2), axes=["white_box"], suite=[PGD(steps=10)], seed=0
        )
        points = {p.label: p for p in result.axis("white_box").points}
        assert {"pgd", "pgd, twin"} <= set(points)
        assert result.accuracy("white_box") < points["pgd"].accuracy - 0.2
        (check,) = [c for c in result.checks if c.code == "zero_gradient"]
        assert check.status == "pass" and "0 of" in check.evidence  # the gradients of the twin are the ones to judge


def silent() -> tuple[Tensor, Tensor, nn.Module]:
    """Train a net to tell zeros from other digits, then silence what it does not see clearly."""
    data = load_digits()
    x = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    y = (torch.tensor(data.target) == 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.Flatten(),
            nn.Linear(256, 2),
        )
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for batch in torch.randperm(1200).repeat(4).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    SoftThreshold(threshold=2.5, sites=("4",)).attach(model, example=x[:1], seed=0)
    return x[1300:1400].clone(), y[1300:1400].clone(), model.eval()


@pytest.mark.parametrize("threshold", [0.0, -0.1, math.nan, math.inf])
def test_a_threshold_that_cannot_be_is_an_error(threshold: float) -> None:
    with pytest.raises(ParameterError, match="SoftThreshold: threshold must be above 0, at most 1e6; got"):
        SoftThreshold(threshold=threshold)


def test_an_unknown_position_is_an_error() -> None:
    spec = SoftThreshold()
    object.__setattr__(spec, "position", "all")  # past the type checker of the tests
    with pytest.raises(ParameterError, match=r"SoftThreshold: position must be one of .*; got 'all'"):
        spec.__post_init__()


def test_a_place_without_channels_is_an_error(x: Tensor) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(dim=(1, 2, 3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.sum = nn.Conv2d(3, 4, 3), Sum()

        def forward(self, x: Tensor) -> Tensor:
            total: Tensor = self.sum(self.conv(x))
            return total[:, None].expand(-1, 2)

    model = Model()
    with pytest.raises(AttachError, match=r"soft_threshold: sum must give \(n, c, ...\); got \(1,\)"):
        SoftThreshold(sites=("sum",)).attach(model, example=x, seed=0)
    assert attachments(model) == []


def test_a_copy_has_thresholds_of_its_own(x: Tensor) -> None:
    model = net().eval()
    SoftThreshold().attach(model, example=x, seed=0)
    twin, before = copy.deepcopy(model), model(x)
    with torch.no_grad():
        for layer in layers(attachments(twin)[0]).values():
            layer.raw.fill_(2.0)
    assert torch.equal(model(x), before) and not torch.equal(twin(x), before)


def test_says_what_it_is() -> None:
    assert CARD.kind == "layer" and CARD.live and "inspired by" in CARD.paper
    assert any("masking warning" in note for note in CARD.notes)
