"""``hardy layers``."""

from typing import Annotated

import typer

from hardy.cli.common import Json, answer, guarded, print_json
from hardy.errors import ConfigError

__all__ = ["command"]


@guarded
def command(
    model: Annotated[
        str, typer.Argument(help="Run folder, checkpoint, timm:NAME, torchvision:NAME, built-in, file.py:factory.")
    ],
    size: Annotated[int, typer.Option("--size", help="Height and width of the images.")] = 32,
    channels: Annotated[int, typer.Option("--channels", help="Channels of the images.")] = 3,
    json: Json = False,
) -> None:
    """List the stages of a net and the names that methods can attach to.

    Examples:

        hardy layers cifar_resnet18

        hardy layers timm:resnet50 --size 224
    """
    import dataclasses
    from pathlib import Path

    import torch

    from hardy.io import SUFFIX, load_model, read
    from hardy.topology import stages

    if size < 1 or channels < 1:
        raise ConfigError(f"layers: --size and --channels must be at least 1; got {size}, {channels}.")
    folder = Path(model) / "model.safetensors"
    model = str(folder) if folder.is_file() else model
    if model.endswith(SUFFIX):
        channels = read(Path(model)).source.in_channels
    net = load_model(model, in_channels=channels)
    try:
        found = stages(net, torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"layers: {model} does not take {channels}x{size}x{size} images "
            f"({str(error) or type(error).__name__}). Set --size."
        ) from error
    if json:
        print_json([dataclasses.asdict(stage) for stage in found])
        return
    from rich.table import Table

    table = Table("stage", "stride", "kernel", "output")
    table.add_column("convolution", overflow="fold")
    table.add_column("site after its norm", overflow="fold")
    inner = f"{getattr(net, 'inner', '')}."  # sites may leave it out
    for stage in found:
        for i, conv in enumerate(stage.convs):
            head = (stage.name, str(stage.stride)) if i == 0 else ("", "")
            shape = f"{conv.channels}x{conv.size[0]}x{conv.size[1]}"
            norm = (conv.norm or "(no norm)").removeprefix(inner)
            table.add_row(*head, str(conv.kernel), shape, conv.name.removeprefix(inner), norm)
    answer().print(table)
