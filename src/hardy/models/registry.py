"""Which nets there are, and which arguments may be given to them.

A checkpoint names its net; only names and arguments that pass :func:`known` and :func:`check_args` are ever built, so
that a file from a stranger cannot make Hardy download or run anything.
"""

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from hardy.errors import ParameterError, did_you_mean
from hardy.models.cifar_densenet import cifar_densenet121
from hardy.models.cifar_googlenet import cifar_googlenet
from hardy.models.cifar_lenet import lenet5
from hardy.models.cifar_preact import cifar_preact_resnet18
from hardy.models.cifar_resnet import DEPTHS, cifar_resnet18, cifar_resnet34, cifar_resnet50, cifar_resnet_6n2
from hardy.models.cifar_senet import cifar_senet18
from hardy.models.cifar_vgg import cifar_vgg16, cifar_vgg19
from hardy.models.cifar_wrn import cifar_wrn
from hardy.models.classifier import Arg
from hardy.models.robustbench import ZOO

__all__ = ["ARGS", "BUILTIN", "check_args", "known", "list_models", "names"]

# depth and factor of the wide residual nets: those of their paper, then those of the robustness literature
WIDE = ((16, 4), (28, 10), (40, 2), (34, 10), (34, 15), (34, 20), (70, 16), (82, 8), (94, 16), (106, 16))
# name -> factory; every factory takes num_classes and in_channels, and the arguments listed in ARGS["builtin"]
BUILTIN: Mapping[str, Callable[..., nn.Module]] = {
    "cifar_resnet18": cifar_resnet18,
    "cifar_resnet34": cifar_resnet34,
    "cifar_resnet50": cifar_resnet50,
    **{f"cifar_resnet{depth}": partial(cifar_resnet_6n2, depth) for depth in DEPTHS},
    "cifar_preact_resnet18": cifar_preact_resnet18,
    "cifar_vgg16": cifar_vgg16,
    "cifar_vgg19": cifar_vgg19,
    **{f"cifar_wrn{depth}_{factor}": partial(cifar_wrn, depth, factor) for depth, factor in WIDE},
    "cifar_densenet121": cifar_densenet121,
    "cifar_senet18": cifar_senet18,
    "cifar_googlenet": cifar_googlenet,
    "lenet5": lenet5,
}

# builder -> argument -> range of a number, or the pattern of a word
Range = tuple[float, float]
WORD = re.compile(r"[a-z0-9_]{1,32}")
ARGS: Mapping[str, Mapping[str, tuple[type, Range | None]]] = {
    "timm": {
        "drop_rate": (float, (0, 1)),
        "drop_path_rate": (float, (0, 1)),
        "output_stride": (int, (1, 64)),
        "global_pool": (str, None),
        "act_layer": (str, None),
        "norm_layer": (str, None),
    },
    "torchvision": {"dropout": (float, (0, 1)), "width_mult": (float, (0.05, 8))},
    "builtin": {
        "width": (int, (1, 4096)),
        "stem_width": (int, (1, 4096)),
        "bottom_scale": (float, (0.001, 64)),
        "shortcut": (str, None),
        "final_norm": (bool, None),
        "activation": (str, None),
        "padding": (str, None),
        "growth": (int, (1, 512)),
    },
    "external": {},
}


def names(builder: str) -> list[str]:
    """List the names of one builder, sorted; other than timm, torchvision, builtin and robustbench have none."""
    if builder == "timm":
        import timm

        return list(timm.list_models())
    if builder == "torchvision":
        from torchvision import models

        return sorted(models.list_models(module=models))  # type: ignore[attr-defined]  # no __all__
    return sorted({"builtin": BUILTIN, "robustbench": ZOO}.get(builder, {}))


def known(builder: str, name: str) -> bool:
    """Tell whether an installed package builds this net from code alone: no hub, no path, no download.

    A timm name may end in the tag of its pretrained weights (``resnet18.a1_in1k``), which sets the normalisation. Names
    of "robustbench" need their weights from a file.
    """
    if builder == "robustbench":
        return name in ZOO
    if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", name):
        return False
    if builder == "timm":
        import timm

        base, dot, _ = name.partition(".")
        return bool(timm.is_model(base)) and (not dot or name in timm.list_pretrained(f"{base}.*"))
    return name in names(builder)


def check_args(builder: str, args: Mapping[str, Arg]) -> None:
    """Refuse arguments outside the allow-list of a builder.

    Raises:
        ParameterError: an unknown argument, a wrong type, or a number out of range.
    """
    allowed = ARGS[builder]
    for name, value in args.items():
        if name not in allowed:
            hint = did_you_mean(name, allowed) if allowed else "a factory's own arguments belong into the file."
            raise ParameterError(f"{builder} nets: argument {name!r} is not allowed; {hint}")
        want, limits = allowed[name]
        if type(value) is not want and not (want is float and type(value) is int):
            raise ParameterError(f"{builder} nets: {name} must be {want.__name__}; got {value!r}.")
        if limits and not (limits[0] <= float(value) <= limits[1] and math.isfinite(float(value))):
            raise ParameterError(f"{builder} nets: {name} must be in [{limits[0]}, {limits[1]}]; got {value!r}.")
        if isinstance(value, str) and not WORD.fullmatch(value):
            raise ParameterError(f"{builder} nets: {name} must be a lower-case word; got {value!r}.")


def list_models(pattern: str = "*") -> list[str]:
    """List every net that :func:`hardy.models.build` knows by name.

    Built-in nets first, then ``timm:``, ``torchvision:`` and, from a file of weights only, ``robustbench:``.

    Args:
        pattern: Glob, tried on the name with and without its prefix; ``"timm:*next*"`` or ``"resnet18"``.
    """
    found = [name for name in BUILTIN if fnmatch.fnmatchcase(name, pattern)]
    for builder in ("timm", "torchvision", "robustbench"):
        full = ((f"{builder}:{name}", name) for name in names(builder))
        found += [long for long, short in full if any(fnmatch.fnmatchcase(n, pattern) for n in (long, short))]
    return found
