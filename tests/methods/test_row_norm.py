"""No row is above the bound when a step looks at it or when training ends, and nothing else changes."""

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hardy
from hardy.errors import AttachError, LayerNotFoundError, ParameterError
from hardy.methods import DefectiveConv
from hardy.methods.row_norm import CARD, RowNorm, RowNormInsert, row_factors
from hardy.objective import Objective
from hardy.surgery import Attachment, attach, attachments, strip
from hardy.training import TrainRecipe, train

Y = torch.arange(4)


def net(*, norm: bool = True, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 8, 2), (8, 16, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), *([nn.BatchNorm2d(outputs)] if norm else []), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def held(a: Attachment) -> RowNormInsert:
    assert isinstance(a.insert, RowNormInsert)
    return a.insert


def norms(weight: Tensor) -> Tensor:
    return weight.detach().abs().flatten(1).sum(1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


class TestFactors:
    @settings(max_examples=60, deadline=None)
    @given(
        shape=st.sampled_from([(3, 5), (4, 2, 3, 3), (6, 1, 3, 1), (1, 1)]),
        bound=st.floats(0.01, 100),
        spread=st.floats(0.001, 100),
        seed=st.integers(0, 10**6),
    )
    def test_equal_a_row_by_row_reference(self, shape: tuple[int, ...], bound: float, spread: float, seed: int) -> None:
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread
        factors = row_factors(weight, bound=bound)
        for row, factor in zip(weight, factors.tolist(), strict=True):
            norm = sum(abs(w) for w in row.flatten().tolist())
            assert factor == pytest.approx(min(1.0, bound / norm), rel=1e-5)
            assert (row.double().abs().sum() * factor).item() <= bound * (1 + 1e-5)
            assert factor == 1 or norm > bound * (1 - 1e-5)  # rows within the bound are left as they are, bit for bit

    def test_a_row_of_zeros_and_half_precision(self) -> None:
        assert row_factors(torch.zeros(2, 3), bound=0.5).tolist() == [1, 1]
        half = torch.full((1, 3000), 0.01, dtype=torch.bfloat16)  # in half precision the sum would stop growing at 4
        factors = row_factors(half, bound=1.0)
        assert factors.dtype == torch.float32 and factors.item() == pytest.approx(1 / (3000 * half[0, 0].item()))

    @pytest.mark.parametrize("groups", [1, 4])
    def test_the_largest_row_is_what_a_convolution_can_enlarge_a_change_by(self, groups: int) -> None:
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups).double()
        worst = norms(conv.weight).max()
        x = torch.zeros(1, 4, 7, 7, dtype=torch.float64)
        change = torch.randn(64, 4, 7, 7, dtype=torch.float64).sign()
        seen = (conv(x + change) - conv(x)).abs().max()
        assert seen <= worst + 1e-12
        row = int(norms(conv.weight).argmax())  # and there is a change of 1 that reaches it
        group = row // (8 // groups)
        change = torch.zeros(1, 4, 7, 7, dtype=torch.float64)
        change[0, group * 4 // groups : (group + 1) * 4 // groups, 2:5, 2:5] = conv.weight[row].detach().sign()
        assert (conv(x + change) - conv(x))[0, row, 3, 3].item() == pytest.approx(worst.item())


class TestTraining:
    def test_every_step_looks_at_bounded_weights(self, x: Tensor) -> None:
        model = net()
        (a,) = attach(model, [RowNorm(bound=1.5)], example=x, seed=0)
        objective, seen = Objective(model), []
        optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(lambda m, _args, _out: seen.append(norms(m.weight).max().item()))
        left = []
        for _ in range(4):
            optimizer.zero_grad()
            objective(x, Y)[1]["task"].backward()
            optimizer.step()
            left.append(max(norms(w).max().item() for w in weights(model).values()))
        assert len(seen) == 4 * 4 and max(seen) <= 1.5 * (1 + 1e-5) and max(left) > 1.6  # the steps lead out
        a.insert.epoch_end(0)
        assert max(norms(w).max().item() for w in weights(model).values()) <= 1.5 * (1 + 1e-5)

    def test_equals_bounding_after_each_step(self, x: Tensor) -> None:
        model, plain = net(), net()
        (a,) = attach(model, [RowNorm(bound=1.5)], example=x, seed=0)
        a.insert.epoch_end(-1)  # both begin within the bound

        def bound() -> None:
            with torch.no_grad():
                for w in weights(plain).values():
                    for row in w:
                        row.mul_(min(1.0, 1.5 / row.abs().sum().item()))

        bound()
        for each in (model, plain):
            objective = Objective(each)
            optimizer = torch.optim.SGD(objective.parameters(), lr=0.3, momentum=0.9)
            for _ in range(4):
                optimizer.zero_grad()
                objective(x, Y)[1]["task"].backward()
                optimizer.step()
                if each is plain:
                    bound()
        a.insert.epoch_end(0)
        for name, w in weights(plain).items():
            torch.testing.assert_close(weights(model)[name], w, atol=1e-4, rtol=1e-4)

    def test_scales_rows_and_keeps_their_direction_and_the_biases(self, x: Tensor) -> None:
        model, before = net(), net()
        (a,) = attach(model, [RowNorm(bound=2.0)], example=x, seed=0)
        a.insert.epoch_end(0)
        changed = 0
        for name, w in weights(model).items():
            old = weights(before)[name]
            within = norms(old) <= 2.0
            assert torch.equal(w[within], old[within])
            torch.testing.assert_close(norms(w)[~within], torch.full_like(norms(w)[~within], 2.0))
            cosine = nn.functional.cosine_similarity(w.flatten(1), old.flatten(1))
            torch.testing.assert_close(cosine, torch.ones_like(cosine))
            changed += int((~within).sum())
        assert changed > 10
        others = {k: v for k, v in model.state_dict().items() if k.removesuffix(".weight") not in weights(model)}
        assert all(torch.equal(v, before.state_dict()[k]) for k, v in others.items())

    def test_the_net_of_a_whole_training_is_within_the_bound_and_plain(self, tmp_path: Path) -> None:
        data = hardy.load_data("digits", split="train").limit(128)
        worst = []
        for methods in ([], [RowNorm(bound=1.0)]):
            model = hardy.load_model("lenet5", num_classes=10, in_channels=1, seed=0)
            run = train(
                model,
                data,
                methods=methods,
                options=TrainRecipe(epochs=2, batch_size=32, lr=0.1),
                augment=(),
                device="cpu",
                out=tmp_path / str(len(methods)),
            )
            worst.append(max(norms(w).max().item() for w in weights(run.model).values()))
        assert worst[0] > 2 and worst[1] <= 1 + 1e-5
        loaded = hardy.load(tmp_path / "1" / "model.safetensors")
        assert attachments(loaded) == [] and torch.equal(loaded(data.images()[:4]), run.model(data.images()[:4]))

    def test_logits_of_a_net_without_norms_move_by_at_most_the_product_of_the_bounds(self, x: Tensor) -> None:
        model = net(norm=False).eval()
        with torch.no_grad():
            for w in weights(model).values():
                w.mul_(10).abs_()  # all rows above the bound; without signs nearly all of it can be reached
        (a,) = attach(model, [RowNorm(bound=0.9)], example=x, seed=0)
        a.insert.epoch_end(0)
        change = 0.1 * torch.randn(32, *x.shape[1:], generator=torch.Generator().manual_seed(1)).sign()
        change[0] = 0.1
        moved = (model(x[:1] + change) - model(x[:1])).abs().amax(1)
        assert (moved <= 0.1 * 0.9**4).all() and moved[0] > 0.5 * 0.1 * 0.9**4


class TestAttach:
    def test_attaching_and_evaluating_change_no_weight(self, x: Tensor) -> None:
        model, plain = net(), net()
        a = RowNorm(bound=0.5).attach(model, example=x, seed=0)
        Objective(model).eval()(x, Y)
        model.eval()(x)
        assert all(torch.equal(v, plain.state_dict()[k]) for k, v in model.state_dict().items())
        assert list(model.state_dict()) == list(plain.state_dict()) and a.sites == ()
        assert torch.equal(strip(model)(x), model(x)) and attachments(strip(model)) == []
        a.detach()
        assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]

    @pytest.mark.parametrize(
        ("sites", "want"),
        [
            (("*",), ("0", "3", "6", "11")),
            (("all",), ("0", "3", "6")),
            (("stem", "11"), ("0", "11")),
            (("top",), ("6",)),
            (("[36]", "6"), ("3", "6")),
        ],
    )
    def test_sites_choose_layers(self, sites: tuple[str, ...], want: tuple[str, ...], x: Tensor) -> None:
        model, before = net(), net()
        a = RowNorm(bound=0.5, sites=sites).attach(model, example=x, seed=0)
        assert held(a).names == want
        held(a).project()
        changed = [name for name, w in weights(model).items() if not torch.equal(w, weights(before)[name])]
        assert tuple(changed) == want

    def test_a_net_without_convolutions_works(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        a = RowNorm().attach(model, example=torch.rand(1, 3, 2, 2), seed=0)
        assert held(a).names == ("1", "3") and a.notes == ()

    def test_a_norm_that_undoes_the_scale_is_noted(self, x: Tensor) -> None:
        class StdConv2d(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                w = self.weight / self.weight.std((1, 2, 3), keepdim=True)
                return nn.functional.conv2d(x, w, self.bias)

        note = "a norm undoes the scale of the rows, so the bound says nothing about what these layers do: "
        assert RowNorm().attach(net(), example=x, seed=0).notes == (note + "0, 3, 6 (3 in all)",)
        assert RowNorm(sites=("11",)).attach(net(), example=x, seed=0).notes == ()
        assert RowNorm().attach(net(norm=False), example=x, seed=0).notes == ()
        own = nn.Sequential(StdConv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 10 * 8, 4))
        assert RowNorm().attach(own, example=x, seed=0).notes == (note + "0 (1 in all)",)
        # and it is true: the norm gives the same whatever the scale
        model, plain = net(), net()
        a = RowNorm(bound=0.5, sites=("all",)).attach(model, example=x, seed=0)
        held(a).project()
        torch.testing.assert_close(model(x), plain(x), atol=1e-2, rtol=1e-2)  # but for the eps of the norm

    def test_frozen_weights_stay(self, x: Tensor) -> None:
        model, before = net(), net()
        model[0].requires_grad_(requires_grad=False)
        a = RowNorm(bound=0.5).attach(model, example=x, seed=0)
        held(a).project()
        same = {name: torch.equal(w, weights(before)[name]) for name, w in weights(model).items()}
        assert same == {"0": True, "3": False, "6": False, "11": False}

    def test_a_copy_bounds_its_own_weights(self, x: Tensor) -> None:
        model, before = net(), net()
        RowNorm(bound=0.5).attach(model, example=x, seed=0)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            Objective(twin)(x, Y)
            assert max(norms(w).max().item() for w in weights(twin).values()) <= 0.5 * (1 + 1e-5)
        assert all(torch.equal(w, weights(before)[name]) for name, w in weights(model).items())

    def test_works_beside_other_methods(self, x: Tensor) -> None:
        model = net()
        attach(model, [DefectiveConv(), RowNorm(bound=1.0), RowNorm(bound=0.5, sites=("11",))], example=x, seed=0)
        Objective(model)(x, Y)[1]["task"].backward()
        assert norms(weights(model)["11"]).max() <= 0.5 * (1 + 1e-5)
        assert 0.5 < norms(weights(model)["0"]).max() <= 1 + 1e-5

    @pytest.mark.parametrize(
        ("sites", "says"),
        [
            (("1",), "row_norm: '1' must name a convolution or linear layer; there is none"),
            (("0", "0#1"), "row_norm: a site must be a layer; got '0#1', a call or an input of one"),
            (("3@input",), "row_norm: a site must be a layer; got '3@input'"),
        ],
    )
    def test_a_site_without_weights_is_an_error(self, sites: tuple[str, ...], says: str, x: Tensor) -> None:
        model = net()
        with pytest.raises(AttachError, match=says):
            RowNorm(sites=sites).attach(model, example=x, seed=0)
        assert attachments(model) == []

    def test_an_unknown_layer_is_an_error(self, x: Tensor) -> None:
        with pytest.raises(LayerNotFoundError, match="no layer 'nowhere'"):
            RowNorm(sites=("nowhere",)).attach(net(), example=x, seed=0)

    def test_weights_that_are_computed_are_an_error(self, x: Tensor) -> None:
        model = net()
        nn.utils.parametrizations.spectral_norm(model[3])
        with pytest.raises(AttachError, match="row_norm: the weight of 3 must be a parameter of its own"):
            RowNorm().attach(model, example=x, seed=0)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_cannot_be_is_an_error(bound: float) -> None:
    with pytest.raises(ParameterError, match="RowNorm: bound must be above 0, at most 1e6; got"):
        RowNorm(bound=bound)


def test_there_must_be_a_site() -> None:
    with pytest.raises(ParameterError, match="RowNorm: sites must be one or more names"):
        RowNorm(sites=())


def test_says_what_it_is() -> None:
    assert not CARD.live and not CARD.twin and "inspired by" in CARD.paper
    assert any("undoes the scale" in note for note in CARD.notes)
