"""Fine-tuning: what of a net stays as it is, what learns how fast, and how much each class counts.

Parts of a net are named as everywhere (module names, globs, stages); three words more: ``"head"`` is the layer that
makes the logits (several, where their logits are averaged), ``"all_but_head"`` everything else, and ``"all_but:SITE"``
everything that is not in a site, such as the parameters of the block around a convolution. A stage takes all parameters
that are reached in it, those of its side branches (squeeze-and-excitation) and blocks (layer scales) included; what
comes after the last stage and is not the head belongs to the last stage.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.errors import DataError, ParameterError
from hardy.sites import INPUT, module_names, resolve
from hardy.topology import Stage, classifier_inputs, is_stage, pick, stages
from hardy.training.recipe import TrainRecipe

__all__ = ["FineTuning", "Places", "class_weights", "lr_factors"]

HEAD, BODY = "head", "all_but_head"
ALL_BUT = "all_but:"


class Places:
    """Which modules of a net a site means, and which stage each belongs to. ``""`` is the model itself.

    Args:
        model: The plain model, before methods are attached.
        x: Images of the size to be used, (n, c, h, w) in [0, 1]; the first is run, without a trace, where it is needed.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.names = ["", *module_names(model)]

    @cached_property
    def head(self) -> set[str]:
        """The layers that make the logits.

        Raises:
            LayerNotFoundError: there are none.
        """
        sites = classifier_inputs(self.model, self.x)
        return self.below({site.partition("#")[0].removesuffix(INPUT) for site in sites})

    @cached_property
    def beside(self) -> set[str]:
        """What stands beside the head and has nothing to learn: its dropout, which goes with it."""
        around = {name.rpartition(".")[0] for name in self.head if name}
        return {name for name in self.names if name.rpartition(".")[0] in around and self._is_bare(name)}

    def _is_bare(self, name: str) -> bool:
        module = self.model.get_submodule(name)
        return not any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages, stem first.

        Raises:
            LayerNotFoundError: the net has no convolution on images.
        """
        return stages(self.model, self.x)

    @cached_property
    def stage_of(self) -> dict[str, int]:
        """The number of the stage of each module outside the head: of several in or around it, the last."""
        known = {name: i for i, stage in enumerate(self.stages) for name in stage.modules if name not in self.head}
        inside: dict[str, int] = {}
        for name, i in known.items():
            for around in _upwards(name):
                inside[around] = max(i, inside.get(around, 0))
        return {
            name: next(inside[around] for around in _upwards(name) if around in inside)
            for name in self.names
            if name not in self.head
        }

    def below(self, names: set[str]) -> set[str]:
        """Add everything inside some modules."""
        return {name for name in self.names if any(around in names for around in _upwards(name))}

    def modules(self, site: str, field: str) -> set[str]:
        """List the modules that a site means, with everything inside them.

        Args:
            site: As in the recipe.
            field: Where it stands there, for messages.

        Raises:
            ParameterError: a call or an input of a module, or no parameter is there.
            LayerNotFoundError: it matches nothing.
        """
        if "#" in site or "@" in site:
            raise ParameterError(f"train: {field} must name modules; got {site!r}, a call or an input of one.")
        if site.startswith(ALL_BUT):
            found = set(self.names) - self.modules(site.removeprefix(ALL_BUT), field)
        elif site == HEAD:
            found = self.head | self.beside
        elif site == BODY:
            found = set(self.names) - self.head - self.beside
        elif is_stage(site):
            chosen = {self.stages.index(stage) for stage in pick(self.stages, site)}
            found = {name for name, i in self.stage_of.items() if i in chosen} - self.beside
        else:
            found = self.below(set(resolve(self.model, [site])))
        if not self.parameters(found):
            raise ParameterError(f"train: {field} must name modules with parameters; {site!r} has none.")
        return found

    def parameters(self, names: set[str]) -> list[nn.Parameter]:
        """List the parameters that some modules hold themselves, each once, in model order."""
        modules = (self.model.get_submodule(name) for name in self.names if name in names)
        return list(dict.fromkeys(p for module in modules for p in module.parameters(recurse=False)))


def _upwards(name: str) -> list[str]:
    """List a module and all above it, the model itself last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def lr_factors(places: Places, recipe: TrainRecipe) -> dict[nn.Parameter, float]:
    """Compute the factor of the learning rate of each parameter of the net; without any in the recipe, of none.

    Raises:
        ParameterError: a site is no module, or holds no parameter.
        LayerNotFoundError: a site matches nothing, or the net has no stages that ``layer_decay`` could count.
    """
    factors: dict[nn.Parameter, float] = {}
    if recipe.layer_decay is not None:
        depth = len(places.stages)
        for name, i in places.stage_of.items():
            for p in places.parameters({name}):
                factors[p] = max(factors.get(p, 0.0), recipe.layer_decay ** (depth - i))
    table = {
        p: factor
        for site, factor in recipe.lr_factors.items()
        for p in places.parameters(places.modules(site, "lr_factors"))
    }
    return factors | {p: factor * factors.get(p, 1.0) for p, factor in table.items()}


class FineTuning:
    """What a recipe says about freezing and learning rates, found out for one net.

    Making one changes nothing. :meth:`begin` freezes for an epoch, :meth:`end` gives everything back as it was. Frozen
    modules are in eval mode: their norms use and keep their statistics, their own dropout is off. A module is one of
    them if all that is inside it is frozen. Methods attached there go on, for their mode is the model's.

    Args:
        model: The plain model, before methods are attached: what they learn is never frozen, and its factor is 1.
        recipe: Says what.
        x: Images of the size to be used, (n, c, h, w) in [0, 1].

    Attributes:
        factors: Factors of the learning rate, for ``make_optimizer``.
        frozen: The parameters that do not train, as long as ``freeze_epochs`` says.

    Raises:
        ParameterError: a site is no module or holds no parameter, or nothing would be left to train.
        LayerNotFoundError: a site matches nothing.
    """

    def __init__(self, model: nn.Module, recipe: TrainRecipe, x: Tensor) -> None:
        places = Places(model, x)
        self.model, self.recipe = model, recipe
        self.factors = lr_factors(places, recipe)
        names = {name for site in recipe.freeze for name in places.modules(site, "freeze")}
        mixed = {around for name in set(places.names) - names for around in _upwards(name)}
        self.quiet = [model.get_submodule(name) for name in places.names if name not in mixed]
        self.frozen = [p for p in places.parameters(names) if p.requires_grad]
        self.all = [p for p in places.parameters(set(places.names)) if p.requires_grad]
        if recipe.freeze and len(self.frozen) == len(self.all):
            raise ParameterError(
                f"train: freeze must leave parameters to train; {', '.join(recipe.freeze)} is all of them. "
                "Leave out the head, or measure the net as it is: hardy evaluate."
            )

    def holds(self, epoch: int) -> bool:
        """Tell whether something is frozen in an epoch, counted from 0."""
        last = self.recipe.freeze_epochs
        return bool(self.recipe.freeze) and (last is None or epoch < last)

    def begin(self, epoch: int) -> None:
        """Freeze what is frozen in this epoch; to be called when the model was put in train mode."""
        holds = self.holds(epoch)
        for p in self.frozen:
            p.requires_grad_(not holds)
        for module in self.quiet:
            module.training = not holds

    def end(self) -> None:
        """Give everything back as it was."""
        for p in self.frozen:
            p.requires_grad_(True)
        for module in self.quiet:
            module.training = self.model.training

    def notes(self) -> list[str]:
        """Say what is frozen, and which factors the learning rates have."""
        notes, r = [], self.recipe
        if r.freeze:
            count, total = (sum(p.numel() for p in group) for group in (self.frozen, self.all))
            until = "" if r.freeze_epochs is None else f", epochs 1 to {r.freeze_epochs}"
            notes.append(f"frozen: {', '.join(r.freeze)}, {count:,} of {total:,} weights{until}")
        if self.factors:
            all_ = [self.factors.get(p, 1.0) for p in self.all]
            notes.append(f"factors of the learning rate: {min(all_):.3g} to {max(all_):.3g}")
        return notes


def class_weights(
    asked: str | Sequence[float] | None, labels: Int[Tensor, "n"], class_names: Sequence[str]
) -> Float[Tensor, "k"] | None:
    """Compute the weights of the classes, with mean 1 over the training images: ``sum_i w[labels_i] = n``.

    So the learning rate means what it means without them, and the divisor of the loss is the number of rows
    (:class:`hardy.Objective`). "balanced" is ``n / (k * count)``, scikit-learn's, which has that mean already.

    Args:
        asked: "balanced", one number per class (only their ratios matter), or None.
        labels: Of the training images.
        class_names: In label order.

    Raises:
        ParameterError: not one number per class, or every training image would have weight 0.
        DataError: "balanced", and a class has no image.

    Example:
        >>> class_weights("balanced", torch.tensor([0, 0, 0, 1]), ["often", "rare"])
        tensor([0.6667, 2.0000])
        >>> class_weights((1.0, 5.0), torch.tensor([0, 0, 0, 1]), ["often", "rare"])
        tensor([0.5000, 2.5000])
    """
    if asked is None:
        return None
    k, counts = len(class_names), torch.bincount(labels.cpu(), minlength=len(class_names)).double()
    if isinstance(asked, str):
        if empty := [name for name, count in zip(class_names, counts.tolist(), strict=True) if not count]:
            raise DataError(
                f"train: class_weights = {asked!r} needs an image of every class; none for {', '.join(empty[:5])}. "
                "Add images, or give the weights as numbers."
            )
        return (len(labels) / (k * counts)).float()
    if len(asked) != k:
        raise ParameterError(f"train: class_weights must be one number for each of {k} classes; got {len(asked)}.")
    given = torch.tensor(asked, dtype=torch.float64)
    total = float(given @ counts)
    if total <= 0:
        raise ParameterError(f"train: class_weights must leave some training image a weight; got {tuple(asked)}.")
    return (given * (len(labels) / total)).float()
