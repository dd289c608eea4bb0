"""Which tensors of a stage a method takes: the rules of the house, for any CNN."""

from collections.abc import Sequence

from torch import Tensor, nn

from hardy.topology import Stage, first_conv, is_stage, pick, stages

__all__ = ["after_norm", "early"]


def after_norm(model: nn.Module, example: Tensor, sites: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Turn stage names into the normalised, not yet activated outputs of their convolutions; keep other sites.

    Of each stage, the convolutions with a kernel above 1 count, or all if there is none. Where no norm takes the output
    of a convolution, the output itself is the site.

    Returns:
        The sites, and notes that say where there was no norm.
    """
    found: list[Stage] = stages(model, example) if any(map(is_stage, sites)) else []
    chosen: list[str] = []
    bare: list[str] = []
    for site in sites:
        if not is_stage(site):
            chosen.append(site)
            continue
        for stage in pick(found, site):
            wide = [conv for conv in stage.convs if conv.kernel > 1] or list(stage.convs)
            chosen += [conv.norm or conv.name for conv in wide]
            bare += [conv.name for conv in wide if conv.norm is None]
    shown = f"{', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}"
    notes = (
        (f"after the convolution itself, as no norm takes its output: {shown} ({len(bare)} in all)",) if bare else ()
    )
    return tuple(dict.fromkeys(chosen)), notes


def early(model: nn.Module, example: Tensor, sites: Sequence[str]) -> tuple[str, ...]:
    """Turn "stem" into the output of the first convolution of the net, and other stages into theirs; keep sites."""
    found: list[Stage] = stages(model, example) if any(map(is_stage, sites)) else []
    return tuple(
        dict.fromkeys(
            name
            for site in sites
            for name in ([first_conv([stage]) for stage in pick(found, site)] if is_stage(site) else [site])
        )
    )
