"""The table of axes: nothing registers itself on import."""

from collections.abc import Callable, Mapping

from hardy.evaluation import (
    calibration,
    certified,
    clean,
    corruptions,
    eps_curve,
    frequency,
    minimal_norm,
    noise,
    occlusion,
    ood,
    per_class,
    query,
    texture,
    transfer,
    weights,
    white_box,
    worst_case,
)
from hardy.evaluation.context import Context, Measured, NotMeasured

__all__ = ["AXES", "check_material"]

AXES: Mapping[str, Callable[[Context], Measured | NotMeasured]] = {  # in the order in which they are measured
    "clean": clean.measure,
    "per_class": per_class.measure,
    "calibration": calibration.measure,
    "ood": ood.measure,
    "noise": noise.measure,
    "corruptions": corruptions.measure,
    "occlusion": occlusion.measure,
    "texture": texture.measure,
    "white_box": white_box.measure,
    "eps_curve": eps_curve.measure,
    "minimal_norm": minimal_norm.measure,
    "frequency": frequency.measure,
    "transfer": transfer.measure,
    "query": query.measure,
    "worst_case": worst_case.measure,  # joins the ones with an adversary before it
    "weights": weights.measure,
    "certified": certified.measure,
}


def check_material(context: Context) -> None:
    """Look at what was given for single axes before anything is computed.

    Raises:
        HardyError: it does not fit the images or the model.
    """
    cue = context.material.cue_conflict
    if cue is not None:
        texture.check_cue_conflict(cue, context.x[0], context.num_classes)
    corruptions.check_reference(context.material.reference_errors, min(context.x.shape[2:]))
    corruptions.check_copies(context)
    ood.check_images(context)
