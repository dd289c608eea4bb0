"""Which tensors of a stage a method takes: the rules of the house, for any CNN."""

import re
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from hardy.methods._checks import some
from hardy.topology import Conv, Stage, classifier_inputs, first_conv, is_stage, pick, stages

__all__ = ["Position", "after_norm", "early", "outputs"]

Position = Literal["post_conv", "post_norm", "post_activation"]
BEFORE = re.compile(r"before_(stage\d+)")


def outputs(
    model: nn.Module, example: Tensor, sites: Sequence[str], *, position: Position
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turn stage names into outputs of their convolutions; keep other sites.

    Of each stage, the convolutions with a kernel above 1 count, or all if there is none.

    Args:
        model: The plain model.
        example: Images of the size to be used.
        sites: Stage names or modules.
        position: "post_conv": the output itself; "post_norm": normalised and not yet activated, the output itself where
            no norm takes it; "post_activation": activated, and as "post_norm" where something else comes before the
            activation, such as the shortcut.

    Returns:
        The sites, and notes that say where it had to be another place.
    """
    found: list[Stage] = stages(model, example) if any(map(is_stage, sites)) else []
    chosen: list[str] = []
    convs: list[Conv] = []
    for site in sites:
        taken = [conv for stage in pick(found, site) for conv in _wide(stage)] if is_stage(site) else []
        chosen += [_place(conv, position) for conv in taken] or [site]
        convs += taken
    bare = [c.name for c in convs if c.norm is None and (position == "post_norm" or not c.act)]
    early = [c.name for c in convs if c.norm is not None and c.act is None]
    notes = []
    if bare and position != "post_conv":
        notes.append(f"after the convolution itself, as no norm takes its output: {some(bare)}")
    if early and position == "post_activation":
        notes.append(f"after the norm, as no activation module takes its output: {some(early)}")
    return tuple(dict.fromkeys(chosen)), tuple(notes)


def after_norm(model: nn.Module, example: Tensor, sites: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turn stage names into the normalised, not yet activated outputs of their convolutions; see :func:`outputs`."""
    return outputs(model, example, sites, position="post_norm")


def early(model: nn.Module, example: Tensor, sites: Sequence[str]) -> tuple[str, ...]:
    """Turn "stem" into the output of the first convolution of the net, and other stages into theirs; keep sites.

    "before_stage1" is the tensor that enters stage 1 (likewise for the others), "pooled" what enters the last linear
    layer.
    """
    words = [site for site in sites if is_stage(site) or BEFORE.fullmatch(site)]
    found: list[Stage] = stages(model, example) if words else []
    chosen: list[str] = []
    for site in sites:
        if is_stage(site):
            chosen += [first_conv([stage]) for stage in pick(found, site)]
        elif match := BEFORE.fullmatch(site):
            (stage,) = pick(found, match[1])
            chosen.append(stage.entry)
        else:
            chosen += classifier_inputs(model, example) if site == "pooled" else [site]
    return tuple(dict.fromkeys(chosen))


def _wide(stage: Stage) -> list[Conv]:
    return [conv for conv in stage.convs if conv.kernel > 1] or list(stage.convs)


def _place(conv: Conv, position: Position) -> str:
    if position == "post_conv":
        return conv.name
    normed = conv.norm or conv.name
    return conv.act or normed if position == "post_activation" else normed
