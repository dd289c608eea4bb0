"""Masks have exactly the promised zeros, come after the norm, are fixed for good, and belong to one input size."""

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ParameterError, ShapeError
from hardy.methods.defective_conv import CARD, DefectiveConv, DefectiveMask2d, defective_mask
from hardy.surgery import attachments, capture


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


class TestMask:
    @settings(max_examples=60, deadline=None)
    @given(shape=st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12)), thousandths=st.integers(0, 1000))
    @example(shape=(64, 5, 5), thousandths=900)  # 1 - 0.9 is a little less than 0.1 in binary
    @example(shape=(10, 1, 1), thousandths=700)
    @example(shape=(1, 1, 1), thousandths=500)
    def test_has_exactly_the_floor_of_the_share_of_zeros(self, shape: tuple[int, int, int], thousandths: int) -> None:
        mask = defective_mask(shape, keep=thousandths / 1000, seed=0, purpose="test")
        zeros = (1000 - thousandths) * math.prod(shape) // 1000  # in whole numbers: no rounding
        assert mask.shape == shape and mask.dtype == torch.float32
        assert int((mask == 0).sum()) == zeros and int((mask == 1).sum()) == math.prod(shape) - zeros

    def test_every_neuron_is_equally_likely_to_go(self) -> None:
        n, shape, keep = 1500, (3, 4, 5), 0.7
        alive = torch.stack([defective_mask(shape, keep=keep, seed=s, purpose="test") for s in range(n)]).mean(0)
        assert ((alive - keep).abs() < 4.5 * (keep * (1 - keep) / n) ** 0.5).all()

    def test_zeros_are_spread_over_the_whole_tensor_not_within_each_channel(self) -> None:
        masks = torch.stack([defective_mask((16, 4, 4), keep=0.5, seed=s, purpose="test") for s in range(100)])
        per_channel = masks.sum((2, 3)).flatten().long()
        # drawn without replacement from all: hypergeometric
        want = stats.hypergeom(256, 128, 16)
        seen = torch.bincount(per_channel, minlength=17)[4:13].numpy()
        probs = want.pmf(range(4, 13))
        assert stats.chisquare(seen, probs / probs.sum() * seen.sum()).pvalue > 1e-3
        assert abs(per_channel.float().var() - want.var()) < 0.4

    def test_depends_on_seed_and_place_only(self) -> None:
        first = defective_mask((4, 6, 6), keep=0.5, seed=0, purpose="a")
        assert torch.equal(first, defective_mask((4, 6, 6), keep=0.5, seed=0, purpose="a"))
        for seed, purpose in ((1, "a"), (0, "b")):
            other = defective_mask((4, 6, 6), keep=0.5, seed=seed, purpose=purpose)
            assert abs((first == other).float().mean() - 0.5) < 4.5 * (0.25 / 144) ** 0.5

    def test_a_smaller_share_masks_a_subset(self) -> None:
        few, many = (defective_mask((4, 6, 6), keep=keep, seed=0, purpose="a") for keep in (0.8, 0.3))
        assert (many <= few).all()  # so that curves over keep are paired


class TestLayer:
    def test_multiplies_the_same_in_both_modes(self) -> None:
        mask = defective_mask((3, 4, 5), keep=0.4, seed=0, purpose="test")
        layer, x = DefectiveMask2d(mask), torch.randn(2, 3, 4, 5)
        assert torch.equal(layer.train()(x), x * mask) and torch.equal(layer.eval()(x), x * mask)

    def test_gradients_to_masked_positions_are_zero(self) -> None:
        mask = defective_mask((3, 4, 5), keep=0.4, seed=0, purpose="test")
        x = torch.randn(2, 3, 4, 5, requires_grad=True)
        (g,) = torch.autograd.grad((DefectiveMask2d(mask)(x) * 3).sum(), x)
        assert torch.equal(g, 3 * mask.expand(2, 3, 4, 5))

    @pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 8, 10), (2, 1, 4, 5), (2, 3, 1, 1)])
    def test_another_resolution_is_an_error_and_never_broadcast(self, shape: tuple[int, ...]) -> None:
        layer = DefectiveMask2d(torch.ones(3, 4, 5))
        with pytest.raises(
            ShapeError, match=r"the mask is for \(3, 4, 5\) feature maps; got .* resize the images to it"
        ):
            layer(torch.zeros(shape))

    def test_says_its_actual_share(self) -> None:
        mask = defective_mask((1, 3, 3), keep=0.5, seed=0, purpose="test")
        assert "1x3x3, keep=0.556" in repr(DefectiveMask2d(mask))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtype_and_memory_format_stay(self, dtype: torch.dtype) -> None:
        x = torch.randn(2, 3, 4, 5).to(dtype, memory_format=torch.channels_last)
        y = DefectiveMask2d(defective_mask((3, 4, 5), keep=0.5, seed=0, purpose="t"))(x)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)


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
                want = defective_mask(shape, keep=0.3, seed=5, purpose=f"defective_conv:{site}")
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


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_an_error(keep: float) -> None:
    with pytest.raises(ParameterError, match=r"DefectiveConv: keep must be in \[0, 1\]; got"):
        DefectiveConv(keep=keep)


def test_a_place_that_cannot_be_masked_is_an_error(x: Tensor) -> None:
    model = net()
    with pytest.raises(AttachError, match=r"defective_conv: 14 must give \(n, c, h, w\); got \(4, 4\)"):
        DefectiveConv(sites=("14",)).attach(model, example=x, seed=0)
    with pytest.raises(LayerNotFoundError, match=r"no stage 'stage7'; it has stem, stage1, stage2"):
        DefectiveConv(sites=("stage7",)).attach(model, example=x, seed=0)
    assert attachments(model) == []
