"""Where in any CNN: the stages of a net and the input of its classifier, read off one forward pass.

A stage is the set of modules between stride changes on the main path. The stem is what precedes the first repeated
block, else the first convolution. Convolutions that see one pixel because something was pooled (squeeze-and-excitation,
heads) are side branches and belong to no stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hardy.errors import LayerNotFoundError, ShapeError
from hardy.sites import INPUT, module_names
from hardy.tracing import ACTIVATIONS, Call, Trace, trace

__all__ = ["Conv", "Stage", "classifier_inputs", "first_conv", "is_stage", "pick", "stages"]

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Conv:
    """One convolution of the main path.

    Attributes:
        name: Module name.
        kernel: Larger side of its kernel.
        channels: Output channels.
        size: Output height and width on the example.
        norm: Site of its normalised, not yet activated output; None when no norm takes its output.
        act: Site of its activated output; None when no activation module takes its normalised output (its own without
            a norm), as where a shortcut is added first.
    """

    name: str
    kernel: int
    channels: int
    size: tuple[int, int]
    norm: str | None
    act: str | None


@dataclass(frozen=True)
class Stage:
    """One stage of a net.

    Attributes:
        name: "stem", "stage1", "stage2", ...
        stride: Input pixels per output pixel.
        channels: Channels of what it gives to the next stage, or to the classifier.
        entry: Site of the tensor that enters it, such as ``layer1@input``.
        modules: Names of its leaf modules, in call order.
        convs: Its convolutions, in call order.
    """

    name: str
    stride: int
    channels: int
    entry: str
    modules: tuple[str, ...]
    convs: tuple[Conv, ...] = field(repr=False)


def stages(model: nn.Module, x: Tensor) -> list[Stage]:
    """List the stages of a CNN, stem first.

    Args:
        model: Any plain CNN classifier.
        x: Images (n, c, h, w) in [0, 1] of the size to be used. The first is run once in eval mode; leaves no trace.

    Raises:
        ShapeError: ``x`` is not (n, c, h, w).
        LayerNotFoundError: the net has no convolution on images.
        AttachError: the model is compiled or wrapped.
    """
    found = _trace(model, x)
    side = _side_branches(found)
    convs = _main_convs(found, side)
    if not convs:
        raise LayerNotFoundError(f"{type(model).__name__} has no convolution on images: Hardy works on CNNs.")
    stem = _stem(model, convs)
    rest = [call for call in convs if call not in stem]

    def stride(call: Call) -> int:
        return max(1, round(max(x.shape[2:]) / max(found.shape(call.out)[2:])))

    groups = [("stem", stem)]
    for i, s in enumerate(sorted({stride(call) for call in rest}), 1):
        groups.append((f"stage{i}", [call for call in rest if stride(call) == s]))
    begin = rest[0].opened if rest else len(found.calls)
    leaves = [
        call
        for i, call in enumerate(found.calls)
        if len(found.shape(call.out)) == 4
        and not list(call.module.children())
        and (call.opened < begin or i not in side)
    ]
    places = _places(found)
    entries = [f"{stem[0].name}{INPUT}", *(_entry(found, group[0], convs) for _, group in groups[1:])]
    result = []
    for i, (name, group) in enumerate(groups):
        at = stride(group[-1])
        own = [c.name for c in leaves if (c.opened < begin) == (name == "stem") and (stride(c) == at or name == "stem")]
        after = i + 1 < len(groups)
        channels = _channels(found, group[-1], groups[i + 1][1][0] if after else None, entries[i + 1] if after else "")
        listed = tuple(_conv(found, call, places) for call in group)
        result.append(Stage(name, at, channels, entries[i], tuple(dict.fromkeys(own)), listed))
    return result


def is_stage(site: str) -> bool:
    """Tell whether a site is the name of a stage or of a group of stages rather than of a module."""
    return site in {"stem", "bottom", "top", "all"} or (site.startswith("stage") and site[5:].isdecimal())


def pick(found: Sequence[Stage], site: str) -> list[Stage]:
    """Choose stages by name: "stem", "stage2", "bottom" (stem and the first half), "top" (the rest), "all".

    Raises:
        LayerNotFoundError: the net has no such stage.
    """
    stem, rest = [s for s in found if s.name == "stem"], [s for s in found if s.name != "stem"]
    half = math.ceil(len(rest) / 2)
    groups = {"bottom": stem + rest[:half], "top": rest[half:], "all": list(found), **{s.name: [s] for s in found}}
    if not groups.get(site):
        have = ", ".join(s.name for s in found)
        hint = " One stage behind the stem is all bottom: use 'stage1' or 'all'." if site == "top" else ""
        raise LayerNotFoundError(f"the net has no stage {site!r}; it has {have}.{hint}")
    return groups[site]


def first_conv(found: Sequence[Stage]) -> str:
    """Name the first convolution of the main path."""
    return found[0].convs[0].name


def classifier_inputs(model: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Name the sites of the features that enter the last linear layer, or the 1x1 convolution that stands for it.

    A net whose logits are the mean of several heads has several.

    Args:
        model: Any plain CNN classifier.
        x: As for :func:`stages`.

    Raises:
        LayerNotFoundError: no linear layer and no 1x1 convolution makes the logits.
    """
    found = _trace(model, x)
    width = found.shape(found.output)[-1] if found.output is not None else -1
    linear = [call for call in found.calls if _is_linear(call.module) and found.shape(call.out)[-1] == width]
    heads = [
        call
        for call in linear
        if found.output is not None
        and found.made(call.out, found.output)
        and not any(later is not call and found.made(call.out, later.given or 0) for later in linear)
    ]
    conv = _conv_head(found, [call for call in found.calls if isinstance(call.module, nn.Conv2d)])
    heads = heads or ([conv] if conv is not None else [])
    if not heads:
        raise LayerNotFoundError(f"{type(model).__name__} has no linear layer that makes its {width} logits.")
    return tuple(dict.fromkeys(_input_site(found, call) for call in heads))


def _is_linear(module: nn.Module) -> bool:
    return ("Linear" in type(module).__name__ or isinstance(module, nn.Linear)) and not list(module.children())


def _trace(model: nn.Module, x: Tensor) -> Trace:
    """Trace the model on images, nothing else."""
    if x.ndim != 4:
        raise ShapeError(f"stages: x must be (n, c, h, w); got {tuple(x.shape)}.")
    return trace(model, x)


def _main_convs(found: Trace, side: set[int]) -> list[Call]:
    """Keep the first call of each convolution on images, without side branches and without the head."""
    kept: dict[str, Call] = {}
    one_pixel = False  # whether the main path itself is down to one pixel
    for i, call in enumerate(found.calls):
        if not isinstance(call.module, nn.Conv2d) or call.given is None or len(found.shape(call.out)) != 4:
            continue
        pooled = i in side or (max(found.shape(call.given)[2:]) == 1 and not one_pixel)
        if pooled and max(call.module.kernel_size) == 1:
            continue
        if kept and _is_full(found, call):
            break  # a linear layer by another name: the head begins
        one_pixel |= max(found.shape(call.out)[2:]) == 1
        kept.setdefault(call.name, call)
    convs = list(kept.values())
    convs = convs[:-1] if len(convs) > 1 and _conv_head(found, convs) else convs
    smallest = max(found.shape(convs[-1].out)[2:]) if convs else 0
    return [call for call in convs if max(found.shape(call.out)[2:]) >= smallest]  # smaller: attention from afar


def _is_full(found: Trace, call: Call) -> bool:
    """Tell whether one kernel covers a whole map of several pixels, so that one pixel is left."""
    conv, given = call.module, found.shape(call.given or 0)[2:]
    whole = isinstance(conv, nn.Conv2d) and conv.padding in {(0, 0), 0, "valid"} and conv.kernel_size == given
    return whole and max(given) > 1


def _conv_head(found: Trace, convs: Sequence[Call]) -> Call | None:
    """Give the last convolution if it makes the logits."""
    linear = any(isinstance(call.module, nn.Linear) for call in found.calls)
    if linear or not convs or found.output is None:
        return None
    return convs[-1] if found.shape(convs[-1].out)[1] == found.shape(found.output)[-1] else None


def _side_branches(found: Trace) -> set[int]:
    """Number the calls that return one pixel because something was pooled, by a module or by arithmetic."""
    pooled: dict[int, bool] = {}  # value -> whether it is on a side branch
    side = set()
    for i, call in enumerate(found.calls):
        if call.given is None or len(found.shape(call.out)) != 4 or len(found.shape(call.given)) != 4:
            continue
        # a 1x1 convolution of one pixel that no module returned: of a mean
        conv = isinstance(call.module, nn.Conv2d) and max(*call.module.kernel_size, *found.shape(call.given)[2:]) == 1
        aside = "Adaptive" in type(call.module).__name__ or pooled.get(call.given, conv)
        if pooled.setdefault(call.out, aside and max(found.shape(call.out)[2:]) == 1):
            side.add(i)
    return side


def _stem(model: nn.Module, convs: Sequence[Call]) -> list[Call]:
    """Give the convolutions before the first repeated block; without such a block, or if it comes first, the first.

    Parallel branches that read what the first reads belong to it, the widest kernel first.
    """
    blocks = tuple(f"{name}." for name in _blocks(model))
    count = next((i for i, call in enumerate(convs) if call.name.startswith(blocks)), 0)
    stem = list(convs[:count]) if 0 < count < len(convs) else [convs[0]]
    parallel = [call for call in convs if call.given == convs[0].given]
    first = sorted(parallel, key=_kernel, reverse=True)
    return first + [call for call in stem if call not in first]


def _kernel(call: Call) -> int:
    return max(call.module.kernel_size) if isinstance(call.module, nn.Conv2d) else 1


def _blocks(model: nn.Module) -> list[str]:
    """Name the modules that look like blocks: two or more weight layers, in a container or of a repeated class."""
    found: dict[type, list[str]] = {}
    listed: list[str] = []
    for name in module_names(model):
        module = model.get_submodule(name)
        weights = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules())
        if weights < 2 or isinstance(module, CONTAINERS) or not any(isinstance(m, nn.Conv2d) for m in module.modules()):
            continue
        found.setdefault(type(module), []).append(name)
        if isinstance(model.get_submodule(name.rpartition(".")[0]), CONTAINERS):
            listed.append(name)
    return listed + [name for names in found.values() if len(names) > 1 for name in names]


@dataclass
class _Places:
    """Where a convolution's output is normalised, and where activated; by module name."""

    norm: dict[str, str] = field(default_factory=dict)
    act: dict[str, str] = field(default_factory=dict)


def _places(found: Trace) -> _Places:
    """Follow each convolution to the norm and the activation that take its output.

    A fused norm-and-activation (timm's ``BatchNormAct2d``) has a child ``drop`` whose output is the point between. A
    norm may take several convolutions at once, as where the channels of one map are made by several kernels.
    """
    made: dict[int, list[str]] = {}  # value -> the convolutions that made it
    normed: dict[int, list[str]] = {}  # value -> the convolutions whose normalised outputs it is
    places = _Places()
    for call in found.calls:
        given = -1 if call.given is None else call.given
        if isinstance(call.module, nn.Conv2d):
            made.setdefault(call.out, [call.name])
        elif _is_norm(call.module):
            parents = found.nodes[given].parents if found.nodes[given].op in {"cat", "concat"} else (given,)
            convs = [conv for value in parents for conv in made.get(value, [])]
            fused = isinstance(getattr(call.module, "drop", None), nn.Module) and hasattr(call.module, "act")
            site = found.site(call)
            name, sharp, number = site.partition("#")
            for conv in convs if all(value in made for value in parents) else ():
                places.norm.setdefault(conv, f"{name}.drop{sharp}{number}" if fused else site)
                if fused and _is_activation(call.module.act):
                    places.act.setdefault(conv, site)
            if not fused:
                normed.setdefault(call.out, convs)
        elif _is_activation(call.module) and not list(call.module.children()):
            bare = [conv for conv in made.get(given, []) if conv not in places.norm]
            for conv in normed.get(given, bare):
                places.act.setdefault(conv, found.site(call))
    return places


def _is_norm(module: nn.Module) -> bool:
    named = "Norm" in type(module).__name__ and not any(isinstance(m, nn.Conv2d) for m in module.modules())
    return isinstance(module, NORMS) or named


def _is_activation(module: object) -> bool:
    return bool(ACTIVATIONS.search(type(module).__name__))


def _entry(found: Trace, first: Call, convs: Sequence[Call]) -> str:
    """Find the outermost module that brings a stage.

    It calls no convolution that came before the stage, but for those of the block that changes the stride: that may
    begin with one at the old stride, and its shortcut enters the new stage as well.
    """
    earlier_calls = [call for call in convs if call.opened < first.opened]
    before = {call.name for call in earlier_calls}
    old = found.shape(earlier_calls[-1].out)[2:] if earlier_calls else None  # pooling may come in between
    called = {call.name: call for call in found.calls if len(found.shape(call.out)) == 4 and call.given is not None}
    name = first.name
    for parent in _parents(first.name):
        inside = {earlier for earlier in before if earlier.startswith(f"{parent}.")}
        call = called.get(parent)
        if inside:
            if convs[0].name in inside:
                break
            if call is None or isinstance(call.module, CONTAINERS):
                continue
            given, out = found.shape(call.given or 0)[2:], found.shape(call.out)[2:]
            if out != found.shape(first.out)[2:] or given not in {found.shape(first.given or 0)[2:], old}:
                break
            before -= inside
        if call is not None and len(found.shape(call.given or 0)) == 4:
            name = parent
    return f"{name}{INPUT}"


def _channels(found: Trace, last: Call, following: Call | None, entry: str) -> int:
    """Count the channels of what enters the next stage; of what the last block returns if there is none."""
    sizes = [found.shape(last.out)[2:]]
    if following is not None:
        sizes.append(found.shape(following.given or 0)[2:])
        values = [call.given for call in found.calls if call.name == entry.removesuffix(INPUT)]
    else:
        above = _parents(last.name)[::-1]
        values = [call.out for name in above for call in found.calls if call.name == name]
    for shape in (found.shape(value) for value in values if value is not None):
        if shape[2:] in sizes:
            return shape[1]
        if shape[1:-1] in sizes:  # channels last
            return shape[-1]
    return found.shape(last.out)[1]


def _parents(name: str) -> list[str]:
    """List the modules above a module, nearest first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _input_site(found: Trace, call: Call) -> str:
    name, sharp, number = found.site(call).partition("#")
    return f"{name}{INPUT}{sharp}{number}"


def _conv(found: Trace, call: Call, places: _Places) -> Conv:
    shape = found.shape(call.out)
    norm, act = places.norm.get(call.name), places.act.get(call.name)
    return Conv(call.name, _kernel(call), shape[1], (shape[2], shape[3]), norm, act)
