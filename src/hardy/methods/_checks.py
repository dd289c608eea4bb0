"""Range checks that the specs share, in one wording."""

from hardy.errors import ParameterError

__all__ = ["in_range", "one_of"]


def in_range(method: str, name: str, value: float, low: int | float, high: int | float) -> None:
    """Raise ParameterError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ParameterError(f"{method}: {name} must be in [{low:g}, {high:g}]; got {value}.")


def one_of(method: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ParameterError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ParameterError(f"{method}: {name} must be one of {', '.join(known)}; got {value!r}.")
