"""What one of several processes does in test_ranks.py: ``rank_cases.py FOLDER RANK SIZE CASE...``."""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hardy import ranks
from hardy.attacks import APGD, PGD, Square
from hardy.errors import DataError, HardyError
from hardy.evaluation import AxisProgress, Budget, Material, evaluate
from hardy.results import Result
from hardy.threats import Threat

QUICK = Budget(
    curve_steps=3, noise_draws=3, transfer_steps=3, queries=30, min_norm_steps=5, corruptions=("contrast", "fog"),
    severities=(1, 5), drop_shares=(0.5,), fills=("mean", "noise"), bands=2, band_steps=2, weight_radii=(0.01,),
    weight_steps=2, weight_restarts=2, bits=(8,), smoothing_draws=12,
)  # fmt: skip


def make_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )


class Counted(nn.Module):
    """Counts the images it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked = net, [0]  # a list: its copies count too

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
        twin = Counted(self.net).eval()
        twin.asked = self.asked
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.asked[0] += len(x)
        z: Tensor = self.net(x)
        return z


class Noisy(nn.Module):
    """A net that answers at random."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x + 0.05 * torch.randn_like(x))
        return z


class Sour(nn.Module):
    """A net that fails on the images that one of the processes asks about, as a damaged disk or a full memory would."""

    def __init__(self, net: nn.Module, rank: int, error: Exception) -> None:
        super().__init__()
        self.net, self.bad, self.error, self.calls = net, rank == 1, error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.bad and self.calls > 8:
            raise self.error
        z: Tensor = self.net(x)
        return z


def foreign(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Draw from the global generator, so that what an image gets depends on its company."""
    return (x + 0.1 * (torch.rand_like(x) - 0.5)).clamp(0, 1)


class Case:
    """One process and its question."""

    def __init__(self, folder: Path, rank: int, size: int) -> None:
        self.folder, self.rank, self.size = folder, rank, size
        self.question = torch.load(folder / "question.pt", weights_only=True)

    def net(self, name: str = "net") -> nn.Module:
        net = make_net().eval()
        net.load_state_dict(self.question[name])
        return net

    def evaluate(self, model: nn.Module, n: int = 83, **facts: Any) -> Result:
        given = {"threat": Threat("linf", 0.06), "budget": QUICK, "batch_size": 32, "command": "c"}
        return evaluate(model, self.question["x"][:n], self.question["y"][:n], **{**given, **facts})

    def save(self, name: str, result: Result | None = None, **facts: Any) -> None:
        path = self.folder / f"{name}-{self.size}-{self.rank}.json"
        if result is not None:
            result.save(path)
        path.with_suffix(".facts").write_text(json.dumps(facts))

    def main(self) -> None:
        seen: list[AxisProgress] = []
        net = Counted(self.net()).eval()
        suite = [APGD(steps=5), foreign, PGD(steps=4, restarts=2), Square(queries=20)]
        facts: dict[str, Any] = {"axes": ["clean", "noise", "corruptions", "white_box", "eps_curve"], "suite": suite}
        found = self.evaluate(net, **facts, journal=self.folder / f"journal-{self.size}", on_progress=seen.append)
        ends = [p.attack.done == p.attack.total for p in seen if p.attack is not None]
        self.save("main", found, asked=net.asked[0], seen=len(seen), ends=any(ends))
        self.save("foreign", self.evaluate(net, axes=["white_box"], suite=[foreign]))

    def again(self) -> None:
        """Go on with what two processes have left, some of it lost."""
        left = self.folder / "journal-2"
        for file in sorted(left.glob("*.npz"))[::2] if self.rank == 0 else ():
            file.unlink()
        if self.size > 1:
            dist.barrier()
        net = Counted(self.net()).eval()
        axes = ["clean", "noise", "corruptions", "white_box", "eps_curve"]
        suite = [APGD(steps=5), foreign, PGD(steps=4, restarts=2), Square(queries=20)]
        self.save("again", self.evaluate(net, axes=axes, suite=suite, journal=left), asked=net.asked[0])

    def random(self) -> None:
        found = self.evaluate(Noisy(self.net()).eval(), n=37, axes=["clean", "white_box", "worst_case"], suite="quick")
        self.save("random", found)

    def full(self) -> None:
        """All axes and checks."""
        x, y = self.question["x"], self.question["y"]
        found = self.evaluate(
            self.net(),
            n=101,
            suite=[PGD(steps=5), PGD(steps=8, restarts=2), Square(queries=20)],
            sources=[("other", self.net("other"))],
            siblings=[self.net("third")],
            base=self.net("other"),
            material=Material(train=(x[:40], y[:40]), other={"turned": x[:50].rot90(dims=(2, 3))}),
            checks="full",
            keep_adversarial=True,
        )
        self.save("full", found)

    def alone(self) -> None:
        """Only one of the processes evaluates."""
        if self.rank == 1:
            self.save("alone", self.evaluate(self.net(), axes=["clean"], alone=True))

    def errors(self) -> None:
        said = []
        for error in (DataError("page 7 is torn"), ValueError("no luck")):
            try:
                self.evaluate(Sour(self.net(), self.rank, error).eval(), axes=["noise"])
            except (HardyError, ValueError) as got:
                said.append(f"{type(got).__name__}: {got}")
        self.save("errors", said=said)

    def ends(self) -> None:
        """Rank 1 ends in the middle of its share."""
        ranks.LINGER = 0.0

        def work(job: int) -> ranks.Rows:
            if self.rank == 1:
                os._exit(3)
            return {}

        self._expect("ends", lambda: self._share(work))

    def _share(self, work: Callable[[int], ranks.Rows]) -> None:
        with ranks.together() as these:
            these.share(range(3), work, device=torch.device("cpu"))

    def absent(self) -> None:
        """Rank 1 does not call at all."""
        ranks.MEET = timedelta(seconds=2)
        if self.rank == 1:
            time.sleep(6)
        else:
            self._expect("absent", lambda: self._share(lambda _: {}))

    def _expect(self, name: str, call: Callable[[], None]) -> None:
        began, said = time.monotonic(), ""
        try:
            call()
        except HardyError as error:
            said = f"{type(error).__name__}: {error}"
        self.save(name, said=said, seconds=time.monotonic() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    case = Case(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    if case.size > 1:
        meeting = case.folder / f"meeting-{'-'.join(sys.argv[3:])}"
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=case.rank, world_size=case.size)
    for name in sys.argv[4:]:
        getattr(case, name)()
    if case.size > 1 and not {"ends", "absent"} & {*sys.argv}:
        dist.destroy_process_group()
