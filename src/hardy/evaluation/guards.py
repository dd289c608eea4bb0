"""Checks before anything is attacked; those that look at outputs share the :class:`hardy.evaluation.probe.Probe`.

Where going on would be meaningless (train mode, pixels outside [0, 1], labels outside the outputs) the guard raises.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hardy.attacks.guards import check_eval, check_labels, check_range
from hardy.attacks.precision import full_precision
from hardy.evaluation.probe import Probe
from hardy.evaluation.verdicts import verdict
from hardy.results import Check
from hardy.stats import wilson
from hardy.threats import Threat

__all__ = ["guards"]

GRAY = 1 / 255  # one gray level
SAME = 1e-5  # rounding: relative to the largest output
COMPANY = 1e-4, 1e-3  # change of an output by its company from which to warn and to fail; relative to their span
SLOPE, AGREE = 2.0, (0.5, 0.8)  # factor within which slope and gradient agree; shares of images to fail and to pass
LOST = 0.01, 0.1  # share of the gradient that may be missing at the border of the box, to warn and to fail
FEW = 100  # images below which an interval is wider than +-10 points


def guards(
    model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, "n"], *, threat: Threat
) -> tuple[tuple[Check, ...], int]:
    """Run all guards: four forward passes and one backward pass of 16 images.

    Returns:
        The checks, and the number of outputs of the model.

    Raises:
        ParameterError: train mode.
        DataError: pixels outside [0, 1], labels outside the outputs, fewer than two outputs.
    """
    mode = eval_mode(model)
    span = input_range(x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with full_precision(x.device):
        probe = Probe.take(model, x, threat=threat)
    statistics = bn_statistics(model, before)
    checks = (
        mode,
        span,
        statistics,
        logits(probe.first),
        eps_scale(threat, pixels=x[0].numel()),
        classes(probe.first, y),
        deterministic(probe),
        batch_independent(probe),
        gradient_slope(probe),
        border_gradient(probe),
        few_images(len(x)),
    )
    return checks, int(probe.first.shape[1])


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
    return verdict("bn_statistics", "pass", f"{len(before)} buffers unchanged by the probe")


def logits(z: Float[Tensor, "n k"]) -> Check:
    """Fail if an output is not finite; warn if all are in [0, 1], like probabilities."""
    bad = int((~z.isfinite()).any(dim=1).sum())
    if bad:
        evidence = f"{bad} of {len(z)} outputs of plain images are NaN or infinite; NaN counts as wrong"
        return verdict(
            "logits", "fail", evidence, "Find the layer that overflows or divides by 0; the weights may be NaN."
        )
    if bool(((z >= 0) & (z <= 1)).all()):
        evidence = f"all outputs are in [0, 1], [{z.min():.3g}, {z.max():.3g}]: probabilities?"
        remedy = "Return what goes into the softmax or sigmoid: their gradients vanish when saturated and attacks fail."
        return verdict("logits", "warn", evidence, remedy)
    return verdict("logits", "pass", f"outputs are not probabilities; they span [{z.min():.3g}, {z.max():.3g}]")


def eps_scale(threat: Threat, *, pixels: int) -> Check:
    """Judge whether the budget is on the scale of pixels in [0, 1].

    The unit for l2 is the diagonal of the box, for l1 the sum over all values.
    """
    whole = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[threat.norm]
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


def deterministic(probe: Probe) -> Check:
    """Warn if the same images give other outputs the second time."""
    if probe.noise > SAME * float(probe.first.abs().nan_to_num(0.0, 0.0, 0.0).max()):
        evidence = f"two passes of the same images differ by up to {probe.noise:.3g}"
        remedy = (
            "The net is random: attack its expectation (EOT, several draws per step); read these numbers with care."
        )
        return verdict("deterministic", "warn", evidence, remedy)
    return verdict("deterministic", "pass", "two passes of the same images are equal")


def batch_independent(probe: Probe) -> Check:
    """Fail if the outputs of an image depend on the other images in its batch; warn if they do so a little."""
    code = "batch_independent"
    low, high = COMPANY
    if probe.span == 0 or probe.noise > low * probe.span:
        return verdict(code, "not_run", "outputs are random, constant or not finite: company cannot be told from it")
    off = float((probe.first[0] - probe.other_company).abs().max()) / probe.span
    evidence = f"an image's outputs change by {100 * off:.2g} % of their span in other company"
    if not off <= low:
        remedy = "Use running statistics (BatchNorm with track_running_stats=True): no layer may look across the batch."
        return verdict(code, "warn" if off <= high else "fail", evidence, remedy)
    return verdict(code, "pass", "an image's outputs do not depend on its company")


def gradient_slope(probe: Probe) -> Check:
    """Compare the gradient with the slope along it; fail if it does not describe the function.

    A straight-through gradient of a rounding layer is no slope, but leads somewhere: where the margin moves with it at
    the budget of the threat, this only warns.
    """
    code = "gradient_slope"
    if probe.span == 0 or probe.noise > COMPANY[0] * probe.span:
        return verdict(code, "not_run", "outputs are random, constant or not finite: slopes cannot be measured")
    n = len(probe.slope)
    good = (probe.slope > 1 / SLOPE) & (probe.slope < SLOPE)
    evidence = f"the margin's slope agrees with its gradient in {int(good.sum())} of {n} images"
    share = float(good.float().mean())
    if share >= AGREE[1]:
        return verdict(code, "pass", evidence)
    remedy = "Gradients lead nowhere here, so PGD proves nothing: remove what breaks or replaces them, or use queries."
    follows = float((good | ((probe.reach > 0.1) & (probe.reach < 10))).float().mean())
    if follows < AGREE[1]:
        return verdict(code, "fail" if share <= AGREE[0] else "warn", evidence, remedy)
    return verdict(code, "warn", f"{evidence}, but leads to it at the budget (straight-through?)", remedy)


def border_gradient(probe: Probe) -> Check:
    """Look for gradients that vanish just at black and white pixels, as a clamp of the input makes them."""
    code = "border_gradient"
    evidence = f"{100 * probe.lost:.2g} % of the gradient is 0 at pixels of exactly 0 or 1, but not a little inside"
    low, high = LOST
    if probe.lost < low:
        return verdict(code, "pass", evidence)
    remedy = "Take the clamp of the input out of the model: pixels are in [0, 1] here. Attacks cannot leave the border."
    return verdict(code, "warn" if probe.lost < high else "fail", evidence, remedy)


def few_images(n: int) -> Check:
    """Warn if intervals are too wide to tell nets apart."""
    low, high = wilson(n // 2, n)
    evidence = f"{n} images: an accuracy of one half is known to +-{50 * (high - low):.1f} points"
    if n < FEW:
        return verdict("few_images", "warn", evidence, f"Use {FEW} images at least, 1000 to tell nets apart.")
    return verdict("few_images", "pass", evidence)
