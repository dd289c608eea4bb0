"""The evidence grid: what is trained, and which claims of the papers its numbers are held against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Table = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A row of a grid: methods, further arguments of the net, if the small grid has it, its share of the epochs."""

    methods: tuple[Table, ...] = ()
    net: Mapping[str, Any] | None = None
    core: bool = False
    epochs: float = 1.0


@dataclass(frozen=True)
class Grid:
    """A question: its arms, the claims held against them (what, larger arm, smaller arm, number), and its ensembles.

    ``strong``: also the standard suite with all checks, and PGD-30 without a random start.
    """

    arms: Mapping[str, Arm]
    claims: tuple[tuple[str, str, str, str], ...]
    ensembles: tuple[str, ...] = ()
    strong: bool = False


def masks(**fields: Any) -> tuple[Table, ...]:
    return ({"name": "defective_conv", **fields},)


def lfm(**fields: Any) -> tuple[Table, ...]:
    return ({"name": "lfm", **fields},)


ARMS = {
    "plain": Arm(core=True),
    "masks 0.7": Arm(masks(keep=0.7), core=True),
    "masks 0.5": Arm(masks(keep=0.5), core=True),
    "masks 0.3": Arm(masks(keep=0.3), core=True),
    "masks 0.5 top": Arm(masks(keep=0.5, sites=["top"]), core=True),
    "masks 0.5 same": Arm(masks(keep=0.5, sampling="same"), core=True),
    "lfm": Arm(lfm(), core=True),
    "lfm p 0.5": Arm(lfm(p=0.5), core=True),
    "lfm stripe": Arm(lfm(preset="repo-bugcompat"), core=True),
    "drop_block": Arm(({"name": "drop_block"},), core=True),
    "random_erasing": Arm(({"name": "random_erasing"},), core=True),
    "mixup": Arm(({"name": "mixup"},), core=True),
    # what follows needs a GPU
    "label_smoothing": Arm(({"name": "label_smoothing"},)),
    "cutout": Arm(({"name": "cutout"},)),
    "dropout": Arm(({"name": "dropout"},)),
    "spatial_dropout": Arm(({"name": "spatial_dropout"},)),
    "gaussian_noise": Arm(({"name": "gaussian_noise"},)),
    "masks 0.1": Arm(masks(keep=0.1)),
    "masks 0.1 same": Arm(masks(keep=0.1, sampling="same")),
    "masks 0.5 + lfm": Arm((*masks(keep=0.5), *lfm())),
    "narrow bottom": Arm(net={"bottom_scale": 0.5}),
    "lfm repo": Arm(lfm(preset="repo")),
    "lfm all channels": Arm(lfm(channel_ratio=1.0)),
    "lfm fill 0": Arm(lfm(fill=0.0)),
    "lfm before stage 1": Arm(lfm(sites=["before_stage1"])),
    "lfm gate batch": Arm(lfm(gate="batch")),
    "lfm boxes as stripes": Arm(lfm(shape="stripe")),
}

TRANSFER, WHITE = "transfer/source, linf 16/255", "eps_curve/linf 2/255"
CLAIMS = (  # what is claimed, by whom; larger arm, smaller arm, number
    ("bottom beats top under transfer (random mask)", "masks 0.5", "masks 0.5 top", TRANSFER),
    ("masks gain under transfer (random mask)", "masks 0.7", "plain", TRANSFER),
    ("fewer kept, more robust to transfer: 0.5 over 0.7", "masks 0.5", "masks 0.7", TRANSFER),
    ("fewer kept, more robust to transfer: 0.3 over 0.5", "masks 0.3", "masks 0.5", TRANSFER),
    ("fewer kept, more robust to transfer: 0.1 over 0.3", "masks 0.1", "masks 0.3", TRANSFER),
    ("masks cost clean accuracy: 0.7", "plain", "masks 0.7", "clean/all"),
    ("fewer kept, less clean: 0.7 over 0.5", "masks 0.7", "masks 0.5", "clean/all"),
    ("fewer kept, less clean: 0.5 over 0.3", "masks 0.5", "masks 0.3", "clean/all"),
    ("fewer kept, less clean: 0.3 over 0.1", "masks 0.3", "masks 0.1", "clean/all"),
    ("at keep 0.5 one mask for all channels transfers better (its table 2)", "masks 0.5 same", "masks 0.5", TRANSFER),
    ("at keep 0.5 it costs clean accuracy (its table 2)", "masks 0.5", "masks 0.5 same", "clean/all"),
    ("masks beat fewer channels under transfer (its table 2)", "masks 0.5", "narrow bottom", TRANSFER),
    ("masks gain under small white-box budgets (its table 6)", "masks 0.5", "plain", WHITE),
    ("LFM gains clean accuracy (its abstract, on re-identification)", "lfm", "plain", "clean/all"),
    ("LFM gains under attack (its abstract, on re-identification)", "lfm", "plain", WHITE),
    ("LFM beats DropBlock under attack", "lfm", "drop_block", WHITE),
    ("LFM beats dropout under attack (its abstract, on re-identification)", "lfm", "dropout", WHITE),
    ("LFM beats random erasing under attack", "lfm", "random_erasing", WHITE),
    ("LFM beats mixup under attack", "lfm", "mixup", WHITE),
    ("boxes beat the stripes of the released code under attack", "lfm", "lfm stripe", WHITE),
)


def fpcc(name: str = "fpcc", **fields: Any) -> Table:
    return {"name": name, **fields}


SFM, CFS, PRO = fpcc("sfm"), fpcc("cfs"), fpcc("pro")
PATTERNS = {
    "plain": Arm(core=True),
    "fpcc": Arm((fpcc(),), core=True),
    "sfm": Arm((SFM,), core=True),
    "cfs": Arm((CFS,), core=True),
    "pro": Arm((PRO,), core=True),
    "sfm + cfs": Arm((SFM, CFS), core=True),
    "sfm + pro": Arm((SFM, PRO), core=True),
    "cfs + pro": Arm((PRO, CFS), core=True),
    "fast_at, equal cost": Arm(({"name": "fast_at"},), core=True, epochs=1 / 2),
    "pgd_at 3, equal cost": Arm(({"name": "pgd_at", "steps": 3, "step_size": 4 / 255},), core=True, epochs=1 / 4),
    "pgd_at 3": Arm(({"name": "pgd_at", "steps": 3, "step_size": 4 / 255},), core=True),
    "fpcc + lfm": Arm((fpcc(), *lfm()), core=True),
    "fpcc + masks 0.7": Arm((fpcc(), *masks(keep=0.7)), core=True),
    "lfm": Arm(lfm(), core=True),
    "masks 0.7": Arm(masks(keep=0.7), core=True),
    # what follows needs a GPU
    "gaussian_noise": Arm(({"name": "gaussian_noise"},)),
    "fpcc uniform": Arm((fpcc(noise="uniform"),)),
    "fpcc 16/255": Arm((fpcc(eps=16 / 255),)),
    "fpcc minmax": Arm((fpcc(normalise="minmax"),)),
    "fpcc l2": Arm((fpcc(distance="l2"),)),
    "fpcc cosine": Arm((fpcc(distance="cosine"),)),
    "fpcc ema": Arm((fpcc(patterns="ema"),)),
    "fpcc rescale": Arm((fpcc(rescale=True),)),
    "fpcc weight 10": Arm((fpcc(weight=10.0),)),
    "pgd_at": Arm(({"name": "pgd_at"},)),
    "trades": Arm(({"name": "trades"},)),
    "mart": Arm(({"name": "mart"},)),
    "free_at": Arm(({"name": "free_at"},)),
    "pgd_at + awp": Arm(({"name": "pgd_at"}, {"name": "awp"})),
}
FULL, STANDARD = "eps_curve/linf 8/255", "strong/standard"
PATTERN_CLAIMS = (
    ("FPCC gains at 8/255 under PGD (abstract: robust without adversarial examples)", "fpcc", "plain", FULL),
    ("FPCC gains at 8/255 under the standard suite", "fpcc", "plain", STANDARD),
    ("FPCC gains under small white-box budgets", "fpcc", "plain", WHITE),
    ("FPCC gains under transfer", "fpcc", "plain", TRANSFER),
    ("FPCC gains under corruptions", "fpcc", "plain", "corruptions/mean accuracy"),
    ("FPCC costs clean accuracy", "plain", "fpcc", "clean/all"),
    ("SFM adds to CFS + PRO, 2/255", "fpcc", "cfs + pro", WHITE),
    ("CFS adds to SFM + PRO, 2/255", "fpcc", "sfm + pro", WHITE),
    ("PRO adds to SFM + CFS, 2/255", "fpcc", "sfm + cfs", WHITE),
    ("SFM alone gains, 2/255", "sfm", "plain", WHITE),
    ("CFS alone gains, 2/255", "cfs", "plain", WHITE),
    ("PRO alone gains, 2/255", "pro", "plain", WHITE),
    ("FPCC beats fast adversarial training of equal cost, 8/255", "fpcc", "fast_at, equal cost", FULL),
    ("FPCC beats fast adversarial training of equal cost, 2/255", "fpcc", "fast_at, equal cost", WHITE),
    ("FPCC beats PGD-3 training of equal cost, 8/255", "fpcc", "pgd_at 3, equal cost", FULL),
    ("LFM adds to FPCC, 2/255", "fpcc + lfm", "fpcc", WHITE),
    ("masks add to FPCC, 2/255", "fpcc + masks 0.7", "fpcc", WHITE),
    ("masks add to FPCC under transfer", "fpcc + masks 0.7", "fpcc", TRANSFER),
    ("FPCC adds to masks under transfer", "fpcc + masks 0.7", "masks 0.7", TRANSFER),
    ("FPCC beats LFM, 2/255", "fpcc", "lfm", WHITE),
    ("FPCC beats masks, 2/255", "fpcc", "masks 0.7", WHITE),
)
GRIDS = {
    "features": Grid(ARMS, CLAIMS, ensembles=("plain", "masks 0.5")),
    "patterns": Grid(PATTERNS, PATTERN_CLAIMS, strong=True),
}
