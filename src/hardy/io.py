"""Save and load models: one safetensors file with a JSON header that says how to build the net again.

Loading executes nothing and unpickles nothing: the builder must be in the installed registry, its arguments are JSON
scalars from an allow-list, and all names, shapes and types are compared on the meta device before memory is taken.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hardy import config, models, surgery
from hardy.errors import CheckpointError, HardyError, did_you_mean
from hardy.methods import CARDS, METHODS
from hardy.models.registry import check_args
from hardy.safefile import read_header, read_tensors, write_tensors

__all__ = ["FORMAT", "SUFFIX", "Header", "MethodRecord", "load", "load_model", "read", "record", "save"]

FORMAT = 1  # 1: first format
SUFFIX = ".safetensors"
LARGEST_SIDE = 16384  # pixels of an input; a header that claims more is lying
MOST_METHODS = 16


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """A method that is live in a saved model.

    Attributes:
        name: Its name in ``hardy.methods.METHODS``.
        seed: The seed it was attached with.
        params: The fields of its dataclass.
    """

    name: str
    seed: int
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a checkpoint says of itself; JSON in the metadata of the file.

    Attributes:
        format: Number of this schema.
        source: How to build the net.
        class_names: Names of the classes in label order.
        input_shape: Channels, height, width that live methods were attached with; None without any.
        methods: The live methods, in the order they were attached.
        trained_with: ``repr`` of all methods of the training, those that left no trace included.
        metrics: Accuracies and losses at the end of training, by name.
        provenance: Command, versions, data, seed; strings.
    """

    format: int
    source: models.Source
    class_names: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] | None = None
    methods: tuple[MethodRecord, ...] = ()
    trained_with: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    trained_with: tuple[str, ...] | None = None,
    metrics: Mapping[str, float] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write a model to one file, whole or not at all.

    Train-only methods are left out (their names are recorded); masks and other live methods are saved with it. A
    ``Classifier`` (what ``hardy.load_model`` gives) can be loaded without its code; any other module is saved as
    "external": ``hardy.load(path, model=...)`` needs it from the caller.

    Args:
        model: The plain model.
        path: File name that ends in ``.safetensors``.
        trained_with: ``repr`` of the methods of its training; by default what is attached now.
        metrics: Numbers to keep with it.
        provenance: Strings to keep with it.

    Raises:
        CheckpointError: another suffix, or a live method that is not one of Hardy's.
        DataError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"save: the file name must end in {SUFFIX}; got {path.name}.")
    names = tuple(repr(a.insert.spec) for a in surgery.attachments(model))
    plain = surgery.strip(model)
    live = surgery.attachments(plain)
    header = Header(
        format=FORMAT,
        source=_source(plain),
        class_names=plain.class_names if isinstance(plain, models.Classifier) else (),
        input_shape=live[0].insert.input_shape if live else None,
        methods=tuple(record(a.insert) for a in live),
        trained_with=names if trained_with is None else trained_with,
        metrics=dict(metrics or {}),
        provenance=dict(provenance or {}),
    )
    write_tensors(path, plain.state_dict(), dataclasses.asdict(header))
    return path


def record(held: surgery.Insert) -> MethodRecord:
    """Describe an attached method of Hardy's, so that it can be attached again.

    Raises:
        CheckpointError: it is a user's own class.
    """
    name = next((name for name, method in METHODS.items() if type(held.spec) is method), None)
    if name is not None:
        return MethodRecord(name=name, seed=held.seed, params=dataclasses.asdict(held.spec))
    raise CheckpointError(
        f"save: {type(held.spec).__name__} is live at test time and not one of Hardy's methods, so the file could not "
        "be loaded again. Save `hardy.strip(model, live=True)`, or add the method to hardy.methods."
    )


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a model, in eval mode, on the CPU. Executes nothing from the file.

    Args:
        path: A file that :func:`save` wrote.
        model: For "external" files: the same module, freshly built and plain. It gets the live methods and weights.

    Raises:
        CheckpointError: missing, truncated, not Hardy's, or not fitting the net; the message says what differs.
    """
    path = Path(path)
    header = read(path)
    if header.source.builder == "external" and model is None:
        raise CheckpointError(
            f"{path}: holds the weights of {header.source.name}, built by code of your own. "
            "Pass the module: hardy.load(path, model=...)."
        )
    plan = _plan(path, header, model)
    _compare(path, _shapes(plan), read_header(path)[1])
    net = models.rebuild(header.source) if header.source.builder != "external" or model is None else model
    if header.class_names and isinstance(net, models.Classifier):
        net.class_names = header.class_names
    surgery.transplant(plan, net)
    net.load_state_dict(read_tensors(path))
    return net.eval()


def read(path: str | Path) -> Header:
    """Read and check the header of a checkpoint, without its weights.

    Raises:
        CheckpointError: missing, truncated, not Hardy's, of a newer format, or with a builder that is not installed.
    """
    path = Path(path)
    raw, _ = read_header(path)
    if raw.get("format") not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"{path}: format {raw.get('format')!r} is not known to this version (it writes {FORMAT})."
        )
    try:
        header = config.build(Header, _without_none(raw))
        check_args(header.source.builder, header.source.args)
    except (HardyError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid: {error}") from error
    source = header.source
    if source.builder != "external" and not models.known(source.builder, source.name):
        raise CheckpointError(f"{path}: {source.builder} has no net {source.name!r} in this installation.")
    if header.class_names and len(header.class_names) != source.num_classes:
        raise CheckpointError(f"{path}: {len(header.class_names)} class names for {source.num_classes} classes.")
    for method in header.methods:
        if method.name not in METHODS:
            raise CheckpointError(f"{path}: unknown method {method.name!r}; {did_you_mean(method.name, METHODS)}")
        if not CARDS[method.name].live:
            raise CheckpointError(f"{path}: {method.name} is for training only; it cannot be live in a saved model.")
    if len(header.methods) > MOST_METHODS:
        raise CheckpointError(f"{path}: at most {MOST_METHODS} methods can be live; got {len(header.methods)}.")
    shape = header.input_shape or (0, 0, 0)
    wrong_channels = source.builder != "external" and shape[0] != source.in_channels
    if header.methods and (wrong_channels or not 1 <= min(shape) <= max(shape) <= LARGEST_SIDE):
        raise CheckpointError(
            f"{path}: input_shape {header.input_shape} cannot be right for {source.in_channels} channels."
        )
    return header


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool | str | Path = False,
    in_channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    input_size: int | None = None,
    args: Mapping[str, models.Arg] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build or load a classifier with its normalisation inside: pixels in [0, 1] in, logits out.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, ``robustbench:DATA/THREAT/MODEL`` (with ``pretrained`` its file), a
            built-in net (``cifar_resnet18``), ``path/to/file.py:factory``, or a Hardy checkpoint (``.safetensors``),
            which needs no further argument.
        num_classes: Number of classes; by default what the net was made for.
        pretrained: True to fetch weights, or a weights file.
        in_channels: Channels of the images.
        mean: Overrides the normalisation of the net, in pixels in [0, 1].
        std: Likewise.
        input_size: Height and width the net is to be made for, where it asks for one.
        args: Further arguments of the builder (``drop_path_rate``, ``width``).
        seed: Seed of the initial weights; equal seeds give equal weights.

    Raises:
        HardyError: unknown name, a file that does not fit, or weights that cannot be fetched; the message says which.
    """
    if name.endswith(SUFFIX):
        return load(name)
    return models.build(
        name,
        num_classes=num_classes,
        in_channels=in_channels,
        pretrained=Path(pretrained) if isinstance(pretrained, str) else pretrained,
        mean=mean,
        std=std,
        seed=seed,
        input_size=input_size,
        args=args,
    )


def _source(model: nn.Module) -> models.Source:
    if isinstance(model, models.Classifier):
        return model.source
    return models.Source(
        builder="external", name=type(model).__name__, num_classes=1, in_channels=1, mean=(0.0,), std=(1.0,)
    )


def _plan(path: Path, header: Header, model: nn.Module | None) -> nn.Module:
    """Build the net of the header, with its live methods, on the meta device: all shapes and no memory."""
    try:
        with torch.device("meta"):
            own = header.source.builder == "external" and model is not None
            net = copy.deepcopy(model).to("meta") if own and model is not None else models.rebuild(header.source)
            for each in header.methods:
                method: surgery.Method = config.build(METHODS[each.name], _without_none(each.params))
                method.attach(net, example=torch.zeros(1, *(header.input_shape or ())), seed=each.seed)
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{path}: the net of the header cannot be built: {error}") from error
    return net


def _shapes(net: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (DTYPES.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for name, value in net.state_dict().items()
    }


DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # as safetensors names them


def _compare(path: Path, want: Mapping[str, object], found: Mapping[str, object]) -> None:
    differs = [
        f"{name} is {found[name]}, the net has {want[name]}"
        for name in want
        if name in found and found[name] != want[name]
    ]
    differs += [f"{name} is missing" for name in want.keys() - found.keys()]
    differs += [f"{name} is not in the net" for name in found.keys() - want.keys()]
    if differs:
        more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
        raise CheckpointError(f"{path}: the tensors do not fit the net: {'; '.join(sorted(differs)[:3])}{more}.")


def _without_none(data: Any) -> Any:
    """Drop null members, which a TOML-minded reader does not know."""
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return [_without_none(value) for value in data] if isinstance(data, list) else data
