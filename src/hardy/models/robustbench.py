"""Which net and which normalisation belong to a checkpoint of RobustBench, https://github.com/RobustBench/robustbench.

Croce et al. "RobustBench: a standardized adversarial robustness benchmark". NeurIPS 2021 (datasets and benchmarks).
https://arxiv.org/abs/2010.09670

Its files hold weights only: what the pixels are normalised with, and what some nets do with them, is in its code. The
table has those facts, read off version 1.1.1, for the models whose nets Hardy, timm or torchvision can build. Names are
the folder and file that RobustBench itself keeps its downloads in, ``cifar10/Linf/Carmon2019Unlabeled`` (``.pt``). Left
out: ensembles, transformers, other activations, normalisation by image, and nets with a function of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hardy.errors import ConfigError, did_you_mean
from hardy.models.classifier import Arg

__all__ = ["PREFIX", "ZOO", "Entry", "entry"]

PREFIX = "robustbench:"
Stats = tuple[tuple[float, ...], tuple[float, ...]]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How to build what a checkpoint is for.

    Attributes:
        net: Name for :func:`hardy.models.build`.
        args: Arguments of the net.
        num_classes: Number of logits.
        mean: Per channel of RGB, in pixels in [0, 1].
        std: Per channel.
        input_size: Height and width the model is evaluated at; None for CIFAR.
    """

    net: str
    args: Mapping[str, Arg]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None


NORMS: Mapping[str, Stats] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar10-short": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar10-small": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar10-long": (
        (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
        (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
    ),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar100-other": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "cifar100-long": (
        (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
        (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
SAME: Mapping[str, Arg] = {"activation": "silu", "padding": "same"}
VARIANTS: Mapping[str, Mapping[str, Arg]] = {
    "": {},
    "deepmind": SAME,
    "deepmind, preact": {**SAME, "shortcut": "raw_3x3"},
    "raw, no last norm": {"shortcut": "raw", "final_norm": False},
}
# folder, net, variant, normalisation -> models
TABLE: Mapping[tuple[str, str, str, str], str] = {
    ("cifar10/Linf", "cifar_wrn28_10", "", "none"): """
        Carmon2019Unlabeled Sehwag2020Hydra Wang2020Improving Wu2020Adversarial_extra Zhang2020Geometry
        Sridhar2021Robust Standard""",
    ("cifar10/Linf", "cifar_wrn28_10", "", "half"): "Hendrycks2019Using",
    ("cifar10/Linf", "cifar_wrn34_10", "", "none"): """
        Zhang2019Theoretically Huang2020Self Zhang2019You Zhang2020Attacks Wu2020Adversarial Sehwag2021Proxy
        Sitawarin2020Improving Cui2020Learnable_34_10 Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10
        Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10 Cui2023Decoupled_WRN-34-10 Chen2024Data_WRN_34_10""",
    ("cifar10/Linf", "cifar_wrn34_10", "", "cifar10"): "Chen2020Efficient",
    ("cifar10/Linf", "cifar_wrn34_15", "", "none"): "Sridhar2021Robust_34_15",
    (
        "cifar10/Linf",
        "cifar_wrn34_20",
        "",
        "none",
    ): "Cui2020Learnable_34_20 Chen2021LTD_WRN34_20 Chen2024Data_WRN_34_20",
    ("cifar10/Linf", "cifar_wrn34_20", "", "cifar10"): "Rice2020Overfitting",
    ("cifar10/Linf", "cifar_wrn70_16", "", "none"): "Jia2022LAS-AT_70_16",
    ("cifar10/Linf", "cifar_wrn28_10", "deepmind", "cifar10"): """
        Gowal2020Uncovering_28_10_extra Rebuffi2021Fixing_28_10_cutmix_ddpm Rade2021Helper_ddpm
        Gowal2021Improving_28_10_ddpm_100m Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10
        Xu2023Exploring_WRN-28-10 Cui2023Decoupled_WRN-28-10""",
    ("cifar10/Linf", "cifar_wrn34_10", "deepmind", "cifar10"): "Rade2021Helper_extra",
    ("cifar10/Linf", "cifar_wrn34_20", "deepmind", "cifar10"): "Gowal2020Uncovering_34_20",
    ("cifar10/Linf", "cifar_wrn70_16", "deepmind", "cifar10"): """
        Gowal2020Uncovering_70_16 Gowal2020Uncovering_70_16_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
        Rebuffi2021Fixing_70_16_cutmix_extra Gowal2021Improving_70_16_ddpm_100m Pang2022Robustness_WRN70_16
        Wang2023Better_WRN-70-16""",
    ("cifar10/Linf", "cifar_wrn82_8", "deepmind", "cifar10"): "Bartoldson2024Adversarial_WRN-82-8",
    ("cifar10/Linf", "cifar_wrn94_16", "deepmind", "cifar10"): "Bartoldson2024Adversarial_WRN-94-16",
    ("cifar10/Linf", "cifar_wrn106_16", "deepmind", "cifar10"): "Rebuffi2021Fixing_106_16_cutmix_ddpm",
    (
        "cifar10/Linf",
        "cifar_resnet18",
        "",
        "none",
    ): "Sehwag2021Proxy_R18 Addepalli2021Towards_RN18 Addepalli2022Efficient_RN18",
    ("cifar10/Linf", "cifar_resnet50", "", "cifar10-small"): "Engstrom2019Robustness",
    ("cifar10/Linf", "cifar_preact_resnet18", "raw, no last norm", "none"): "Andriushchenko2020Understanding",
    ("cifar10/Linf", "cifar_preact_resnet18", "raw, no last norm", "cifar10"): "Wong2020Fast",
    ("cifar10/Linf", "cifar_preact_resnet18", "deepmind, preact", "cifar10"): """
        Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_extra Rade2021Helper_R18_ddpm Gowal2021Improving_R18_ddpm_100m""",
    ("cifar10/L2", "cifar_wrn28_10", "", "none"): "Standard",
    ("cifar10/L2", "cifar_wrn28_10", "", "cifar10-short"): "Rony2019Decoupling",
    ("cifar10/L2", "cifar_wrn34_10", "", "none"): "Wu2020Adversarial Sehwag2021Proxy",
    ("cifar10/L2", "cifar_wrn34_10", "", "cifar10-long"): """
        Augustin2020Adversarial_34_10 Augustin2020Adversarial_34_10_extra""",
    (
        "cifar10/L2",
        "cifar_wrn28_10",
        "deepmind",
        "cifar10",
    ): "Rebuffi2021Fixing_28_10_cutmix_ddpm Wang2023Better_WRN-28-10",
    ("cifar10/L2", "cifar_wrn70_16", "deepmind", "cifar10"): """
        Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm
        Rebuffi2021Fixing_70_16_cutmix_extra Wang2023Better_WRN-70-16""",
    ("cifar10/L2", "cifar_resnet18", "", "none"): "Sehwag2021Proxy_R18",
    ("cifar10/L2", "cifar_resnet50", "", "cifar10-long"): "Augustin2020Adversarial",
    ("cifar10/L2", "cifar_resnet50", "", "cifar10-small"): "Engstrom2019Robustness",
    ("cifar10/L2", "cifar_preact_resnet18", "", "cifar10"): "Rice2020Overfitting",
    ("cifar10/L2", "cifar_preact_resnet18", "deepmind, preact", "cifar10"): """
        Rebuffi2021Fixing_R18_cutmix_ddpm Rade2021Helper_R18_ddpm""",
    ("cifar10/corruptions", "cifar_wrn28_10", "", "none"): "Standard",
    (
        "cifar10/corruptions",
        "cifar_wrn34_10",
        "",
        "none",
    ): "Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10",
    ("cifar10/corruptions", "cifar_wrn40_2", "", "half"): "Hendrycks2020AugMix_WRN",
    ("cifar10/corruptions", "cifar_wrn70_16", "deepmind", "cifar10"): """
        Rebuffi2021Fixing_70_16_cutmix_extra_Linf Rebuffi2021Fixing_70_16_cutmix_extra_L2""",
    ("cifar10/corruptions", "cifar_resnet18", "", "half"): "Modas2021PRIMEResNet18",
    ("cifar10/corruptions", "cifar_preact_resnet18", "", "cifar10"): """
        Kireev2021Effectiveness_Gauss50percent Kireev2021Effectiveness_AugMixNoJSD Kireev2021Effectiveness_RLAT
        Kireev2021Effectiveness_RLATAugMixNoJSD Kireev2021Effectiveness_RLATAugMix""",
    ("cifar100/Linf", "cifar_wrn28_10", "", "half"): "Hendrycks2019Using",
    ("cifar100/Linf", "cifar_wrn34_10", "", "none"): """
        Cui2020Learnable_34_10_LBGAT0 Cui2020Learnable_34_10_LBGAT6 Sehwag2021Proxy Sitawarin2020Improving
        Addepalli2021Towards_WRN34 Chen2021LTD_WRN34_10 Jia2022LAS-AT_34_10 Addepalli2022Efficient_WRN_34_10
        Cui2020Learnable_34_10_LBGAT9_eps_8_255 Cui2023Decoupled_WRN-34-10 Cui2023Decoupled_WRN-34-10_autoaug
        Chen2024Data_WRN_34_10""",
    ("cifar100/Linf", "cifar_wrn34_10", "", "cifar100-other"): "Chen2020Efficient",
    ("cifar100/Linf", "cifar_wrn34_10", "", "cifar100-long"): "Wu2020Adversarial",
    ("cifar100/Linf", "cifar_wrn34_20", "", "none"): "Cui2020Learnable_34_20_LBGAT6 Jia2022LAS-AT_34_20",
    ("cifar100/Linf", "cifar_wrn28_10", "deepmind", "cifar100"): """
        Rebuffi2021Fixing_28_10_cutmix_ddpm Pang2022Robustness_WRN28_10 Wang2023Better_WRN-28-10
        Cui2023Decoupled_WRN-28-10""",
    ("cifar100/Linf", "cifar_wrn70_16", "deepmind", "cifar100"): """
        Gowal2020Uncovering Gowal2020Uncovering_extra Rebuffi2021Fixing_70_16_cutmix_ddpm Pang2022Robustness_WRN70_16
        Wang2023Better_WRN-70-16""",
    ("cifar100/Linf", "cifar_resnet18", "", "none"): "Addepalli2022Efficient_RN18",
    ("cifar100/Linf", "cifar_preact_resnet18", "", "none"): "Addepalli2021Towards_PARN18",
    ("cifar100/Linf", "cifar_preact_resnet18", "", "cifar100-long"): "Rice2020Overfitting",
    ("cifar100/Linf", "cifar_preact_resnet18", "deepmind, preact", "cifar100"): """
        Rebuffi2021Fixing_R18_ddpm Rade2021Helper_R18_ddpm""",
    ("cifar100/corruptions", "cifar_wrn34_10", "", "none"): """
        Addepalli2021Towards_WRN34 Addepalli2022Efficient_WRN_34_10""",
    ("cifar100/corruptions", "cifar_wrn40_2", "", "half"): "Hendrycks2020AugMix_WRN",
    (
        "cifar100/corruptions",
        "cifar_wrn70_16",
        "deepmind",
        "cifar100",
    ): "Gowal2020Uncovering_Linf Gowal2020Uncovering_extra_Linf",
    ("cifar100/corruptions", "cifar_resnet18", "", "half"): "Modas2021PRIMEResNet18",
    ("cifar100/corruptions", "cifar_preact_resnet18", "", "none"): "Addepalli2021Towards_PARN18",
    ("imagenet/Linf", "torchvision:resnet18", "", "imagenet"): "Salman2020Do_R18",
    ("imagenet/Linf", "torchvision:resnet50", "", "imagenet"): "Engstrom2019Robustness Salman2020Do_R50 Wong2020Fast",
    ("imagenet/Linf", "torchvision:wide_resnet50_2", "", "imagenet"): "Salman2020Do_50_2",
    ("imagenet/Linf", "torchvision:wide_resnet50_2", "", "none"): "Chen2024Data_WRN_50_2",
    ("imagenet/Linf", "timm:convnext_base", "", "imagenet"): "Liu2023Comprehensive_ConvNeXt-B",
    ("imagenet/Linf", "timm:convnext_large", "", "imagenet"): "Liu2023Comprehensive_ConvNeXt-L",
    ("imagenet/corruptions", "torchvision:resnet50", "", "imagenet"): """
        Erichson2022NoisyMix Erichson2022NoisyMix_new Geirhos2018_SIN Geirhos2018_SIN_IN Geirhos2018_SIN_IN_IN
        Hendrycks2020Many Hendrycks2020AugMix""",
    ("imagenet/corruptions", "torchvision:wide_resnet50_2", "", "imagenet"): "Salman2020Do_50_2_Linf",
}
SIZES = {"imagenet/Linf/Wong2020Fast": 288}  # all others of ImageNet are evaluated at 224


def _zoo() -> dict[str, Entry]:
    zoo = {}
    for (folder, net, variant, norm), models in TABLE.items():
        data = folder.partition("/")[0]
        for model in models.split():
            name = f"{folder}/{model}"
            zoo[name] = Entry(
                net=net,
                args=VARIANTS[variant],
                num_classes=CLASSES[data],
                mean=NORMS[norm][0],
                std=NORMS[norm][1],
                input_size=SIZES.get(name, 224) if data == "imagenet" else None,
            )
    return zoo


ZOO: Mapping[str, Entry] = _zoo()  # "folder/model" -> how to build it


def entry(name: str) -> Entry:
    """Look a model up.

    Args:
        name: ``robustbench:DATA/THREAT/MODEL``.

    Raises:
        ConfigError: not in the table.
    """
    short = name.removeprefix(PREFIX)
    if short in ZOO:
        return ZOO[short]
    meant = [full for full in ZOO if full.rpartition("/")[2] == short]
    near = f"did you mean {' or '.join(meant)}?" if meant else did_you_mean(short, ZOO)
    near = near if near.startswith("did") else "names are such as cifar10/Linf/Carmon2019Unlabeled."
    raise ConfigError(
        f"model {name!r}: not among the {len(ZOO)} models of RobustBench whose nets are known here; {near} "
        "Others: build the net with the package robustbench, and pass the module."
    )
