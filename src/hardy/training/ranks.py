"""Several processes (ranks) that train one net: how they meet, agree, and add up.

``torchrun``, ``fabric run`` or ``hardy train --devices`` start them; Lightning Fabric reads from the environment who is
who. A single process takes none of the paths here that talk.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardy.data import ArrayData, StreamData
from hardy.errors import HardyError, ParameterError, RankError
from hardy.ranks import LINGER, WORK, Ranks, meet

__all__ = ["TrainingRanks", "job", "running_statistics", "synced_norms"]

log = logging.getLogger(__name__)
T = TypeVar("T")

LOST = (
    "onnection closed",
    "onnection reset",
    "onnection refused",
    "roken pipe",
    "ncclRemoteError",
    "Socket",
    "imed out",
    "timeout",
)


class TrainingRanks:
    """The processes of one training, and Lightning Fabric set up for them.

    Args:
        device: "cpu" or "cuda".
        precision: As Fabric takes it.

    Attributes:
        size: Number of processes, over all machines.
        rank: Number of this one, from 0.
        first: Whether it is rank 0, which writes the files.
        first_here: Whether it is the first on its machine, which downloads what has to be.
        fabric: For device, precision, and the wrapped objective.

    Raises:
        ParameterError: machines with different numbers of processes.
    """

    def __init__(self, device: str, *, precision: str) -> None:
        torchrun = dist.is_available() and dist.is_torchelastic_launched()
        self.size = int(os.environ["WORLD_SIZE"]) if torchrun else 1
        local = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else 1
        if self.size % local:
            raise ParameterError(
                f"train: every machine must run as many processes; got {local} here of {self.size}. "
                "Give torchrun the same --nproc-per-node everywhere."
            )
        self.rank = int(os.environ["RANK"]) if self.size > 1 else 0
        self.first = self.rank == 0
        self._meeting = Ranks()
        self.first_here = self.size == 1 or os.environ["LOCAL_RANK"] == "0"
        accelerator = device.partition(":")[0]
        if self.size == 1:
            self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
            return
        gpu = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if accelerator == "cuda" else None
        if gpu is not None:
            torch.cuda.set_device(gpu)
        meet("gloo" if gpu is None else "nccl", device=gpu)
        self._meeting = Ranks(self.rank, self.size, dist.new_group(backend="gloo", timeout=WORK))
        # Parameters that a step leaves without a gradient are looked for, as methods and frozen parts leave some. Also,
        # the buckets in which gradients are added up then never change, so that a resumed run adds in the same order.
        ddp = DDPStrategy(find_unused_parameters=True)
        with _quiet("lightning_fabric"):
            self.fabric = Fabric(
                accelerator=accelerator,
                strategy=ddp,
                devices=local,
                num_nodes=self.size // local,
                precision=precision,  # type: ignore[arg-type]
            )
            if os.environ.get("LT_CLI_USED") != "1":  # fabric run: it is launched
                self.fabric.launch()

    def __repr__(self) -> str:
        kind = f", {dist.get_backend()}" if dist.is_initialized() else ""
        return f"{self.size} process{'es' if self.size > 1 else ''}{kind}"

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.fabric.device

    def agree(self) -> AbstractContextManager[None]:
        """Leave the block in all processes or in none: all raise the error that one of them raised.

        Nothing in the block may talk to other processes.

        Raises:
            HardyError: of any process.
            RankError: another process failed for another reason, or is gone.
        """
        return self._meeting.agree()

    def tell(self, value: T) -> T:
        """Give the value of rank 0."""
        return self._meeting.tell(value)

    def same_(self, model: nn.Module) -> None:
        """Give the model of every process the weights of rank 0."""
        if self.size > 1:
            held = {name: value.detach().cpu() for name, value in model.state_dict().items()}
            model.load_state_dict(self.tell(held))

    def share(self, here: int, everywhere: int) -> float:
        """Give the factor of a mean over ``here`` rows with which the mean over processes is that over all rows."""
        return here * self.size / everywhere

    def part(self, data: ArrayData | StreamData) -> ArrayData | StreamData | None:
        """Give this process's share of validation images: each image is in one; None where none is left."""
        rows = torch.arange(len(data))[self.rank :: self.size]
        return data if self.size == 1 else data.subset(rows) if len(rows) else None

    def pooled(
        self, losses: dict[str, Tensor], right: Tensor, *, here: int, everywhere: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Put the shares of a batch together: mean losses and right answers over the images of all processes.

        So all processes see the same losses: one that is not finite anywhere stops them all.
        """
        if self.size == 1:
            return losses, right
        sums = self.total([*(value * here for value in losses.values()), right])
        means = (sums[:-1] / everywhere).float()
        return dict(zip(losses, means, strict=True)), sums[-1].long()

    def total(self, values: Sequence[Tensor]) -> Tensor:
        """Add up numbers over the processes, in float64; all get the same sums.

        Args:
            values: Scalars.

        Returns:
            One sum for each, on the CPU for a CPU training, else on the GPU.
        """
        sums = torch.stack([value.detach().double().to(self.device) for value in values])
        if self.size > 1:
            dist.all_reduce(sums)
        return sums

    def average_norms_(self, model: nn.Module) -> None:
        """Replace the running statistics of local batch norms by their means over the processes."""
        values = running_statistics(model) if self.size > 1 else []
        if not values:
            return
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        parts = torch.split(flat.div_(self.size), [value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.reshape(value.shape))

    @contextmanager
    def norms(self, model: nn.Module) -> Iterator[None]:
        """Let batch norms on GPUs take their statistics over all processes, in the block; elsewhere they stay local."""
        if self.size == 1:
            yield
            return
        if self.device.type == "cuda":
            with synced_norms(model) as (synced, local):
                log.info("batch norms: %d over all processes (SyncBatchNorm), %d local", synced, local)
                yield
            return
        local = sum(isinstance(module, _BatchNorm) for module in model.modules())
        if local:
            log.info("batch norms: %d, each process norms its own share of a batch; running statistics averaged", local)
        yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """Say clearly when another process is gone, after whoever started them had time to see which.

        Raises:
            RankError: another process has died.
        """
        try:
            yield
        except HardyError:
            raise
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in LOST):
                raise
            time.sleep(LINGER)
            raise RankError(
                f"rank {self.rank}: all {self.size} processes must be there; another one has ended. "
                "What it said, or who ended it, is the cause."
            ) from error


def running_statistics(model: nn.Module) -> list[Tensor]:
    """List the statistics of batch norms that each process updates from its own share of a batch."""
    return [
        value
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training
        for value in (module.running_mean, module.running_var)
        if value is not None
    ]


@contextmanager
def synced_norms(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Let batch norms on a GPU take their statistics over all processes, within the block.

    The modules stay what and where they are, with their parameters, hooks and names; only their class is another, and
    afterwards the old one again. torch's own batch norms and timm's fused one are known; others stay as they are.

    Yields:
        How many these are, and how many batch norms stay local.
    """
    from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct

    swap: dict[type[nn.Module], type[nn.SyncBatchNorm]] = {
        nn.BatchNorm1d: nn.SyncBatchNorm,
        nn.BatchNorm2d: nn.SyncBatchNorm,
        nn.BatchNorm3d: nn.SyncBatchNorm,
        BatchNormAct2d: SyncBatchNormAct,
    }
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    changed = [(module, type(module)) for module in norms if type(module) in swap]
    for module, old in changed:
        module.__class__ = swap[old]
        module.process_group = None  # type: ignore[assignment]  # as its __init__ would: all processes
    try:
        yield len(changed), len(norms) - len(changed)
    finally:
        for module, old in changed:
            module.__class__ = old
            del module.process_group


def job() -> str | None:
    """Name the ``torchrun`` job of this process by what stays the same when it restarts its processes."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run}/{os.getppid()}/{_started(os.getppid())}"


def _started(process: int) -> str:
    """Say when a process began, in ticks since the machine did; containers give every launcher the same number."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep what a logger of Fabric says about its own start off the terminal."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.WARNING)
    try:
        yield
    finally:
        found.setLevel(level)
