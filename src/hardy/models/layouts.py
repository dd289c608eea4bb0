"""State dicts of other people's nets, in the names of ours.

The same net is written with other names elsewhere. What is here was read off the nets that RobustBench's checkpoints
belong to (https://github.com/RobustBench/robustbench, version 1.1.1): four of them are the usual CIFAR code of the
literature, so many checkpoints from elsewhere fit too.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

__all__ = ["LAYOUTS", "our_names", "split_normalisation"]

Rules = tuple[tuple[str, str], ...]
# whose names -> pattern and replacement, one after the other; a name that becomes empty is of no use to the net
LAYOUTS: Mapping[str, Rules] = {
    "the wide residual net of TRADES": (
        (r"^sub_block1\..*", ""),  # a stage that the training code built and never called
        (r"^block(\d)\.layer\.", r"layer\1."),
        (r"\.convShortcut\.", ".downsample."),
    ),
    "the residual net of pytorch-cifar": (
        (r"^model_preact_hl1\..*", ""),  # a second view of the last layers in one training code
        (r"\.shortcut\.", ".downsample."),
        (r"^linear\.", "fc."),
    ),
    "the pre-activation residual net of pytorch-cifar": (
        (r"\.shortcut\.0\.", ".downsample."),
        (r"^bn\.", "bn1."),
        (r"^linear\.", "fc."),
    ),
    "DeepMind's wide residual net": (
        (r"^layer\.0\.block\.", "layer1."),
        (r"^layer\.1\.block\.", "layer2."),
        (r"^layer\.2\.block\.", "layer3."),
        (r"\.conv_0\.", ".conv1."),
        (r"\.conv_1\.", ".conv2."),
        (r"\.batchnorm_0\.", ".bn1."),
        (r"\.batchnorm_1\.", ".bn2."),
        (r"\.shortcut\.", ".downsample."),
        (r"^init_conv\.", "conv1."),
        (r"^batchnorm\.", "bn1."),
        (r"^logits\.", "fc."),
    ),
    "DeepMind's pre-activation residual net": (
        (r"^layer_0\.", "layer1."),
        (r"^layer_1\.", "layer2."),
        (r"^layer_2\.", "layer3."),
        (r"^layer_3\.", "layer4."),
        (r"\.conv_2d_(\d)\.", r".conv\1."),
        (r"\.batchnorm_0\.", ".bn1."),
        (r"\.batchnorm_1\.", ".bn2."),
        (r"\.shortcut\.", ".downsample."),
        (r"^conv_2d\.", "conv1."),
        (r"^batchnorm\.", "bn1."),
        (r"^logits\.", "fc."),
    ),
}
NORMALISATION = (("mu", "sigma"), ("mean", "std"))  # what such code calls the two


def our_names(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[Mapping[str, Tensor], str | None]:
    """Rename tensors by the layout of which the most names fit.

    Args:
        state: Names without prefixes, and tensors.
        own: Names of our net.

    Returns:
        The renamed tensors, and whose names they had; as they were, and None, where no layout fits better.
    """
    best, layout = state, None
    for label, rules in LAYOUTS.items():
        names = {name: _rename(name, rules) for name in state}
        used = [name for name in names.values() if name]
        if len(set(used)) == len(used) and len(set(used) & set(own)) > len(best.keys() & set(own)):
            best, layout = {names[name]: value for name, value in state.items() if names[name]}, label
    return best, layout


def split_normalisation(
    state: Mapping[str, Tensor], own: Collection[str], channels: int
) -> tuple[Mapping[str, Tensor], tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Take the normalisation of the images out of a state dict, where code kept it there as buffers.

    Args:
        state: Names, with whatever prefix, and tensors.
        own: Names of our net; if it has such tensors itself, they stay.
        channels: Channels of the images.

    Returns:
        The other tensors; and mean and std, one or one for each channel of RGB or of the images, in pixels in [0, 1];
        None where there are none, or more than one pair.
    """
    pairs = []
    for first, second in NORMALISATION:
        owners = [name.removesuffix(first) for name in state if name.rpartition(".")[2] == first]
        pairs += [(owner + first, owner + second) for owner in owners if owner + second in state]
    if len(pairs) != 1 or any(name.rpartition(".")[2] in {"mu", "mean"} for name in own):
        return state, None
    stats = [tuple(map(float, state[name].flatten().tolist())) for name in pairs[0]]
    if len(stats[0]) != len(stats[1]) or len(stats[0]) not in {1, 3, channels}:
        return state, None
    return {name: value for name, value in state.items() if name not in pairs[0]}, (stats[0], stats[1])


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
