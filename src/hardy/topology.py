"""Where in any CNN: the stages of a net, read off one forward pass.

A stage is the set of modules between stride changes on the main path. The stem is what precedes the first repeated
block, else the first convolution. Convolutions that see one pixel because something was pooled (squeeze-and-excitation,
heads) are side branches and belong to no stage.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from hardy.errors import LayerNotFoundError, ShapeError
from hardy.sites import check_plain, module_names
from hardy.surgery import without_trace

__all__ = ["Conv", "Stage", "first_conv", "is_stage", "pick", "stages"]

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
    """

    name: str
    kernel: int
    channels: int
    size: tuple[int, int]
    norm: str | None


@dataclass(frozen=True)
class Stage:
    """One stage of a net.

    Attributes:
        name: "stem", "stage1", "stage2", ...
        stride: Input pixels per output pixel.
        channels: Output channels of its last convolution.
        modules: Names of its leaf modules, in call order.
        convs: Its convolutions, in call order.
    """

    name: str
    stride: int
    channels: int
    modules: tuple[str, ...]
    convs: tuple[Conv, ...] = field(repr=False)


@dataclass
class _Call:
    name: str
    module: nn.Module
    given: Tensor | None
    out: Tensor  # kept, so that identities stay unique


def stages(model: nn.Module, x: Tensor) -> list[Stage]:
    """List the stages of a CNN, stem first.

    Args:
        model: Any plain CNN classifier.
        x: Images (n, c, h, w) in [0, 1] of the size to be used. Run once in eval mode; leaves no trace.

    Raises:
        ShapeError: ``x`` is not (n, c, h, w).
        LayerNotFoundError: the net has no convolution on images.
        AttachError: the model is compiled or wrapped.
    """
    if x.ndim != 4:
        raise ShapeError(f"stages: x must be (n, c, h, w); got {tuple(x.shape)}.")
    with _trace(model) as calls, without_trace(model, x):
        logits = model(x)
    side = _side_branches(calls)
    convs = _main_convs(calls, side, logits)
    if not convs:
        raise LayerNotFoundError(f"{type(model).__name__} has no convolution on images: Hardy works on CNNs.")
    stem = _stem(model, [call.name for call in convs])
    norms = _norm_sites(calls)
    strides = sorted({_stride(x, call.out) for call in convs if call.name not in stem})
    groups = [("stem", [c for c in convs if c.name in stem])]
    groups += [
        (f"stage{i}", [c for c in convs if c.name not in stem and _stride(x, c.out) == s])
        for i, s in enumerate(strides, 1)
    ]
    begin = min((i for i, c in enumerate(calls) if c.name in {m.name for m in convs} - stem), default=len(calls))
    spans = {"stem": calls[:begin]}
    spans["rest"] = [call for i, call in enumerate(calls) if i >= begin and i not in side]
    return [_stage(name, group, spans.get(name, spans["rest"]), norms, x) for name, group in groups if group]


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
        raise LayerNotFoundError(f"the net has no stage {site!r}; it has {', '.join(s.name for s in found)}.")
    return groups[site]


def first_conv(found: Sequence[Stage]) -> str:
    """Name the first convolution of the main path."""
    return found[0].convs[0].name


@contextmanager
def _trace(model: nn.Module) -> Iterator[list[_Call]]:
    """Record the calls of all modules that return a tensor, in order of return."""
    check_plain(model)
    calls: list[_Call] = []
    names = {module: name for name in module_names(model) for module in [model.get_submodule(name)]}

    def record(module: nn.Module, args: tuple[object, ...], out: object) -> None:
        if isinstance(out, Tensor):
            given = next((a for a in args if isinstance(a, Tensor)), None)
            calls.append(_Call(names[module], module, given, out))

    handles = [module.register_forward_hook(record) for module in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _main_convs(calls: Sequence[_Call], side: set[int], logits: object) -> list[_Call]:
    """Keep the first call of each convolution on images, without side branches and without the head."""
    kept: dict[str, _Call] = {}
    one_pixel = False  # whether the main path itself is down to one pixel
    for i, call in enumerate(calls):
        if not isinstance(call.module, nn.Conv2d) or call.given is None or call.out.ndim != 4:
            continue
        pooled = i in side or (max(call.given.shape[2:]) == 1 and not one_pixel)
        if pooled and max(call.module.kernel_size) == 1:
            continue
        one_pixel |= max(call.out.shape[2:]) == 1
        kept.setdefault(call.name, call)
    convs = list(kept.values())
    linear = any(isinstance(call.module, nn.Linear) for call in calls)
    head = not linear and isinstance(logits, Tensor) and len(convs) > 1 and convs[-1].out.shape[1] == logits.shape[-1]
    return convs[:-1] if head else convs


def _side_branches(calls: Sequence[_Call]) -> set[int]:
    """Number the calls that return one pixel because something was pooled, by a module or by arithmetic."""
    pooled: dict[int, bool] = {}  # tensor -> whether it is on a side branch
    side = set()
    for i, call in enumerate(calls):
        if call.given is None or call.out.ndim != 4 or call.given.ndim != 4:
            continue
        # a 1x1 convolution of one pixel that no module returned: of a mean
        mean = isinstance(call.module, nn.Conv2d) and max(*call.module.kernel_size, *call.given.shape[2:]) == 1
        aside = "Adaptive" in type(call.module).__name__ or pooled.get(id(call.given), mean)
        if pooled.setdefault(id(call.out), aside and max(call.out.shape[2:]) == 1):
            side.add(i)
    return side


def _stem(model: nn.Module, order: Sequence[str]) -> set[str]:
    """Name the convolutions before the first repeated block; the first one if there is no such block."""
    blocks = tuple(f"{name}." for name in _blocks(model))
    before = []
    for name in order:
        if name.startswith(blocks):
            break
        before.append(name)
    return set(before) if before and len(before) < len(order) else {order[0]}


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


def _norm_sites(calls: Sequence[_Call]) -> dict[str, str]:
    """Map convolutions to the site of their normalised output.

    A fused norm-and-activation (timm's ``BatchNormAct2d``) has a child ``drop`` whose output is exactly that point.
    """
    producer: dict[int, _Call] = {}
    sites: dict[str, str] = {}
    for call in calls:
        source = producer.get(id(call.given))
        if source is not None and isinstance(source.module, nn.Conv2d) and _is_norm(call.module):
            fused = isinstance(getattr(call.module, "drop", None), nn.Module) and hasattr(call.module, "act")
            sites.setdefault(source.name, f"{call.name}.drop" if fused else call.name)
        maker = producer.get(id(call.out))
        wraps = maker is not None and maker.name.startswith(f"{call.name}.")  # a container returns its child's
        if not wraps and not isinstance(call.module, nn.Identity):
            producer[id(call.out)] = call
    return sites


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or "Norm" in type(module).__name__


def _stride(x: Tensor, out: Tensor) -> int:
    return max(1, round(max(x.shape[2:]) / max(out.shape[2:])))


def _stage(name: str, group: Sequence[_Call], span: Sequence[_Call], norms: dict[str, str], x: Tensor) -> Stage:
    convs = tuple(
        Conv(c.name, _kernel(c.module), c.out.shape[1], (c.out.shape[2], c.out.shape[3]), norms.get(c.name))
        for c in group
    )
    stride = _stride(x, group[-1].out)
    leaves = [c.name for c in span if c.out.ndim == 4 and not list(c.module.children()) and _stride(x, c.out) == stride]
    return Stage(name, stride, group[-1].out.shape[1], tuple(dict.fromkeys(leaves)), convs)


def _kernel(module: nn.Module) -> int:
    return max(module.kernel_size) if isinstance(module, nn.Conv2d) else 1
