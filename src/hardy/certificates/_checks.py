"""What must hold before a certificate is computed."""

from torch import nn

from hardy.errors import ParameterError

__all__ = ["above", "at_least", "eval_mode", "probability"]


def eval_mode(model: nn.Module, who: str) -> None:
    """Raise ParameterError unless the model is in eval mode; nothing is switched behind the caller's back."""
    if model.training:
        raise ParameterError(f"{who}: the model must be in eval mode; it is in train mode. Call model.eval() first.")


def probability(who: str, alpha: float, most: int | float) -> None:
    """Raise ParameterError unless ``alpha`` is above 0 and at most ``most``."""
    if not 0 < alpha <= most:
        raise ParameterError(f"{who}: alpha must be above 0 and at most {most:g}; got {alpha}.")


def above(who: str, **values: int | float) -> None:
    """Raise ParameterError unless all are above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ParameterError(f"{who}: {name} must be a finite number above 0; got {value}.")


def at_least(who: str, least: int, **values: int | float) -> None:
    """Raise ParameterError unless all are finite and at least ``least``."""
    for name, value in values.items():
        if not least <= value < float("inf"):
            raise ParameterError(f"{who}: {name} must be a finite number, at least {least}; got {value}.")
