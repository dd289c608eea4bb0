"""Checks before anything is attacked: at most four forward passes of a few images.

Where going on would be meaningless (train mode, pixels outside [0, 1], labels outside the outputs) the guard raises.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.guards import check_eval, check_labels, check_range
from hardy.attacks.passes import Passes
from hardy.evaluation.verdicts import verdict
from hardy.results import Check
from hardy.stats import wilson
from hardy.threats import Threat

__all__ = ["PROBE", "guards"]

PROBE = 16  # images of the probe
GRAY = 1 / 255  # one gray level
FEW = 100  # images below which an interval is wider than +-10 points


def guards(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], *, threat: Threat
) -> tuple[tuple[Check, ...], int]:
    """Run all guards: two forward passes of at most 16 images.

    Returns:
        The checks, and the number of outputs of the model.

    Raises:
        ParameterError: train mode.
        DataError: pixels outside [0, 1], labels outside the outputs, fewer than two outputs.
    """
    mode = eval_mode(model)
    span = input_range(x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    few, rows = x[:PROBE], torch.arange(len(x[:PROBE]), device=x.device)
    passes = Passes([model], size=len(few), n=len(few), device=x.device)
    first, second = passes.logits(few, rows), passes.logits(few, rows)
    statistics = bn_statistics(model, before)
    checks = (
        mode,
        span,
        statistics,
        logits(first),
        eps_scale(threat, pixels=x[0].numel()),
        classes(first, y),
        deterministic(first, second),
        few_images(len(x)),
    )
    return checks, int(first.shape[1])


def eval_mode(model: nn.Module) -> Check:
    """Raise if the model or a normalisation layer is in train mode; warn if another module is."""
    check_eval(model, "evaluate")
    odd = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if m.training]
    if odd:
        evidence = f"{len(odd)} modules inside a model in eval mode are in train mode: {', '.join(odd[:3])}"
        return verdict("eval_mode", "warn", evidence, "Call model.eval(), unless they are meant to be live.")
    return verdict("eval_mode", "pass", "every module is in eval mode")


def input_range(x: Float[Tensor, "n c h w"]) -> Check:
    """Raise if a pixel is outside [0, 1]; warn if all images are nearly black."""
    check_range(x, "evaluate")
    low, high = (float(v) for v in torch.aminmax(x))
    evidence = f"pixels are in [{low:.4g}, {high:.4g}]"
    if high <= 2 * GRAY:
        remedy = "Check that the pixels were not divided by 255 twice."
        return verdict("input_range", "warn", f"{evidence}: nearly black", remedy)
    return verdict("input_range", "pass", evidence)


def bn_statistics(model: nn.Module, before: dict[str, Tensor]) -> Check:
    """Compare all buffers with their values before the probe, and put them back."""
    changed = [name for name, b in model.named_buffers() if not torch.equal(b, before.get(name, b.new_empty(0)))]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in changed and name in before and before[name].shape == buffer.shape:
                buffer.copy_(before[name])
    if changed:
        evidence = f"a forward pass changed {len(changed)} buffers, first {changed[0]}"
        return verdict("bn_statistics", "fail", evidence, "Make forward() leave its buffers alone in eval mode.")
    return verdict("bn_statistics", "pass", f"{len(before)} buffers unchanged by two forward passes")


def logits(z: Float[Tensor, "n k"]) -> Check:
    """Warn if the outputs look like probabilities: not negative, and every row sums to 1."""
    z = z.float()
    if bool((z >= 0).all()) and bool(((z.sum(dim=1) - 1).abs() < 1e-3).all()):
        remedy = "Return what goes into the softmax: gradients through a saturated softmax vanish and attacks fail."
        return verdict("logits", "warn", "every row of outputs is not negative and sums to 1: probabilities?", remedy)
    return verdict("logits", "pass", f"outputs are not probabilities; they span [{z.min():.3g}, {z.max():.3g}]")


def eps_scale(threat: Threat, *, pixels: int) -> Check:
    """Judge whether the budget is on the scale of pixels in [0, 1]. For l2 the diagonal of the box is the unit."""
    whole = 1.0 if threat.norm == "linf" else math.sqrt(pixels)
    least = GRAY / 10 if threat.norm == "linf" else GRAY
    evidence = f"{threat} is {threat.eps / whole:.2g} of the box [0, 1]"
    if threat.eps > whole:
        remedy = "Pixels are in [0, 1]: write 8/255, not 8."
        return verdict("eps_scale", "fail", f"{evidence}: every image is within reach", remedy)
    if threat.eps > whole / 2:
        remedy = "A budget this large reaches plain gray; no net can be right. Write 8/255, not 0.8."
        return verdict("eps_scale", "warn", evidence, remedy)
    if threat.eps < least:
        remedy = "No camera sees a change this small. Was it divided by 255 twice?"
        return verdict("eps_scale", "warn", evidence, remedy)
    return verdict("eps_scale", "pass", evidence)


def classes(z: Float[Tensor, "n k"], y: Int[Tensor, "m"]) -> Check:
    """Raise if a label has no output or there is one output; warn if the images show one class only."""
    check_labels(z, y, "evaluate")
    shown, k = int(torch.bincount(y).count_nonzero()), z.shape[1]
    evidence = f"images of {shown} of the model's {k} classes"
    if shown < 2:
        return verdict("classes", "warn", evidence, "Evaluate on images of all classes: a constant net is right here.")
    return verdict("classes", "pass", evidence)


def deterministic(first: Float[Tensor, "n k"], second: Float[Tensor, "n k"]) -> Check:
    """Warn if the same images give other outputs the second time."""
    off = float((first.float() - second.float()).abs().nan_to_num(nan=0.0).max())
    if off > 0:
        evidence = f"two passes of the same images differ by up to {off:.3g}"
        remedy = (
            "The net is random: attack its expectation (EOT, several draws per step); read these numbers with care."
        )
        return verdict("deterministic", "warn", evidence, remedy)
    return verdict("deterministic", "pass", "two passes of the same images are equal")


def few_images(n: int) -> Check:
    """Warn if intervals are too wide to tell nets apart."""
    low, high = wilson(n // 2, n)
    evidence = f"{n} images: an accuracy of one half is known to +-{50 * (high - low):.1f} points"
    if n < FEW:
        return verdict("few_images", "warn", evidence, f"Use {FEW} images at least, 1000 to tell nets apart.")
    return verdict("few_images", "pass", evidence)
