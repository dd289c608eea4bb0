"""The recipe of a comparison: an ordinary training recipe with a ``[compare]`` part that spans the grid."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hardy import config
from hardy.errors import ConfigError, HardyError, did_you_mean
from hardy.training.recipe import Recipe, build_methods, method_table

__all__ = ["PAGE", "TABLE", "ArmRecipe", "CompareRecipe", "Grid", "load_grid"]

PAGE, TABLE = "report.html", "comparison.json"  # beside the folders of the arms

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # of an arm: it becomes a folder


@dataclass(frozen=True, kw_only=True)
class ArmRecipe:
    """One arm of the comparison.

    Attributes:
        methods: Tables as in ``[[methods]]`` of a recipe: ``name``, fields, perhaps ``preset``; none: the plain net.
    """

    methods: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompareRecipe:
    """The part ``[compare]``: which cells the grid has, and what is equal in them.

    Attributes:
        seeds: Seeds of the training, each once. Arms of one seed start from the same weights and see the same images in
            the same order, so that their difference is paired.
        nets: Names as in ``model.name``; none: the recipe's own model.
        baseline: The arm that the others are compared with.
        budget: What is equal in all arms: "epochs", or "passes": epochs are cut, never added, so that no arm spends
            more forward and backward passes per training image than the baseline does.
        checks: "derived", or "full": more attacks on what survived, in every cell.
        sources: Nets that ``transfer`` attacks from, the same for every cell: run folders or checkpoints.
        arms: By name (letters, digits, ``.``, ``_``, ``+``, ``-``), at least one.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    nets: tuple[str, ...] = ()
    baseline: str
    budget: Literal["epochs", "passes"] = "epochs"
    checks: Literal["derived", "full"] = "derived"
    sources: tuple[str, ...] = ()
    arms: dict[str, ArmRecipe] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.arms:
            raise ConfigError("arms must name at least one arm; got none. Write [compare.arms.plain].")
        for name in self.arms:
            if not NAME.fullmatch(name):
                raise ConfigError(f"arms: {name!r} must be letters, digits and . _ + -, as it names a folder.")
        if len({name.lower() for name in self.arms}) < len(self.arms):
            raise ConfigError(f"arms: names must differ in more than case; got {', '.join(self.arms)}.")
        if taken := [name for name in self.arms if name.lower() in (PAGE, TABLE)]:
            raise ConfigError(f"arms: {taken[0]!r} must not be {PAGE} or {TABLE}, which are written beside the arms.")
        if self.baseline not in self.arms:
            raise ConfigError(f"baseline: no arm {self.baseline!r}; {did_you_mean(self.baseline, self.arms)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds must be different whole numbers from 0 on, at least one; got {self.seeds}.")
        if len(set(self.nets)) < len(self.nets):
            raise ConfigError(f"nets must be named once each; got {', '.join(self.nets)}.")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A comparison, read and checked as far as that goes without data.

    Attributes:
        plain: The recipe that all cells share, without methods.
        compare: Its part ``[compare]``, with ``nets`` filled in.
        methods: Tables of every arm with all their defaults, by arm.
    """

    plain: Recipe
    compare: CompareRecipe
    methods: Mapping[str, tuple[dict[str, Any], ...]]

    def recipe(self, arm: str, net: str, seed: int) -> Recipe:
        """Give the training recipe of one cell, before any cut of its epochs."""
        model = replace(self.plain.model, name=net)
        return replace(self.plain, seed=seed, model=model, methods=self.methods[arm])


def load_grid(path: str | Path, overrides: Iterable[str] = ()) -> Grid:
    """Read the recipe of a comparison; whatever is wrong is an error that names the key.

    Args:
        path: TOML file.
        overrides: ``key.sub=value`` texts, applied in order.

    Raises:
        ConfigError: unknown keys, wrong types, unknown methods, a baseline that is no arm, no cells, or keys of an
            ordinary recipe that the grid decides (``seed``, ``methods``).
    """
    data = config.read_toml(Path(path), overrides)
    part = data.pop("compare", None)
    if not isinstance(part, dict):
        raise ConfigError(f"{path}: compare: missing; a comparison needs a table [compare], with [compare.arms.NAME].")
    for key, instead in (("seed", "compare.seeds"), ("methods", "compare.arms.NAME.methods")):
        if key in data:
            raise ConfigError(f"{key}: the grid decides it; set {instead}, and leave {key} out.")
    compare = config.build(CompareRecipe, part, "compare.")
    plain = config.build(Recipe, data)
    nets = compare.nets or (plain.model.name,)
    if len(nets) > 1 and (plain.model.args or isinstance(plain.model.pretrained, str)):
        raise ConfigError("compare.nets: model.args and a weights file belong to one net; leave them out, or name one.")
    methods = {arm: _methods(arm, spec) for arm, spec in compare.arms.items()}
    return Grid(plain=plain, compare=replace(compare, nets=nets), methods=methods)


def _methods(arm: str, spec: ArmRecipe) -> tuple[dict[str, Any], ...]:
    """Write down the methods of an arm with all their defaults, as a run folder does."""
    try:
        return tuple(map(method_table, build_methods(spec.methods)))
    except HardyError as error:
        raise ConfigError(f"compare.arms.{arm}.{error}") from error
