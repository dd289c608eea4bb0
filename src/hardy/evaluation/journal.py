"""Finished parts of an evaluation on disk, so that a stopped one goes on where it was.

One file per part, named by a digest of everything that the part depends on: nothing has to be kept in step, a part is
found again only if it would come out the same, and a file that is not whole does not exist.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hardy import __version__
from hardy.attacks import AttackResult
from hardy.results import UNREADABLE
from hardy.safefile import write_atomic
from hardy.threats import Threat

__all__ = ["ROWS", "Journal", "result_of"]

ROWS = (  # fields of an AttackResult with one row per image
    *("x_adv", "success", "margin", "clean_correct"),
    *("forward_passes", "backward_passes", "gradients", "zero_gradients", "silent"),
)


class Journal:
    """Results of attacks, kept in a folder.

    Args:
        folder: Where the files are; made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(
        self, facts: Sequence[object], *, attack: str, threat: Threat, device: torch.device
    ) -> AttackResult | None:
        """Give the part that was kept under these facts; None where there is none, or its file is damaged."""
        path = self._path(facts)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                rows = {name: torch.from_numpy(file[name]).to(device) for name in ROWS}
        except UNREADABLE:
            return None
        return result_of(rows, attack=attack, threat=threat)

    def keep(self, facts: Sequence[object], result: AttackResult) -> None:
        """Write a part, whole or not at all."""
        arrays = {name: getattr(result, name).cpu().numpy() for name in ROWS}
        write_atomic(self._path(facts), lambda file: np.savez(file, **arrays))

    def clear(self) -> None:
        """Remove everything: the evaluation is done, or shall begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, facts: Sequence[object]) -> Path:
        digest = hashlib.blake2b(digest_size=16)
        for fact in (__version__, torch.__version__, *facts):
            digest.update(fact if isinstance(fact, bytes) else repr(fact).encode())
            digest.update(b"\0")
        return self.folder / f"{digest.hexdigest()}.npz"


def result_of(rows: dict[str, Tensor], *, attack: str, threat: Threat) -> AttackResult:
    """Make a result of its rows, the fields in :data:`ROWS`."""
    passes = {"forward": int(rows["forward_passes"].sum()), "backward": int(rows["backward_passes"].sum())}
    return AttackResult(**rows, passes=passes, attack=attack, threat=threat)
