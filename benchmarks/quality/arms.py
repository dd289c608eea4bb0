"""The evidence grid: what is trained, and which claims of the papers its numbers are held against."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Table = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One row of the grid: methods, further arguments of the net, and whether the small grid has it."""

    methods: tuple[Table, ...] = ()
    net: Mapping[str, Any] | None = None
    core: bool = False


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
