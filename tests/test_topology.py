"""Stages of nets that people use, read off one forward pass."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from hardy.errors import AttachError, LayerNotFoundError, ShapeError
from hardy.methods import DefectiveConv
from hardy.methods._places import after_norm, early, outputs
from hardy.models.cifar_resnet import cifar_resnet18, cifar_resnet_6n2
from hardy.surgery import Insert, after, capture
from hardy.topology import Stage, classifier_inputs, first_conv, is_stage, pick, stages


def images(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def summary(found: list[Stage]) -> list[tuple[str, int, int, int]]:
    return [(s.name, s.stride, s.channels, len(s.convs)) for s in found]


def conv_names(stage: Stage) -> list[str]:
    return [c.name for c in stage.convs]


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, *, by_module: bool) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1) if by_module else None
        self.fc1, self.act, self.fc2 = nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x) if self.pool is not None else x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(self.act(self.fc1(pooled))))


class SEBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, *, by_module: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.se, self.relu = SqueezeExcite(outputs, by_module=by_module), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.se(self.bn2(self.conv2(x)))
        return self.relu(x)


def se_net(*, by_module: bool) -> nn.Module:
    blocks = [SEBlock(4, 8, 2, by_module=by_module), SEBlock(8, 8, 1, by_module=by_module)]
    blocks += [SEBlock(8, 12, 2, by_module=by_module)]
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 20, 1), nn.Flatten(), nn.Linear(20, 5))


class TestNets:
    def test_cifar_resnets(self) -> None:
        found = stages(cifar_resnet18(num_classes=10, in_channels=3, width=8), images(32))
        want = [
            ("stem", 1, 8, 1),
            ("stage1", 1, 8, 4),
            ("stage2", 2, 16, 5),
            ("stage3", 4, 32, 5),
            ("stage4", 8, 64, 5),
        ]
        assert summary(found) == want
        found = stages(cifar_resnet_6n2(20, num_classes=10, in_channels=3), images(32))
        assert summary(found) == [("stem", 1, 16, 1), ("stage1", 1, 16, 6), ("stage2", 2, 32, 6), ("stage3", 4, 64, 6)]
        assert conv_names(found[0]) == ["conv1"] and found[0].convs[0].norm == "bn1"
        assert found[0].modules == ("conv1", "bn1", "relu")
        assert all(name.startswith("layer2.") for name in found[2].modules)

    @pytest.mark.parametrize("size", [32, 64])
    def test_torchvision_resnet18(self, size: int) -> None:
        found = stages(torchvision.models.resnet18(num_classes=5), images(size))  # layer4 sees one pixel at 32
        want = [("stem", 2, 64, 1), ("stage1", 4, 64, 4), ("stage2", 8, 128, 5), ("stage3", 16, 256, 5)]
        assert summary(found) == [*want, ("stage4", 32, 512, 5)]
        assert found[1].convs[0].size == (size // 4, size // 4) and found[1].convs[1].norm == "layer1.0.bn2"
        conv = found[2].convs[2]
        assert (conv.name, conv.kernel, conv.norm) == ("layer2.0.downsample.0", 1, "layer2.0.downsample.1")

    def test_torchvision_resnet50(self) -> None:
        found = stages(torchvision.models.resnet50(num_classes=5), images(64))
        assert [(s.name, s.stride) for s in found] == [
            ("stem", 2), ("stage1", 4), ("stage2", 8), ("stage3", 16), ("stage4", 32),
        ]  # fmt: skip
        wide = [c.name for s in pick(found, "bottom") for c in s.convs if c.kernel > 1]
        # the paper's placement for ResNet-50: stem and the 3x3 of every bottleneck of the first two stages
        assert wide == ["conv1", *(f"layer1.{i}.conv2" for i in range(3)), *(f"layer2.{i}.conv2" for i in range(4))]

    def test_densenet(self) -> None:
        net = torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=4)
        found = stages(net, images(64))
        assert [(s.name, s.stride) for s in found] == [("stem", 2), ("stage1", 4), ("stage2", 8), ("stage3", 16)]
        want = [f"features.denseblock1.denselayer{i}.conv{j}" for i in (1, 2) for j in (1, 2)]
        assert conv_names(found[1]) == [*want, "features.transition1.conv"]
        norms = [c.norm for c in found[1].convs]
        assert norms[:2] == ["features.denseblock1.denselayer1.norm2", None]  # the second is concatenated first

    @pytest.mark.parametrize("norm", [True, False])
    def test_vgg(self, norm: bool) -> None:
        config: list[str | int] = [8, "M", 16, 16, "M", 24, "M"]
        features = torchvision.models.vgg.make_layers(config, batch_norm=norm)  # type: ignore[arg-type]
        net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))
        found = stages(net, images(16))
        assert summary(found) == [("stem", 1, 8, 1), ("stage1", 2, 16, 2), ("stage2", 4, 24, 1)]
        sites, notes = after_norm(net, images(16), ("bottom",))
        assert sites == (("0.1", "0.5", "0.8") if norm else ("0.0", "0.3", "0.5"))
        assert bool(notes) is not norm

    def test_mobilenets(self) -> None:
        found = stages(torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25), images(64))
        assert [s.stride for s in found] == [2, 2, 4, 8, 16, 32]
        sites, notes = after_norm(torchvision.models.mobilenet_v2(width_mult=0.25), images(64), ("stage2",))
        assert sites == ("features.2.conv.1.1", "features.3.conv.1.1") and notes == ()  # depthwise ones: kernel 3
        for size in (32, 64):
            found = stages(timm.create_model("mobilenetv3_small_050", num_classes=4), images(size))
            assert [s.stride for s in found] == [2, 4, 8, 16, 32]
            names = [name for s in found for name in (*s.modules, *conv_names(s))]
            assert not any(".se." in name or "conv_head" in name for name in names)

    def test_fused_norm_and_activation_has_a_point_between(self) -> None:
        net = timm.create_model("tf_efficientnet_lite0", num_classes=4)
        found = stages(net, images(32))
        assert found[0].convs[0].norm == "bn1.drop"
        assert after_norm(net, images(32), ("stem", "blocks.1.0.bn3"))[0] == ("bn1.drop", "blocks.1.0.bn3")

    def test_a_stem_of_several_layers_in_a_container(self) -> None:
        found = stages(timm.create_model("resnet10t", num_classes=4), images(64))
        assert conv_names(found[0]) == ["conv1.0", "conv1.3", "conv1.6"]
        assert [c.norm for c in found[0].convs] == ["conv1.1", "conv1.4", "bn1"]  # the last norm is outside it

    def test_inception_branches_belong_to_the_stage_of_their_stride(self) -> None:
        net = torchvision.models.googlenet(num_classes=4, init_weights=False, aux_logits=True)
        found = stages(net, images(64))
        assert [(s.name, s.stride, len(s.convs)) for s in found] == [
            ("stem", 4, 3), ("stage1", 8, 12), ("stage2", 16, 30), ("stage3", 32, 12),
        ]  # fmt: skip
        assert {name.split(".")[0] for name in conv_names(found[1])} == {"inception3a", "inception3b"}
        assert not any("aux" in name for s in found for name in s.modules)  # not called in eval mode

    @pytest.mark.parametrize("by_module", [True, False])
    @pytest.mark.parametrize("size", [16, 4])
    def test_squeeze_and_excite_and_a_head_on_pooled_pixels_are_no_stages(self, by_module: bool, size: int) -> None:
        found = stages(se_net(by_module=by_module), images(size))  # at 4 the last stage has one pixel itself
        assert summary(found) == [("stem", 1, 4, 1), ("stage1", 2, 8, 4), ("stage2", 4, 12, 2)]
        assert conv_names(found[2]) == ["5.conv1", "5.conv2"]
        assert not any(".se." in name for s in found for name in s.modules)

    def test_a_convolution_that_makes_the_logits_is_the_head(self) -> None:
        found = stages(torchvision.models.squeezenet1_1(num_classes=7), images(64))
        assert all("classifier" not in name for s in found for name in conv_names(s))
        assert found[-1].channels == 512  # two convolutions side by side

    def test_a_plain_chain_whose_first_convolution_is_the_stem(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.Flatten(), nn.Linear(96, 2)
        )
        found = stages(net, images(16))
        assert summary(found) == [("stem", 2, 4, 1), ("stage1", 4, 6, 1)]
        assert (found[0].modules, found[1].modules) == (("0", "1"), ("2",))

    def test_one_convolution_only(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
        assert summary(stages(net, images(8))) == [("stem", 1, 4, 1)]

    def test_a_module_that_is_called_twice_counts_once(self) -> None:
        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
                self.down, self.fc = nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(self.conv(self.stem(x)).relu()).relu()
                y: Tensor = self.fc(self.down(x).mean((2, 3)))
                return y

        found = stages(Shared(), images(8))
        assert [conv_names(s) for s in found] == [["stem"], ["conv"], ["down"]]

    def test_non_square_images(self) -> None:
        x = torch.rand(1, 3, 64, 32)
        found = stages(cifar_resnet_6n2(8, num_classes=4, in_channels=3), x)
        assert [(s.stride, s.convs[-1].size) for s in found] == [
            (1, (64, 32)),
            (1, (64, 32)),
            (2, (32, 16)),
            (4, (16, 8)),
        ]

    def test_order_of_stages_and_convolutions_is_that_of_the_calls(self) -> None:
        found = stages(torchvision.models.resnet18(num_classes=5), images(64))
        assert [s.name for s in found] == ["stem", "stage1", "stage2", "stage3", "stage4"]
        assert [c.name for c in found[1].convs] == [f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]


@pytest.fixture(scope="module")
def found() -> list[Stage]:
    return stages(torchvision.models.resnet18(num_classes=5), images(32))


class TestPick:
    @pytest.mark.parametrize(
        ("site", "want"),
        [
            ("stem", ["stem"]),
            ("stage3", ["stage3"]),
            ("bottom", ["stem", "stage1", "stage2"]),
            ("top", ["stage3", "stage4"]),
            ("all", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ],
    )
    def test_names_and_groups(self, found: list[Stage], site: str, want: list[str]) -> None:
        assert [s.name for s in pick(found, site)] == want and is_stage(site)

    def test_of_an_odd_number_of_stages_the_bottom_has_more(self, found: list[Stage]) -> None:
        assert [s.name for s in pick(found[:4], "bottom")] == ["stem", "stage1", "stage2"]
        assert [s.name for s in pick(found[:4], "top")] == ["stage3"]

    def test_a_stage_that_is_not_there_is_an_error(self, found: list[Stage]) -> None:
        with pytest.raises(LayerNotFoundError, match=r"no stage 'stage9'; it has stem, stage1, stage2, stage3, stage4"):
            pick(found, "stage9")
        with pytest.raises(LayerNotFoundError, match="no stage 'top'; it has stem, stage1"):
            pick(found[:2], "top")

    @pytest.mark.parametrize("site", ["layer1", "stage", "stagex", "stages.0", "stage1.0", "bottom#1", "head"])
    def test_other_names_are_modules(self, site: str) -> None:
        assert not is_stage(site)

    def test_first_conv(self, found: list[Stage]) -> None:
        assert first_conv(found) == "conv1" and first_conv(pick(found, "stage2")) == "layer2.0.conv1"
        net = torchvision.models.resnet18(num_classes=5)
        assert early(net, images(32), ("stem", "stage1", "fc", "stem")) == ("conv1", "layer1.0.conv1", "fc")

    def test_sites_without_stages_need_no_forward_pass(self) -> None:
        class Never(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise AssertionError

        assert early(Never(), images(8), ("a", "b")) == ("a", "b")
        assert after_norm(Never(), images(8), ("a", "a")) == (("a",), ())


class TestNoTrace:
    def test_leaves_model_and_generator_as_they_were(self) -> None:
        torch.manual_seed(0)
        net = torchvision.models.resnet18(num_classes=5)
        net.bn1.eval()
        state, modes, rng = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], torch.get_rng_state()
        stages(net, images(32))
        assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert not any(m._forward_hooks for m in net.modules()) and all(p.grad is None for p in net.parameters())

    def test_a_net_that_raises_leaves_no_hooks(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2))
        with pytest.raises(RuntimeError):
            stages(net, images(8))
        assert not any(m._forward_hooks for m in net.modules()) and net.training

    def test_what_is_attached_does_not_change_the_answer(self) -> None:
        net, x = cifar_resnet_6n2(8, num_classes=4, in_channels=3), images(16)
        want = stages(net, x)
        with DefectiveConv().attach(net, example=x, seed=0):
            assert stages(net, x) == want


class TestRefusals:
    def test_images_are_n_c_h_w(self) -> None:
        with pytest.raises(ShapeError, match=r"stages: x must be \(n, c, h, w\); got \(3, 8, 8\)"):
            stages(nn.Conv2d(3, 3, 1), images(8)[0])

    def test_a_net_without_convolutions(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        with pytest.raises(LayerNotFoundError, match="Sequential has no convolution on images: Hardy works on CNNs"):
            stages(net, images(8))

    def test_a_compiled_net(self) -> None:
        with pytest.raises(AttachError, match="OptimizedModule"):
            stages(torch.compile(nn.Conv2d(3, 3, 1), backend="eager"), images(8))  # type: ignore[arg-type]


class Parallel(nn.Module):
    """Two branches that read the same input, as in RepVGG."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.narrow, self.bn1 = nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs)
        self.wide, self.bn2 = nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.narrow(x)) + self.bn2(self.wide(x)))


class Mixed(nn.Module):
    """Channels made by several kernels under one norm, as in MixNet; an activation called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(inplace=True)
        self.parts = nn.ModuleList([nn.Conv2d(4, 2, 3, 2, 1), nn.Conv2d(4, 2, 5, 2, 2)])
        self.bn, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x = self.act(self.bn(torch.cat([part(x) for part in self.parts], 1)))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class TestPlaces:
    def test_parallel_branches_on_the_image_are_the_stem_the_widest_first(self) -> None:
        net = nn.Sequential(Parallel(3, 4), Parallel(4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        found = stages(net, images(16))
        assert [conv_names(s) for s in found] == [["0.wide", "0.narrow"], ["1.narrow", "1.wide"]]
        assert first_conv(found) == "0.wide"

    def test_one_norm_may_serve_several_convolutions(self) -> None:
        stem, stage = stages(Mixed(), images(16))
        assert (stem.convs[0].norm, stem.convs[0].act) == (None, "act#0")
        assert [(c.norm, c.act) for c in stage.convs] == [("bn", "act#1")] * 2
        assert outputs(Mixed(), images(16), ("stage1",), position="post_norm") == (("bn",), ())

    def test_activations_are_found_where_nothing_comes_between(self) -> None:
        stem, stage = stages(torchvision.models.resnet18(), images(64))[:2]
        assert (stem.convs[0].act, stage.convs[0].act) == ("relu", "layer1.0.relu#0")
        assert [c.act for c in stage.convs] == ["layer1.0.relu#0", None, "layer1.1.relu#0", None]
        (stem, *_) = stages(timm.create_model("regnetx_002"), images(32))
        assert (stem.convs[0].norm, stem.convs[0].act) == ("stem.bn.drop", "stem.bn")

    def test_a_block_named_norm_free_is_no_norm(self) -> None:
        (stem, *_) = stages(timm.create_model("nf_regnet_b0"), images(32))
        assert stem.convs[0].norm is None

    def test_positions(self) -> None:
        net, x = torchvision.models.resnet18(), images(64)
        assert outputs(net, x, ("stem",), position="post_conv") == (("conv1",), ())
        assert outputs(net, x, ("stem",), position="post_activation") == (("relu",), ())
        sites, (note,) = outputs(net, x, ("stage1", "fc"), position="post_activation")
        assert sites == ("layer1.0.relu#0", "layer1.0.bn2", "layer1.1.relu#0", "layer1.1.bn2", "fc")
        assert (
            note
            == "after the norm, as no activation module takes its output: layer1.0.conv2, layer1.1.conv2 (2 in all)"
        )
        net = torchvision.models.vgg11()
        assert outputs(net, x, ("stem",), position="post_activation") == (("features.1",), ())
        assert outputs(net, x, ("stem",), position="post_norm")[1] == (
            "after the convolution itself, as no norm takes its output: features.0 (1 in all)",
        )

    @pytest.mark.parametrize(
        ("name", "want"),
        [
            ("resnet50", ["conv1", "layer1", "layer2", "layer3", "layer4"]),  # conv2, not the block, changes the size
            ("densenet121", ["features.conv0", *(f"features.denseblock{i}" for i in (1, 2, 3, 4))]),
            ("mobilenet_v2", ["features.0.0", *(f"features.{i}" for i in (1, 2, 4, 7, 14))]),
            ("vgg11_bn", [f"features.{i}" for i in (0, 4, 8, 15, 22)]),
        ],
    )
    def test_the_entry_of_a_stage_is_the_outermost_module_that_brings_it(self, name: str, want: list[str]) -> None:
        found = stages(torchvision.models.get_model(name), images(64))
        assert [s.entry for s in found] == [f"{module}@input" for module in want]

    def test_the_entry_carries_all_that_the_stage_sees(self) -> None:
        net, x = torchvision.models.resnet50(num_classes=3).eval(), images(64)
        entry = stages(net, x)[2].entry
        with after(net, [entry], lambda _, __: Zero(), method="zero", example=x, held=Insert(None, seed=0)):
            with capture(net, ["layer2.0.conv1@input", "layer2.0.downsample@input"]) as seen:
                net(x)
            assert all(not value.any() for value in seen.values()) and len(seen) == 2

    def test_pooling_inside_a_block_does_not_hide_its_shortcut(self) -> None:
        found = stages(
            timm.create_model("resnetaa50", num_classes=3), images(64)
        )  # pools behind its second convolution
        assert [s.entry for s in found[1:]] == [f"layer{i}@input" for i in (1, 2, 3, 4)]
        assert [s.channels for s in found[1:]] == [256, 512, 1024, 2048]

    def test_what_fills_a_buffer_piece_by_piece_stays_on_the_main_path(self) -> None:
        class Pieces(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.c1, self.c2, self.c3 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(8, 4, 1)
                self.fc = nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = self.c2(self.c1(x))
                both = torch.zeros(len(x), 8, *x.shape[2:])
                both[:, :4], both[:, 4:] = x, -x
                out: Tensor = self.fc(self.c3(both).mean((2, 3)))
                return out

        assert [conv_names(s) for s in stages(Pieces(), images(16))] == [["c1"], ["c2", "c3"]]

    def test_sites_before_a_stage_and_behind_the_pooling(self) -> None:
        net, x = torchvision.models.resnet18(), images(64)
        assert early(net, x, ("before_stage1", "pooled", "stem")) == ("layer1@input", "fc@input", "conv1")
        with pytest.raises(LayerNotFoundError, match="no stage 'stage7'"):
            early(net, x, ("before_stage7",))

    def test_fully_connected_layers_written_as_convolutions_are_the_head(self) -> None:
        found = stages(timm.create_model("vgg11"), images(64))
        assert [s.stride for s in found] == [1, 2, 4, 8, 16]

    def test_attention_at_a_coarser_size_is_no_stage(self) -> None:
        assert stages(timm.create_model("ghostnetv2_100"), images(64))[-1].stride == 32


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class TestClassifier:
    @pytest.mark.parametrize(
        ("name", "want", "shape"),
        [
            ("resnet18", "fc@input", (1, 512)),
            ("densenet121", "classifier@input", (1, 1024)),  # pooled by a function, not by a module
            ("vgg11", "classifier.6@input", (1, 4096)),
            ("squeezenet1_1", "classifier.1@input", (1, 512, 3, 3)),
        ],
    )
    def test_of_torchvision(self, name: str, want: str, shape: tuple[int, ...]) -> None:
        net, x = torchvision.models.get_model(name, num_classes=7).eval(), images(64)
        assert classifier_inputs(net, x) == (want,)
        with capture(net, [want]) as seen:
            net(x)
        assert seen[want].shape == shape

    def test_a_convolution_may_be_the_classifier(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.Flatten())
        assert classifier_inputs(net, images(16)) == ("3@input",)

    def test_a_mean_of_heads_has_several(self) -> None:
        net, x = timm.create_model("repvit_m0_9", num_classes=3).eval(), images(64)
        sites = classifier_inputs(net, x)
        assert sites == ("head.head.l@input", "head.head_dist.l@input")
        with (
            after(net, sites, lambda _, __: Zero(), method="zero", example=x, held=Insert(None, seed=0)),
            torch.no_grad(),
        ):
            torch.testing.assert_close(net(x), net(x.flip(-1)))

    def test_a_net_without_one_says_so(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1))
        assert classifier_inputs(net, images(16)) == ("0@input",)  # four channels, four logits
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
        with pytest.raises(LayerNotFoundError, match="no linear layer that makes its 784 logits"):
            classifier_inputs(net, images(16))
