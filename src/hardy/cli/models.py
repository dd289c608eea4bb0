"""``hardy models``."""

from typing import Annotated

import typer

from hardy.cli.common import Json, guarded, print_json
from hardy.errors import ConfigError

__all__ = ["command"]


@guarded
def command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern; without one, the built-in nets.")] = "",
    json: Json = False,
) -> None:
    """List the nets that can be built: timm's, torchvision's and the built-in ones.

    Examples:

        hardy models

        hardy models "timm:resnet*"
    """
    from hardy.models import BUILTIN, list_models

    names = list_models(pattern) if pattern else sorted(BUILTIN)
    if json:
        print_json(names)
        return
    if not names:
        raise ConfigError(f"models: nothing matches {pattern!r}. Patterns look like 'timm:resnet*' or 'cifar_*'.")
    for name in names:
        typer.echo(name)
    if not pattern:
        typer.echo('(and "timm:*", "torchvision:*": give a pattern)', err=True)
