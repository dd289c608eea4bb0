"""Write docs/nets.md: what every method that works inside a net takes on every family of CNNs, or why it cannot.

python docs/nets.py     (some minutes; a slow test compares the committed page with what this computes)
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import hardy
from hardy.errors import HardyError
from hardy.methods import CARDS, METHODS
from hardy.objective import Objective
from hardy.topology import Stage, stages

HERE = Path(__file__).parent
CLASSES = 7
SETTINGS = {"model_doctor": {"channel": 0.0, "space": 1.0}}  # what defaults leave to the user: a file of relevance
METHODS_INSIDE = [name for name, card in CARDS.items() if card.kind == "layer"]
# family -> a net of it and the smallest image of 32, 64, 96, 128 that it takes; small ones where there is a choice
NETS = {
    "ResNet": ("timm:resnet18", 32),
    "ResNet, bottleneck": ("timm:resnet50", 32),
    "ResNet-D": ("timm:resnet18d", 32),
    "ResNet v2 (pre-activation)": ("timm:resnetv2_50", 32),
    "ResNeXt": ("timm:resnext50_32x4d", 32),
    "Res2Net": ("timm:res2net50_26w_4s", 32),
    "ResNeSt": ("timm:resnest14d", 32),
    "SE-ResNet": ("timm:seresnet50", 32),
    "ECA-ResNet": ("timm:ecaresnet26t", 32),
    "SK-ResNet": ("timm:skresnet18", 32),
    "TResNet": ("timm:tresnet_m", 64),
    "GENet (GPU-efficient)": ("timm:gernet_s", 32),
    "RegNetX": ("timm:regnetx_002", 32),
    "RegNetY": ("timm:regnety_002", 32),
    "DenseNet": ("timm:densenet121", 32),
    "RDNet": ("timm:rdnet_tiny", 32),
    "DPN": ("timm:dpn48b", 32),
    "VGG": ("timm:vgg11_bn", 32),
    "VGG without norms": ("timm:vgg11", 32),
    "Inception v3": ("timm:inception_v3", 96),
    "Inception v4": ("timm:inception_v4", 96),
    "Inception-ResNet": ("timm:inception_resnet_v2", 96),
    "InceptionNeXt": ("timm:inception_next_atto", 32),
    "Xception": ("timm:legacy_xception", 64),
    "Xception (modified, aligned)": ("timm:xception41", 32),
    "EfficientNet": ("timm:efficientnet_b0", 32),
    "EfficientNetV2": ("timm:tf_efficientnetv2_b0", 32),
    "MixNet": ("timm:mixnet_s", 32),
    "TinyNet": ("timm:tinynet_e", 32),
    "LCNet": ("timm:lcnet_050", 32),
    "MnasNet": ("timm:mnasnet_050", 32),
    "FBNet": ("timm:fbnetc_100", 32),
    "HardCoRe-NAS": ("timm:hardcorenas_a", 32),
    "MobileNetV2": ("timm:mobilenetv2_050", 32),
    "MobileNetV3": ("timm:mobilenetv3_small_050", 32),
    "MobileNetV4": ("timm:mobilenetv4_conv_small_035", 32),
    "MobileOne": ("timm:mobileone_s0", 32),
    "GhostNet": ("timm:ghostnet_050", 32),
    "GhostNetV2": ("timm:ghostnetv2_100", 64),
    "RepGhostNet": ("timm:repghostnet_050", 32),
    "HRNet": ("timm:hrnet_w18_small", 32),
    "DLA": ("timm:dla34", 32),
    "CSPResNet": ("timm:cspresnet50", 32),
    "CSPDarkNet": ("timm:cspdarknet53", 32),
    "DarkNet": ("timm:darknet53", 32),
    "VoVNet": ("timm:vovnet39a", 32),
    "ESE-VoVNet": ("timm:ese_vovnet19b_dw", 32),
    "HGNet": ("timm:hgnet_tiny", 32),
    "HGNetV2": ("timm:hgnetv2_b0", 32),
    "ConvNeXt": ("timm:convnext_atto", 32),
    "ConvNeXtV2": ("timm:convnextv2_atto", 32),
    "ConvMixer": ("timm:convmixer_768_32", 32),
    "NFNet": ("timm:nfnet_f0", 32),
    "NF-RegNet": ("timm:nf_regnet_b0", 32),
    "RepVGG": ("timm:repvgg_a0", 32),
    "RepViT": ("timm:repvit_m0_9", 32),
    "SelecSLS": ("timm:selecsls42", 64),
    "ReXNet": ("timm:rexnet_100", 32),
    "FastViT (convolutional stages)": ("timm:fastvit_t8", 32),
    "StarNet": ("timm:starnet_s1", 32),
    "MambaOut": ("timm:mambaout_femto", 32),
    "FocalNet": ("timm:focalnet_tiny_srf", 32),
    "PoolFormer": ("timm:poolformer_s12", 32),
    "EfficientViT": ("timm:efficientvit_b0", 64),
    "NASNet": ("timm:nasnetalarge", 96),
    "AlexNet": ("torchvision:alexnet", 64),
    "VGG, torchvision": ("torchvision:vgg11_bn", 32),
    "ResNet, torchvision": ("torchvision:resnet18", 32),
    "Wide ResNet, torchvision": ("torchvision:wide_resnet50_2", 32),
    "DenseNet, torchvision": ("torchvision:densenet121", 32),
    "GoogLeNet, torchvision": ("torchvision:googlenet", 32),
    "Inception v3, torchvision": ("torchvision:inception_v3", 96),
    "SqueezeNet, torchvision": ("torchvision:squeezenet1_1", 32),
    "MobileNetV2, torchvision": ("torchvision:mobilenet_v2", 32),
    "MobileNetV3, torchvision": ("torchvision:mobilenet_v3_small", 32),
    "MnasNet, torchvision": ("torchvision:mnasnet0_5", 32),
    "ShuffleNetV2, torchvision": ("torchvision:shufflenet_v2_x0_5", 32),
    "EfficientNet, torchvision": ("torchvision:efficientnet_b0", 32),
    "RegNetY, torchvision": ("torchvision:regnet_y_400mf", 32),
    "ConvNeXt, torchvision": ("torchvision:convnext_tiny", 32),
    "ResNet-18, CIFAR": ("cifar_resnet18", 32),
    "ResNet-50, CIFAR": ("cifar_resnet50", 32),
    "ResNet-20, CIFAR": ("cifar_resnet20", 32),
    "VGG-16, CIFAR": ("cifar_vgg16", 32),
    "WRN-16-4, CIFAR": ("cifar_wrn16_4", 32),
    "DenseNet-121, CIFAR": ("cifar_densenet121", 32),
    "SENet-18, CIFAR": ("cifar_senet18", 32),
    "GoogLeNet, CIFAR": ("cifar_googlenet", 32),
    "LeNet-5": ("lenet5", 32),
}
INTRO = f"""# Any CNN

Computed by `python docs/nets.py`; a slow test repeats it. For {len(NETS)} families: the smallest image tried, the
stages (stride:channels, the stem first), and what each method that works inside a net takes there by default, as number
of places and first place. Each cell was attached, trained for one step and detached again without a trace; slow tests
attach at 224 px as well. Methods that change the batch or the loss work on every net. A star: the attachment has a note
(`attachment.notes`): no norm takes the output of some of these convolutions, so the output itself is the place; the
feature map is no larger than a block; the net drops values of its own; for CFS and FPCC, it has no residual blocks, so
that all convolutions count, or some places have fewer than 8 channels and are left out.

Where a kernel is the sum of several (RepVGG, MobileOne, FastViT, RepViT), the places are in its widest branch, and the
others flow on. `hardy layers MODEL` lists the stages and convolutions of your net; `attachment.sites` and `.notes` say
where a method went.
"""


def images(size: int, n: int = 1) -> Tensor:
    """Make random images."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    """Build a net with seeded weights."""
    return hardy.load_model(name, num_classes=CLASSES, seed=0)


def cell(model: nn.Module, method: str, size: int) -> str:
    """Attach one method, do a training step, take it off, and say where it went, or why it could not.

    Raises:
        AssertionError: the step gave no finite gradient, or a trace was left.
    """
    before = copy.deepcopy(model.state_dict())
    try:
        attached = hardy.attach(model, [METHODS[method](**SETTINGS.get(method, {}))], example=images(size), seed=0)
    except HardyError as error:
        return f"no: {str(error).removeprefix(f'{method}: ').partition(', and ')[0].partition('. One')[0].rstrip('.')}"
    _, losses = Objective(model, attached).train()(images(size, 2), torch.tensor([0, 1]))
    sum(losses.values()).backward()  # type: ignore[union-attr]  # the sum of tensors
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)  # noqa: S101  (a check)
    sites, notes = attached[0].sites, [note for note in attached[0].notes if not note.startswith("patterns of")]
    attached.detach()
    model.eval().zero_grad(set_to_none=True)
    assert list(model.state_dict()) == list(before)  # noqa: S101  (a check)
    model.load_state_dict(before)  # the step has moved the statistics of the norms
    return f"{len(sites)}{'*' if notes else ''}: `{sites[0].removeprefix('net.')}`"


def stage_cell(found: list[Stage]) -> str:
    """Say the strides and channels of the stages."""
    return " ".join(f"{stage.stride}:{stage.channels}" for stage in found)


def rows() -> Iterator[str]:
    """Make the rows of the table."""
    for family, (name, size) in NETS.items():
        model = build(name)
        cells = [cell(model, method, size) for method in METHODS_INSIDE]
        first = f"{family} | `{name}` | {size} | {stage_cell(stages(model, images(size)))}"
        yield f"| {first} | {' | '.join(cells)} |"


def nets_page() -> str:
    """Make the whole page."""
    head = ["family", "net", "px", "stages", *(f"`{name}`" for name in METHODS_INSIDE)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows()]
    return INTRO + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stderr.write("some minutes\n")
    (HERE / "nets.md").write_text(nets_page(), encoding="utf-8")
