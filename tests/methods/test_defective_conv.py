"""Masks have exactly the promised zeros, come after the norm, are fixed for good, and belong to one input size."""

import copy
import dataclasses
import io
import math
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

import hardy
from hardy import seeding
from hardy.errors import AttachError, LayerNotFoundError, ParameterError, ShapeError
from hardy.methods.defective_conv import (
    CARD,
    PRESETS,
    DefectiveConv,
    DefectiveMask2d,
    Sampling,
    _smallest,
    defective_mask,
)
from hardy.models import BUILTIN, Arg
from hardy.safefile import read_header, read_tensors, write_tensors
from hardy.surgery import Attachment, attach, attachments, capture
from hardy.training import build_methods, load_recipe


def net(*, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 8, 1), (8, 8, 2), (8, 8, 1), (8, 16, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)]
        layers += [nn.BatchNorm2d(outputs)] if norm else []
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def sample(
    shape: tuple[int, int, int], keep: float, sampling: Sampling = "exact", *, seed: int = 0, purpose: str = "test"
) -> Tensor:
    return defective_mask(shape, keep=keep, sampling=sampling, seed=seed, purpose=purpose)


class TestMask:
    @settings(max_examples=100, deadline=None)
    @given(
        shape=st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12)),
        thousandths=st.integers(0, 1000),
        sampling=st.sampled_from(["exact", "per_channel", "same"]),
    )
    @example(shape=(64, 5, 5), thousandths=900, sampling="exact")  # 1 - 0.9 is a little less than 0.1 in binary
    @example(shape=(10, 1, 1), thousandths=700, sampling="exact")
    @example(shape=(1, 1, 1), thousandths=500, sampling="exact")
    @example(shape=(3, 5, 2), thousandths=900, sampling="per_channel")
    @example(shape=(3, 5, 2), thousandths=700, sampling="same")
    def test_has_exactly_the_floor_of_the_share_of_zeros(
        self, shape: tuple[int, int, int], thousandths: int, sampling: Sampling
    ) -> None:
        mask = sample(shape, thousandths / 1000, sampling)
        assert mask.shape == shape and mask.dtype == torch.float32 and mask.is_contiguous()
        assert ((mask == 0) | (mask == 1)).all()
        c, h, w = shape
        if sampling == "exact":
            zeros = (1000 - thousandths) * c * h * w // 1000  # in whole numbers: no rounding
            assert int((mask == 0).sum()) == zeros
        else:
            zeros = (1000 - thousandths) * h * w // 1000
            assert (mask == 0).sum((1, 2)).tolist() == [zeros] * c
        if sampling == "same":
            assert (mask == mask[:1]).all()

    @pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.05, 1 / 3])
    @pytest.mark.parametrize("shape", [(64, 32, 32), (128, 16, 16), (64, 5, 5), (2, 2, 5)])
    def test_the_shares_of_the_paper_are_exact_on_its_maps(self, keep: float, shape: tuple[int, int, int]) -> None:
        zeros = (1 - Fraction(keep).limit_denominator(1000)) * math.prod(shape)
        assert int((sample(shape, keep) == 0).sum()) == math.floor(zeros)

    @pytest.mark.parametrize("sampling", ["exact", "per_channel", "same"])
    def test_equals_a_mask_drawn_by_sorting(self, sampling: Sampling) -> None:
        c, h, w, keep = 3, 40, 50, 0.37
        rows, size = {"exact": (1, c * h * w), "per_channel": (c, h * w), "same": (1, h * w)}[sampling]
        key = seeding.keys(seeding.root(4, "place"), torch.arange(rows))
        want = torch.ones(rows, size)
        for row, order in enumerate(seeding.permutation(key, 0, size)):
            want[row, order[: math.floor((1 - keep) * size)]] = 0
        assert torch.equal(
            sample((c, h, w), keep, sampling, seed=4, purpose="place"), want.reshape(-1, h, w).expand(c, h, w)
        )

    def test_equal_numbers_go_in_order(self) -> None:
        u = torch.tensor([[0.5 + 2.0**-24, 0.25, 0.5, 0.5, 2.0**-24], [0.375, 0.375, 0.375, 0.375, 0.375]])
        marked = [_smallest(u, count).int().tolist() for count in range(6)]
        assert [row for row, _ in marked] == [
            [0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [0, 1, 0, 0, 1],
            [0, 1, 1, 0, 1],
            [0, 1, 1, 1, 1],
            [1, 1, 1, 1, 1],
        ]
        assert [row for _, row in marked] == [[1] * count + [0] * (5 - count) for count in range(6)]

    @pytest.mark.parametrize("sampling", get_args(Sampling))
    def test_every_neuron_is_equally_likely_to_go(self, sampling: Sampling) -> None:
        n, shape, keep = 300, (3, 4, 5), 0.7
        alive = torch.stack([sample(shape, keep, sampling, seed=s) for s in range(n)]).mean(0)
        assert ((alive - keep).abs() < 4.5 * (keep * (1 - keep) / n) ** 0.5).all()

    def test_exact_zeros_are_spread_over_the_whole_tensor_not_within_each_channel(self) -> None:
        masks = torch.stack([sample((16, 4, 4), 0.5, seed=s) for s in range(100)])
        per_channel = masks.sum((2, 3)).flatten().long()
        # drawn without replacement from all: hypergeometric
        want = stats.hypergeom(256, 128, 16)
        seen = torch.bincount(per_channel, minlength=17)[4:13].numpy()
        probs = want.pmf(range(4, 13))
        assert stats.chisquare(seen, probs / probs.sum() * seen.sum()).pvalue > 1e-3
        assert abs(per_channel.float().var() - want.var()) < 0.4

    @pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9])
    def test_bernoulli_neurons_stay_on_their_own(self, keep: float) -> None:
        shape, n = (8, 6, 6), 200
        counts = torch.stack([sample(shape, keep, "bernoulli", seed=s).sum() for s in range(n)])
        size = math.prod(shape)
        sd = (size * keep * (1 - keep)) ** 0.5
        assert ((counts - size * keep).abs() < 4 * sd).all()  # each mask
        assert abs(counts.mean() - size * keep) < 4 * sd / n**0.5
        assert counts.std() == pytest.approx(sd, rel=4 / (2 * n) ** 0.5)  # binomial, not a fixed number

    def test_channels_of_per_channel_masks_differ(self) -> None:
        mask = sample((32, 8, 8), 0.5, "per_channel").flatten(1)
        agree = (mask[:, None] == mask[None]).float().mean(2)
        pairs = agree[~torch.eye(32, dtype=torch.bool)]
        assert abs(pairs.mean() - 0.5) < 0.02 and pairs.max() < 0.85

    @pytest.mark.parametrize("sampling", get_args(Sampling))
    def test_depends_on_seed_and_place_only(self, sampling: Sampling) -> None:
        rng = torch.get_rng_state()
        first = sample((4, 12, 12), 0.5, sampling, purpose="a")
        assert torch.equal(first, sample((4, 12, 12), 0.5, sampling, purpose="a"))
        for seed, purpose in ((1, "a"), (0, "b")):
            other = sample((4, 12, 12), 0.5, sampling, seed=seed, purpose=purpose)
            draws = 144 if sampling == "same" else 576
            assert abs((first == other).float().mean() - 0.5) < 4.5 * (0.25 / draws) ** 0.5
        assert torch.equal(torch.get_rng_state(), rng)

    @pytest.mark.parametrize("sampling", get_args(Sampling))
    def test_a_smaller_share_masks_a_subset(self, sampling: Sampling) -> None:
        few, many = (sample((4, 6, 6), keep, sampling, purpose="a") for keep in (0.8, 0.3))
        assert (many <= few).all()  # so that curves over keep are paired

    @pytest.mark.parametrize("sampling", get_args(Sampling))
    def test_all_and_nothing(self, sampling: Sampling) -> None:
        assert (sample((2, 3, 3), 1.0, sampling) == 1).all() and (sample((2, 3, 3), 0.0, sampling) == 0).all()


class TestLayer:
    @pytest.mark.parametrize("constant", [0.0, 1.5, -0.25])
    def test_puts_the_constant_where_the_mask_is_0_in_both_modes(self, constant: float) -> None:
        mask = sample((3, 4, 5), 0.4)
        layer, x = DefectiveMask2d(mask, constant=constant), torch.randn(2, 3, 4, 5)
        want = torch.where(mask == 1, x, torch.tensor(constant))
        assert torch.equal(layer.train()(x), want) and torch.equal(layer.eval()(x), want)

    @pytest.mark.parametrize("constant", [0.0, 1.5])
    def test_gradients_to_masked_positions_are_zero(self, constant: float) -> None:
        mask = sample((3, 4, 5), 0.4)
        x = torch.randn(2, 3, 4, 5, requires_grad=True)
        (g,) = torch.autograd.grad((DefectiveMask2d(mask, constant=constant)(x) * 3).sum(), x)
        assert torch.equal(g, 3 * mask.expand(2, 3, 4, 5))

    @pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 8, 10), (2, 1, 4, 5), (2, 3, 1, 1)])
    def test_another_resolution_is_an_error_and_never_broadcast(self, shape: tuple[int, ...]) -> None:
        layer = DefectiveMask2d(torch.ones(3, 4, 5))
        with pytest.raises(
            ShapeError, match=r"the mask is for \(3, 4, 5\) feature maps; got .* resize the images to it"
        ):
            layer(torch.zeros(shape))

    def test_says_its_actual_share(self) -> None:
        assert "1x3x3, keep=0.556)" in repr(DefectiveMask2d(sample((1, 3, 3), 0.5)))
        mask = sample((3, 4, 5), 0.5, "bernoulli")
        share = mask.mean().item()
        assert share != 0.5 and f"keep={share:.3f}, constant=2" in repr(DefectiveMask2d(mask, constant=2.0))
        assert "keep" not in repr(DefectiveMask2d(mask.to("meta")))  # no values there

    @pytest.mark.parametrize("constant", [0.0, 0.3])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtype_and_memory_format_stay(self, dtype: torch.dtype, constant: float) -> None:
        x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
        mask = sample((3, 4, 5), 0.5)
        y = DefectiveMask2d(mask, constant=constant)(x)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y, torch.where(mask == 1, x, torch.tensor(constant, dtype=dtype)))


class TestAttach:
    def test_bottom_is_after_the_norm_of_the_stem_and_the_first_half_of_the_stages(self, x: Tensor) -> None:
        model = net()
        count = sum(p.numel() for p in model.parameters())
        with DefectiveConv().attach(model, example=x, seed=0) as a:
            assert a.sites == ("1", "4", "7") and a.notes == ()
            assert [tuple(b.shape) for n, b in model.named_buffers() if "_hardy" in n] == [
                (8, 12, 10),
                (8, 6, 5),
                (8, 6, 5),
            ]
            assert sum(p.numel() for p in model.parameters()) == count
        with DefectiveConv(sites=("top",)).attach(model, example=x, seed=0) as a:
            assert a.sites == ("10",)
        with DefectiveConv(sites=("stem", "stage2", "7")).attach(model, example=x, seed=0) as a:
            assert a.sites == ("1", "7", "10")

    def test_a_net_without_norms_takes_the_convolutions_and_says_so(self, x: Tensor) -> None:
        model = net(norm=False)
        with DefectiveConv().attach(model, example=x, seed=0) as a:
            assert a.sites == ("0", "2", "4")
            assert a.notes == ("after the convolution itself, as no norm takes its output: 0, 2, 4 (3 in all)",)

    def test_the_masks_are_those_of_the_function_with_the_seed_of_the_caller(self, x: Tensor) -> None:
        model = net()
        with DefectiveConv(keep=0.3).attach(model, example=x, seed=5), capture(model, ["1", "4"]) as f:
            model(x)
            for site, shape in (("1", (8, 12, 10)), ("4", (8, 6, 5))):
                want = sample(shape, 0.3, seed=5, purpose=f"defective_conv:{site}")
                assert torch.equal(f[site] == 0, (want == 0).expand(4, *shape))

    def test_layers_of_one_shape_have_different_masks(self, x: Tensor) -> None:
        model = net()
        DefectiveConv().attach(model, example=x, seed=0)
        first, second = (model.get_buffer(f"_hardy.defective_conv.taps.{i}.layer.mask") for i in (1, 2))
        assert first.shape == second.shape
        assert abs((first == second).float().mean() - 0.5) < 4.5 * (0.25 / first.numel()) ** 0.5

    def test_the_first_norm_sees_what_it_saw_without_masks(self, x: Tensor) -> None:
        masked, twin = net(), net()
        DefectiveConv(keep=0.2).attach(masked, example=x, seed=0)
        for _ in range(3):
            masked(x), twin(x)
        assert torch.equal(masked[1].running_mean, twin[1].running_mean)
        assert torch.equal(masked[1].running_var, twin[1].running_var)
        assert not torch.equal(masked[4].running_mean, twin[4].running_mean)  # its own input is masked

    def test_masked_neurons_are_exactly_zero_after_the_activation(self, x: Tensor) -> None:
        model = net()
        DefectiveConv(keep=0.5, sites=("stem",)).attach(model, example=x, seed=0)
        mask = model.get_buffer("_hardy.defective_conv.taps.0.layer.mask")
        for mode in (True, False):
            with capture(model.train(mode), ["2"]) as f:
                model(x)
            assert (f["2"][:, mask == 0] == 0).all() and (f["2"][:, mask == 1] > 0).any()

    def test_training_never_moves_the_masks(self, x: Tensor) -> None:
        model = net()
        DefectiveConv().attach(model, example=x, seed=0)
        before = {n: b.clone() for n, b in model.named_buffers() if "mask" in n}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
        for _ in range(2):
            model(x).pow(2).mean().backward()
            optimizer.step()
        assert len(before) == 3 and all(torch.equal(model.get_buffer(n), b) for n, b in before.items())

    @pytest.mark.parametrize("how", ["torch", "safetensors", "deepcopy"])
    def test_masks_are_saved_and_restored_bit_for_bit(self, x: Tensor, how: str, tmp_path: Path) -> None:
        model = net()
        DefectiveConv(keep=0.5).attach(model, example=x, seed=1)
        model(x)
        want = model.eval()(x)
        twin = net()
        DefectiveConv(keep=0.5).attach(twin, example=x, seed=2)  # other masks, until they are loaded
        assert not torch.equal(twin.eval()(x), want)
        state = model.state_dict()
        if how == "torch":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        elif how == "safetensors":
            save_file(state, tmp_path / "m.safetensors")
            state = load_file(tmp_path / "m.safetensors")
        else:
            twin, state = copy.deepcopy(twin), copy.deepcopy(state)
        twin.load_state_dict(state)
        assert torch.equal(twin(x), want)
        assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), model.buffers(), strict=True))

    def test_masks_of_another_size_do_not_load(self, x: Tensor) -> None:
        model, twin = net(), net()
        DefectiveConv().attach(model, example=x, seed=0)
        DefectiveConv().attach(twin, example=x[..., :8], seed=0)
        with pytest.raises(RuntimeError, match=r"size mismatch for _hardy.defective_conv"):
            twin.load_state_dict(model.state_dict())

    def test_another_resolution_is_an_error_in_both_modes(self, x: Tensor) -> None:
        model = net()
        DefectiveConv().attach(model, example=x, seed=0)
        for mode in (True, False):
            with pytest.raises(ShapeError, match=r"works at the input size it was attached with"):
                model.train(mode)(torch.zeros(2, 3, 16, 16))
        assert model(x[:1].expand(9, -1, -1, -1)).shape == (9, 4)

    def test_detach_restores_the_function(self, x: Tensor) -> None:
        model = net()
        want, keys = model.eval()(x), list(model.state_dict())
        a = DefectiveConv(keep=0.1).attach(model, example=x, seed=0)
        assert not torch.equal(model(x), want)
        assert [n for n in model.state_dict() if n not in keys] == [
            f"_hardy.defective_conv.taps.{i}.layer.mask" for i in range(3)
        ]
        a.detach()
        assert torch.equal(model(x), want) and list(model.state_dict()) == keys

    def test_keep_1_and_keep_0(self, x: Tensor) -> None:
        model = net().eval()
        want = model(x)
        with DefectiveConv(keep=1.0).attach(model, example=x, seed=0):
            assert torch.equal(model(x), want)
        with DefectiveConv(keep=0.0, sites=("stem",)).attach(model, example=x, seed=0):
            assert torch.equal(model(x), model(-x))

    def test_is_live(self, x: Tensor) -> None:
        model = net()
        DefectiveConv().attach(model, example=x, seed=0)
        assert attachments(model)[0].insert.live and CARD.live

    def test_the_same_module_called_twice_has_one_mask_for_both_calls(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([self.conv(x), self.conv(x)])

        model, x = Twice(), torch.randn(1, 3, 4, 4)
        with DefectiveConv(sites=("conv",)).attach(model, example=x, seed=0):
            first, second = model(x)
            assert torch.equal(first, second) and (first == 0).sum() == 24
        with DefectiveConv(sites=("conv#1",)).attach(model, example=x, seed=0):
            first, second = model(x)
            assert (first == 0).sum() == 0 and (second == 0).sum() == 24


def layers(attachment: Attachment) -> dict[str, DefectiveMask2d]:
    """Name the mask of each site, relative to the net."""
    taps = {site.removeprefix("net."): tap for site, tap in zip(attachment.sites, attachment.insert.taps, strict=True)}
    return {site: tap.layer for site, tap in taps.items()}  # type: ignore[misc]


class TestKnobs:
    @pytest.mark.parametrize("sampling", get_args(Sampling))
    def test_the_masks_in_a_net_are_drawn_as_asked(self, x: Tensor, sampling: Sampling) -> None:
        a = DefectiveConv(keep=0.3, sampling=sampling).attach(net(), example=x, seed=5)
        for site, layer in layers(a).items():
            shape = (layer.mask.shape[0], layer.mask.shape[1], layer.mask.shape[2])
            assert torch.equal(layer.mask, sample(shape, 0.3, sampling, seed=5, purpose=f"defective_conv:{site}"))

    def test_stages_may_have_shares_of_their_own(self, x: Tensor) -> None:
        model = net()
        methods = [DefectiveConv(keep=0.3, sites=("bottom",)), DefectiveConv(keep=0.7, sites=("top",))]
        bottom, top = attach(model, methods, example=x, seed=0)
        assert (bottom.name, top.name) == ("defective_conv", "defective_conv-2")
        zeros = {site: int((layer.mask == 0).sum()) for a in (bottom, top) for site, layer in layers(a).items()}
        assert zeros == {"1": 672, "4": 168, "7": 168, "10": 43}  # floor of 0.7 x 960, 240, 240, of 0.3 x 16 x 3 x 3
        model(x)

    def test_no_two_layers_have_the_same_mask(self) -> None:
        torch.manual_seed(0)
        model, x = ResNet(BasicBlock, [2, 2, 1, 1], num_classes=4), torch.rand(1, 3, 32, 32)
        methods = [DefectiveConv(sites=(site,)) for site in ("stem", "stage1", "stage2", "stage3", "stage4")]
        masks = [layer.mask for a in attach(model, methods, example=x, seed=0) for layer in layers(a).values()]
        assert len(masks) == 13
        for i, first in enumerate(masks):
            for second in masks[:i]:
                if first.shape == second.shape:
                    agree = (first == second).float().mean()
                    assert abs(agree - 0.5) < 4.5 * (0.25 / first.numel()) ** 0.5

    def test_the_masks_follow_their_own_seed_where_it_is_given(self, x: Tensor) -> None:
        def masks(seed: int, mask_seed: int | None) -> Tensor:
            a = DefectiveConv(mask_seed=mask_seed).attach(net(), example=x, seed=seed)
            return torch.cat([layer.mask.flatten() for layer in layers(a).values()])

        # different initial weights, same masks: the gray-box attacker of the predecessor's text
        assert torch.equal(masks(1, 7), masks(2, 7)) and torch.equal(masks(1, 7), masks(7, None))
        assert torch.equal(masks(3, 0), masks(0, None))  # 0 is a seed, not its absence
        assert not torch.equal(masks(1, None), masks(2, None)) and not torch.equal(masks(1, 7), masks(1, 8))

    @pytest.mark.parametrize(("constant", "seen"), [(0.75, 0.75), (-0.75, 0.0)])
    def test_defective_neurons_give_the_constant_and_a_negative_one_is_0_behind_a_relu(
        self, x: Tensor, constant: float, seen: float
    ) -> None:
        model = net()
        a = DefectiveConv(constant=constant, sites=("stem",)).attach(model, example=x, seed=0)
        mask = layers(a)["1"].mask
        for mode in (True, False):
            with capture(model.train(mode), ["1", "2"]) as f:
                model(x)
            assert (f["1"][:, mask == 0] == constant).all() and (f["2"][:, mask == 0] == seen).all()
            assert not (f["1"][:, mask == 1] == constant).any()

    def test_a_constant_of_0_computes_what_no_constant_computes(self, x: Tensor) -> None:
        model, twin = net().eval(), net().eval()
        DefectiveConv().attach(model, example=x, seed=0)
        DefectiveConv(constant=1e-30).attach(twin, example=x, seed=0)
        torch.testing.assert_close(model(x), twin(x))

    def test_globs_name_modules(self, x: Tensor) -> None:
        torch.manual_seed(0)
        model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)
        a = DefectiveConv(sites=("layer[12].*.bn?",)).attach(model, example=torch.rand(1, 3, 32, 32), seed=0)
        assert a.sites == ("layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2")


class TestPosition:
    """Where the mask of a convolution sits: before the norm, between norm and activation, behind the activation."""

    @pytest.fixture
    def model(self) -> ResNet:
        torch.manual_seed(0)
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4)

    @pytest.fixture
    def images(self) -> Tensor:
        return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def test_post_conv_masks_what_the_norm_sees(self, model: ResNet, images: Tensor) -> None:
        twin = copy.deepcopy(model)
        a = DefectiveConv(position="post_conv").attach(model, example=images, seed=0)
        names = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2")
        assert a.sites == names and a.notes == ()
        mask = layers(a)["conv1"].mask
        with capture(model.train(), ["conv1", "bn1"]) as f:
            model(images), twin.train()(images)
        assert (f["conv1"][:, mask == 0] == 0).all() and not (f["bn1"][:, mask == 0] == 0).any()
        with torch.no_grad():
            masked = twin.conv1(images) * mask
        torch.testing.assert_close(model.bn1.running_mean, 0.1 * masked.mean((0, 2, 3)))
        assert not torch.equal(model.bn1.running_mean, twin.bn1.running_mean)

    def test_post_norm_leaves_the_norm_alone_and_masks_before_the_activation(
        self, model: ResNet, images: Tensor
    ) -> None:
        twin = copy.deepcopy(model)
        a = DefectiveConv().attach(model, example=images, seed=0)
        assert a.sites == ("bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1", "layer2.0.bn2")
        mask, seen = layers(a)["bn1"].mask, []
        model.relu.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
        model.train()(images), twin.train()(images)
        assert torch.equal(model.bn1.running_mean, twin.bn1.running_mean)
        assert torch.equal(model.bn1.running_var, twin.bn1.running_var)
        assert (seen[0][:, mask == 0] == 0).all() and (seen[0][:, mask == 1] < 0).any()  # not activated yet

    def test_post_activation_masks_one_call_of_a_relu_that_is_called_twice(self, model: ResNet, images: Tensor) -> None:
        a = DefectiveConv(position="post_activation", constant=2.0).attach(model, example=images, seed=0)
        calls = [(tap.name, tap.calls) for tap in a.insert.taps]
        assert calls == [  # the norm of conv2 meets the shortcut, not an activation
            ("relu", ()),
            ("layer1.0.relu", (0,)),
            ("layer1.0.bn2", ()),
            ("layer2.0.relu", (0,)),
            ("layer2.0.bn2", ()),
        ]
        assert a.notes == (
            "after the norm, as no activation module takes its output: layer1.0.conv2, layer2.0.conv2 (2 in all)",
        )
        mask, seen = layers(a)["layer1.0.relu"].mask, []
        model.layer1[0].conv2.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
        with capture(model.eval(), ["layer1.0.relu", "layer1.0.bn1"]) as f:
            model(images)
        assert (seen[0][:, mask == 0] == 2).all()  # behind the ReLU a constant stays what it is
        assert torch.equal(f["layer1.0.relu#0"], seen[0])
        assert not (f["layer1.0.bn1"][:, mask == 0] == 2).any()  # not masked itself
        assert not (f["layer1.0.relu#1"][:, mask == 0] == 2).all()  # nor is the block's output

    def test_zero_behind_a_relu_is_zero_before_it(self, images: Tensor) -> None:
        outs = []
        for sites in (("1", "4", "7"), ("2", "5", "8")):
            a = DefectiveConv(sites=sites).attach(model := net().eval(), example=images, seed=0)
            for i, layer in enumerate(layers(a).values()):
                layer.mask.copy_(sample((8, *((32, 32), (16, 16), (16, 16))[i]), 0.5, purpose=str(i)))
            outs.append(model(images))
        assert torch.equal(*outs)

    def test_calls_of_one_module_by_several_layers_cannot_share_a_mask(self) -> None:
        class OneRelu(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
                self.relu, self.fc = nn.ReLU(), nn.Linear(6, 4)

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.fc(self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3)))
                return out

        model, x = OneRelu(), torch.rand(2, 3, 8, 8)
        with pytest.raises(AttachError, match=r"a mask of its own; got 2 calls of one module, relu. Mask the norms"):
            DefectiveConv(position="post_activation").attach(model, example=x, seed=0)
        assert attachments(model) == []
        a, b = attach(model, [DefectiveConv(sites=(f"relu#{i}",)) for i in (0, 1)], example=x, seed=0)
        assert not torch.equal(layers(a)["relu"].mask, layers(b)["relu"].mask)
        with capture(model, ["relu"]) as f:
            model(x)
        for i, each in enumerate((a, b)):
            assert (f[f"relu#{i}"][:, layers(each)["relu"].mask == 0] == 0).all()


# preset -> net, its arguments, image size, and its masks in model order: module and shape, as in the released code
Places = list[tuple[str, tuple[int, int, int]]]


def blocks(stage: int, channels: int, size: int, *, convs: tuple[int, ...] = (1, 2), count: int = 2) -> Places:
    return [(f"layer{stage}.{i}.bn{c}", (channels, size, size)) for i in range(count) for c in convs]


def with_shortcut(stage: int, channels: int, size: int) -> Places:
    places = blocks(stage, channels, size)
    return [*places[:2], (f"layer{stage}.0.downsample.1", (channels, size, size)), *places[2:]]


DENSE = "features.denseblock{}.denselayer{}.norm1"
PLACES: dict[str, tuple[str, dict[str, Arg], int, Places]] = {
    "resnet18": (
        "cifar_resnet18",
        {},
        32,
        [("bn1", (64, 32, 32)), *blocks(1, 64, 32), *with_shortcut(2, 128, 16)],
    ),
    "resnet18-top": ("cifar_resnet18", {}, 32, [*with_shortcut(3, 256, 8), *with_shortcut(4, 512, 4)]),
    "resnet50": (
        "cifar_resnet50",
        {},
        32,
        [
            ("bn1", (64, 32, 32)),
            *blocks(1, 64, 32, convs=(2,), count=3),
            *blocks(2, 128, 16, convs=(2,), count=4),
        ],
    ),
    "senet18": (
        "cifar_senet18",
        {},
        32,
        [*blocks(1, 64, 32), ("layer2.0.bn1", (64, 32, 32)), *blocks(2, 128, 16)[1:]],  # a norm comes before its stride
    ),
    "densenet121": (
        "cifar_densenet121",
        {},
        32,
        [
            *((DENSE.format(1, i + 1), (64 + 32 * i, 32, 32)) for i in range(6)),
            ("features.transition1.norm", (256, 32, 32)),
            *((DENSE.format(2, i + 1), (128 + 32 * i, 16, 16)) for i in range(12)),
            ("features.transition2.norm", (512, 16, 16)),
        ],
    ),
    "vgg19": (
        "cifar_vgg19",
        {},
        32,
        [
            ("features.1", (64, 32, 32)),
            ("features.4", (64, 32, 32)),
            ("features.8", (128, 16, 16)),
            ("features.11", (128, 16, 16)),
        ],
    ),
    "resnet32-x4": (
        "cifar_resnet32",
        {"width": 64, "stem_width": 16, "shortcut": "projection"},
        32,
        [("bn1", (16, 32, 32)), *blocks(1, 64, 32, count=5)],
    ),
    "imagenet-resnet18": (
        "torchvision:resnet18",
        {},
        224,
        [("bn1", (64, 112, 112)), *blocks(1, 64, 56), *with_shortcut(2, 128, 28)],
    ),
}
COUNTS = {
    "resnet18": 10,
    "resnet18-top": 10,
    "resnet50": 8,
    "senet18": 8,
    "densenet121": 20,
    "vgg19": 4,
    "resnet32-x4": 11,
    "imagenet-resnet18": 10,
}


class TestPresets:
    def test_every_row_of_the_table_is_there(self) -> None:
        assert list(PRESETS) == list(PLACES) == list(COUNTS)
        assert all(spec == DefectiveConv(sites=spec.sites) for spec in PRESETS.values())  # all else is the default

    @pytest.mark.parametrize("name", PRESETS)
    def test_masks_sit_where_the_released_code_has_them(self, name: str) -> None:
        builder, args, size, places = PLACES[name]
        model = hardy.load_model(builder, num_classes=10, args=args).eval()
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        a = PRESETS[name].attach(model, example=x, seed=0)
        found = layers(a)
        assert [(site, tuple(layer.mask.shape)) for site, layer in found.items()] == places
        assert len(found) == COUNTS[name]
        modules = [model.get_submodule(site) for site in a.sites]
        assert all(isinstance(module, nn.BatchNorm2d) for module in modules)
        for layer in found.values():
            assert int((layer.mask == 0).sum()) == math.prod(layer.mask.shape) // 2

    def test_the_masks_of_resnet18_come_before_the_sum_and_the_activation(self) -> None:
        model = hardy.load_model("cifar_resnet18", num_classes=10, args={"width": 6})
        twin, x = copy.deepcopy(model), torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        masks = {
            site: layer.mask for site, layer in layers(PRESETS["resnet18"].attach(model, example=x, seed=0)).items()
        }
        sums: dict[str, list[Tensor]] = {"layer1.0": [], "layer2.0": []}
        for name, seen in sums.items():
            relu = model.get_submodule(f"net.{name}.relu")
            relu.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].clone()))
        with capture(model, ["net.relu", "net.layer2.0.downsample.1"]) as f:
            model.train()(x), twin.train()(x)
        bn, bare = (m.get_submodule("net.bn1") for m in (model, twin))
        assert torch.equal(bn.running_mean, bare.running_mean) and torch.equal(bn.running_var, bare.running_var)
        # identity shortcut: nothing is masked there, so a defective neuron passes on what entered the block
        gone = masks["layer1.0.bn2"] == 0
        assert torch.equal(sums["layer1.0"][1][:, gone], f["net.relu"][:, gone])
        # projection: a mask of its own, and zero only where both branches are masked
        branch, shortcut = masks["layer2.0.bn2"], masks["layer2.0.downsample.1"]
        assert not torch.equal(branch, shortcut)
        both = (branch == 0) & (shortcut == 0)
        assert 0.2 < both.float().mean() < 0.3
        assert torch.equal((sums["layer2.0"][1] == 0).all(0), both)
        assert torch.equal((f["net.layer2.0.downsample.1"] == 0).all(0), shortcut == 0)

    def test_the_stem_of_the_preactivation_net_and_the_projection_of_resnet32_are_not_masked(self) -> None:
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        senet = hardy.load_model("cifar_senet18", num_classes=10)
        twin = copy.deepcopy(senet)
        a = PRESETS["senet18"].attach(senet, example=x[:1], seed=0)
        with torch.no_grad(), capture(senet.train(), ["conv1"]) as f, capture(twin.train(), ["conv1"]) as g:
            senet(x), twin(x)
        assert torch.equal(f["net.conv1"], g["net.conv1"])
        first = senet.get_submodule("net.layer1.0.bn1")
        assert torch.equal(first.running_mean, twin.get_submodule("net.layer1.0.bn1").running_mean)
        mask = layers(a)["layer1.0.bn1"].mask
        conv = senet.get_submodule("net.layer1.0.conv1")
        seen: list[Tensor] = []
        conv.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        with torch.no_grad():
            senet(x)
        assert (seen[0][:, mask == 0] == 0).all() and (seen[0][:, mask == 1] > 0).any()  # norm, mask, ReLU, convolution
        resnet = hardy.load_model("cifar_resnet32", num_classes=10, args=PLACES["resnet32-x4"][1])
        shortcut = resnet.get_submodule("net.layer1.0.downsample.1")
        assert isinstance(shortcut, nn.BatchNorm2d) and shortcut.num_features == 64  # there is one to leave alone

    def test_the_share_of_a_preset_can_be_changed(self) -> None:
        model, x = hardy.load_model("cifar_resnet18", num_classes=10, args={"width": 4}), torch.rand(1, 3, 16, 16)
        a = dataclasses.replace(PRESETS["resnet18"], keep=0.1).attach(model, example=x, seed=0)
        assert all(abs(layer.mask.mean() - 0.1) < 1 / layer.mask.numel() for layer in layers(a).values())


class TestFiles:
    """Checkpoints rebuild the method from its fields."""

    def test_every_field_survives(self, tmp_path: Path) -> None:
        x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model = hardy.load_model("cifar_resnet8", num_classes=4, args={"width": 4})
        specs = [
            DefectiveConv(keep=0.3, sampling="per_channel", constant=0.25, mask_seed=9, sites=("bn1", "layer1.*.bn?")),
            DefectiveConv(keep=0.7, sampling="bernoulli", position="post_activation", sites=("stage2", "stage3")),
        ]
        attach(model, specs, example=x, seed=5)
        model.train()(x)
        hardy.save(model.eval(), tmp_path / "m.safetensors")
        again = hardy.load(tmp_path / "m.safetensors")
        assert [a.insert.spec for a in attachments(again)] == specs
        assert specs[1].mask_seed is None and [a.insert.seed for a in attachments(again)] == [5, 5]
        assert torch.equal(again(x), model(x))
        pairs = zip(attachments(again), attachments(model), strict=True)
        assert all(repr(layers(a)) == repr(layers(b)) and a.notes == b.notes for a, b in pairs)

    def test_a_file_of_the_first_version_loads(self, tmp_path: Path) -> None:
        x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model = hardy.load_model("cifar_resnet8", num_classes=4, args={"width": 4}).eval()
        DefectiveConv(keep=0.3).attach(model, example=x, seed=5)
        path = hardy.save(model, tmp_path / "m.safetensors")
        header, _ = read_header(path)
        header["methods"][0]["params"] = {"keep": 0.3, "sites": ["bottom"]}  # the fields it had
        write_tensors(tmp_path / "old.safetensors", read_tensors(path), header)
        again = hardy.load(tmp_path / "old.safetensors")
        assert attachments(again)[0].insert.spec == DefectiveConv(keep=0.3) and torch.equal(again(x), model(x))


RECIPES = Path(__file__).parents[2] / "recipes"


class TestRecipes:
    """Every command line in the comments of the control recipe is one that works."""

    def lines(self) -> dict[str, tuple[list[str], list[str]]]:
        """Map the folder of each run to its net and mask overrides and to all its words."""
        text = (RECIPES / "cifar10_defective_controls.toml").read_text()
        commands = [shlex.split(line[1:]) for line in text.splitlines() if line.startswith("#   hardy train")]
        found = {}
        for words in commands:
            assert words[2] == "recipes/cifar10_defective_controls.toml"
            overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            found[words[words.index("--out") + 1]] = (overrides, words)
        return found

    def test_every_variant_can_be_built(self) -> None:
        seen: dict[str, Any] = {}
        for out, (overrides, words) in self.lines().items():
            recipe = load_recipe(RECIPES / "cifar10_defective_controls.toml", overrides)
            assert recipe.model.name == "cifar_resnet18" and recipe.train.epochs == 350
            with torch.device("meta"):
                net = BUILTIN[recipe.model.name](num_classes=10, in_channels=3, **recipe.model.args)
                specs = build_methods(recipe.methods)
                attach(net, specs, example=torch.zeros(1, 3, 32, 32), seed=0)
            masked = [layers(a) for a in attachments(net)]
            assert [len(each) for each in masked] == [10] * len(specs)
            seen[out] = (specs, net, "--seed" in words)
        channels = {
            out: (net.layer1[0].bn1.num_features, net.layer2[0].bn1.num_features) for out, (_, net, _) in seen.items()
        }
        standard = PRESETS["resnet18"]
        assert {out: specs for out, (specs, _, _) in seen.items()} == {
            "runs/plain": [],
            "runs/masks-0": [standard],
            "runs/masks-1": [standard],
            "runs/masks-2": [standard],
            "runs/masks-3": [standard],
            "runs/masks-4": [standard],
            "runs/masks-0.1": [dataclasses.replace(standard, keep=0.1)],
            "runs/sm": [dataclasses.replace(standard, sampling="same")],
            "runs/dc": [],
            "runs/dc-0.1": [],
            "runs/x2": [standard],
            "runs/x2-0.1": [dataclasses.replace(standard, keep=0.1)],
            "runs/x4-0.1": [dataclasses.replace(standard, keep=0.1)],
            "runs/gray-same": [dataclasses.replace(standard, mask_seed=0)],
            "runs/dif": [dataclasses.replace(standard, mask_seed=1)],
            "runs/top": [PRESETS["resnet18-top"]],
        }
        assert channels.pop("runs/dc") == (32, 64) and channels.pop("runs/dc-0.1") == (7, 13)
        assert channels.pop("runs/x2") == channels.pop("runs/x2-0.1") == (128, 256)
        assert channels.pop("runs/x4-0.1") == (256, 512)
        assert set(channels.values()) == {(64, 128)}

    def test_the_first_recipe_still_reads(self) -> None:
        recipe = load_recipe(RECIPES / "cifar10_defective.toml")
        assert build_methods(recipe.methods) == [DefectiveConv()]


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_an_error(keep: float) -> None:
    with pytest.raises(ParameterError, match=r"DefectiveConv: keep must be in \[0, 1\]; got"):
        DefectiveConv(keep=keep)


@pytest.mark.parametrize("constant", [math.nan, math.inf])
def test_a_constant_that_is_not_finite_is_an_error(constant: float) -> None:
    with pytest.raises(ParameterError, match=r"DefectiveConv: constant must be finite; got"):
        DefectiveConv(constant=constant)


@pytest.mark.parametrize("name", ["sampling", "position"])
def test_an_unknown_word_is_an_error(name: str) -> None:
    spec = DefectiveConv()
    object.__setattr__(spec, name, "all")  # past the type checker of the tests
    with pytest.raises(ParameterError, match=rf"DefectiveConv: {name} must be one of .*; got 'all'"):
        spec.__post_init__()


def test_a_place_that_cannot_be_masked_is_an_error(x: Tensor) -> None:
    model = net()
    with pytest.raises(AttachError, match=r"defective_conv: 14 must give \(n, c, h, w\); got \(\d, 4\)"):
        DefectiveConv(sites=("14",)).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no stage 'stage7'; it has stem, stage1, stage2"):
        DefectiveConv(sites=("stage7",)).attach(model, example=x, seed=0)
    assert attachments(model) == []


def test_two_at_one_place_have_masks_of_their_own() -> None:
    model, x = hardy.load_model("cifar_resnet18", num_classes=3, args={"width": 8}), torch.rand(1, 3, 16, 16)
    first = DefectiveConv(sites=("stem",)).attach(model, example=x, seed=0)
    second = DefectiveConv(sites=("bottom",)).attach(model, example=x, seed=0)
    masks = [a.insert.taps[0].get_submodule("layer").get_buffer("mask") for a in (first, second)]
    assert first.sites[0] == second.sites[0]
    assert abs((masks[0] * masks[1]).mean() - 0.25) < 4 * (0.25 * 0.75 / masks[0].numel()) ** 0.5
