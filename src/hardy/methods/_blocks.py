"""Which tensors of any CNN the parts of FPCC take: the rule of the house for the word "blocks"."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hardy import residual, topology
from hardy.errors import AttachError
from hardy.methods._checks import some
from hardy.tracing import Trace, trace

__all__ = ["BLOCKS", "CHANNELS", "Places", "places"]

BLOCKS = "blocks"
CHANNELS = 8  # fewer say too little to have a pattern


@dataclass(frozen=True)
class Places:
    """Where channels are dropped, and where patterns are compared.

    Attributes:
        drop: Sites for CFS.
        compare: Sites for PRO.
        notes: What should be known about them.
    """

    drop: tuple[str, ...]
    compare: tuple[str, ...]
    notes: tuple[str, ...]

    @staticmethod
    def put(sites: Sequence[str], blocks: Sequence[str], method: str) -> tuple[str, ...]:
        """Replace the word "blocks" among sites by what it stands for.

        Raises:
            AttachError: it stands for nothing on this net.
        """
        if BLOCKS in sites and not blocks:
            raise AttachError(
                f"{method}: the net must have layers of at least {CHANNELS} channels, not depthwise; it has none. "
                "Name modules in sites."
            )
        chosen = [place for site in sites for place in (blocks if site == BLOCKS else (site,))]
        return tuple(dict.fromkeys(chosen))


def places(model: nn.Module, example: Tensor, sites: Sequence[str]) -> Places:
    """Find the sites: by residual blocks where the net has some, else by convolutions, as in a VGG.

    Residual nets: channels are dropped from what enters a branch, or a convolution on a shortcut; patterns are those of
    the last convolution of the branch and of the convolution on its shortcut, before their norms. Other nets: both at
    every convolution of the main path, before its norm, and at every hidden linear layer; patterns not at the first
    convolution. Never: depthwise convolutions, side branches of one pixel, logits, or fewer than 8 channels.

    Args:
        model: Any plain CNN classifier.
        example: Images of the size to be used.
        sites: What was asked for; nothing is looked for unless "blocks" is among it.
    """
    if BLOCKS not in sites:
        return Places((), (), ())
    found = trace(model, example)
    widths = _widths(found)
    if blocks := residual.residual_blocks(model, example):
        drop = [site for block in blocks for site in block.entry]
        compare = [site for block in blocks for site in (block.conv, block.projection) if site is not None]
    else:
        convs = [conv.name for stage in topology.stages(model, example) for conv in stage.convs]
        convs = [name for name in convs if not _depthwise(model.get_submodule(name))]
        drop = convs + _hidden(found)
        compare = drop[1:]
    drop, thin = _wide(drop, widths)
    compare, others = _wide(compare, widths)
    left = list(dict.fromkeys([*thin, *others]))
    notes: tuple[str, ...] = () if blocks else ("no residual blocks: all convolutions of the main path count",)
    if left:
        notes += (f"left out, as they have fewer than {CHANNELS} channels: {some(left)}",)
    return Places(tuple(dict.fromkeys(drop)), tuple(dict.fromkeys(compare)), notes)


def _widths(found: Trace) -> dict[str, int]:
    """Count the channels of every site: of what a module returns, and of what enters it."""
    widths: dict[str, int] = {}
    for call in found.calls:
        site = found.site(call)
        name, sharp, number = site.partition("#")
        for place, value in ((name, call.out), (f"{name}@input", call.given)):
            if value is not None and len(found.shape(value)) > 1:
                widths[place] = widths[f"{place}{sharp}{number}"] = found.shape(value)[1]
    return widths


def _wide(sites: Sequence[str], widths: dict[str, int]) -> tuple[list[str], list[str]]:
    """Part the sites into those with enough channels and the others."""
    wide = [site for site in sites if widths.get(site, 0) >= CHANNELS]
    return wide, [site for site in sites if site not in wide]


def _hidden(found: Trace) -> list[str]:
    """Name the linear layers behind the last convolution that do not make the logits."""
    width = found.shape(found.output)[-1] if found.output is not None else -1
    convs = [call.out for call in found.calls if isinstance(call.module, nn.Conv2d)]
    calls = [
        call
        for call in found.calls
        if isinstance(call.module, nn.Linear)
        and len(found.shape(call.out)) == 2
        and not any(found.made(call.out, conv) for conv in convs)
    ]
    return [
        found.site(call)
        for i, call in enumerate(calls)
        if found.shape(call.out)[-1] != width or any(found.made(call.out, later.given or 0) for later in calls[i + 1 :])
    ]


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
