"""Does the training loop cost anything? Hardy's against a bare PyTorch loop, same net, same data, in one process.

Rule, fixed before the runs: the 95 % interval of Hardy's images per second over those of the bare loop on resident
uint8 images reaches 1.0 and does not go below 0.97 (a wider one says nothing: more rounds). The bare loop runs twice,
so that one sees what the same loop makes of itself.

The bare loop is what a good engineer writes in 25 lines: uint8 images in memory, crop and flip batched, SGD with
Nesterov momentum, cosine, loss and accuracy added up on the device. ``loader`` is the common variant: a torchvision
DataLoader with PIL transforms and two workers. Hardy's loop is ``hardy.train`` as it is, without methods and without a
validation part; what it adds is keyed augmentation and row keys, a look at every loss, named metrics, and a run folder.
Timed is an epoch: Hardy's own ``seconds`` of it, which contain everything but the write of the checkpoint, and the same
span of the bare loop. Rounds are interleaved: every loop is a generator that stops after each epoch, and the order
rotates from round to round. Images are random: their values do not change the time.

    python benchmarks/speed/training_loop.py [--nets cifar_resnet20 cifar_resnet18] [--images 1280] [--rounds 9]
        [--threads N] [--device cpu]

On a busy machine no figure means anything: the load average is printed and recorded. The last line of stdout is JSON.
"""

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import hardy
from hardy.data import ArrayData
from hardy.training import Progress, TrainRecipe

BATCH_SIZE = 128
LR, DECAY = 0.1, 5e-4


def crop_flip(x: Tensor) -> Tensor:
    """Cut a random window of 32 pixels out of each image with a border of 4, and mirror half of them."""
    n, device = len(x), x.device
    windows = F.pad(x, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    top, left = torch.randint(9, (2, n), device=device)
    x = windows[torch.arange(n, device=device), :, top, left]
    return torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.5, x.flip(3), x)


def resident(x: Tensor, y: Tensor, device: torch.device) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Make batches of images that stay on the device."""
    x, y = x.to(device), y.to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(x), device=device).split(BATCH_SIZE)[: len(x) // BATCH_SIZE]:
            yield crop_flip(x[rows]).float() / 255, y[rows]

    return batches


class InMemory(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 does once it has read its files."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.images, self.labels = x.permute(0, 2, 3, 1).contiguous().numpy(), y.tolist()
        self.transform = transforms.Compose(
            [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Decode and transform one image."""
        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def loader(x: Tensor, y: Tensor, device: torch.device) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Make batches as a torchvision tutorial does."""
    cuda = device.type == "cuda"
    data = DataLoader(
        InMemory(x, y),
        BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        pin_memory=cuda,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in data:
            yield images.to(device, non_blocking=cuda), labels.to(device, non_blocking=cuda)

    return batches


def bare(
    model: nn.Module, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], *, epochs: int, steps: int
) -> Iterator[float]:
    """Train, and give the seconds of each epoch."""
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    for _ in range(epochs):
        began, total, right = time.perf_counter(), 0.0, 0
        for x, y in batches():
            optimizer.zero_grad(set_to_none=True)
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            total, right = total + loss.detach(), right + (logits.argmax(1) == y).sum()
        float(total), int(right)  # as a log does; waits for the device
        yield time.perf_counter() - began


def ours(model: nn.Module, data: ArrayData, *, epochs: int, device: str, out: Path) -> Iterator[float]:
    """Run ``hardy.train`` in a thread that waits after each epoch; give the seconds of each."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    seconds: list[float] = []
    failed: list[BaseException] = []

    def on_progress(p: Progress) -> None:
        if p.row is not None:
            seconds.append(p.row["seconds"])
            done.release()
            if p.epoch < p.epochs:
                go.acquire()

    def run() -> None:
        try:
            options = TrainRecipe(epochs=epochs, batch_size=BATCH_SIZE, lr=LR, weight_decay=DECAY)
            hardy.train(model, data, options=options, device=device, out=out, on_progress=on_progress)
        except BaseException as error:  # noqa: BLE001  (told to the main thread)
            failed.append(error)
            done.release()

    thread = threading.Thread(target=run, daemon=True)
    for epoch in range(epochs):
        thread.start() if epoch == 0 else go.release()
        done.acquire()
        if failed:
            raise failed[0]
        yield seconds[-1]
    thread.join()


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Give the median and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def measure(net: str, x: Tensor, y: Tensor, *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time ``rounds`` epochs of each loop after one to warm up."""
    epochs, steps = rounds + 1, len(x) // BATCH_SIZE

    def model() -> nn.Module:
        return hardy.load_model(net, num_classes=10, seed=0).to(device)

    with tempfile.TemporaryDirectory() as folder:
        data = ArrayData.make(x, y, name="random", split="train")
        loops = {
            "hardy": ours(model(), data, epochs=epochs, device=str(device), out=Path(folder) / "run"),
            "bare": bare(model(), resident(x, y, device), epochs=epochs, steps=steps),
            "bare again": bare(model(), resident(x, y, device), epochs=epochs, steps=steps),
            "loader": bare(model(), loader(x, y, device), epochs=epochs, steps=steps),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        names = list(loops)
        for number in range(epochs):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(next(loops[name]))
        for loop in loops.values():
            next(loop, None)  # ends the thread
    return {name: values[1:] for name, values in seconds.items()}


def judge(net: str, seconds: dict[str, list[float]], images: int) -> dict[str, object]:
    """Compare the loops of one net round by round, and print it."""
    base = np.array(seconds["bare"])
    found = {name: interval(base / np.array(seconds[name])) for name in ("hardy", "bare again", "loader")}
    print(f"{net}: median images/s; images/s over those of the bare loop, 95 % interval")
    for name, values in seconds.items():
        ratio = "" if name == "bare" else "{:.3f} [{:.3f}, {:.3f}]".format(*found[name])
        print(f"  {name:<12}{images / float(np.median(values)):>10.0f}   {ratio}", flush=True)
    return {
        "net": net,
        "images_per_second": {name: images / float(np.median(values)) for name, values in seconds.items()},
        "seconds": seconds,
        "ratio": dict(zip(("median", "low", "high"), found["hardy"], strict=True)),
        "bare_again": dict(zip(("median", "low", "high"), found["bare again"], strict=True)),
        "loader": dict(zip(("median", "low", "high"), found["loader"], strict=True)),
        "passed": bool(found["hardy"][1] >= 0.97 and found["hardy"][2] >= 1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=["cifar_resnet20", "cifar_resnet18"])
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_before = os.getloadavg()[0]
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (args.images, 3, 32, 32), dtype=np.uint8))
    y = torch.arange(args.images) % 10
    images = args.images // BATCH_SIZE * BATCH_SIZE
    print(
        f"{images} images an epoch, batch {BATCH_SIZE}, {args.threads} threads, load average before {load_before:.1f}"
    )
    device = torch.device(args.device)
    results = [judge(net, measure(net, x, y, rounds=args.rounds, device=device), images) for net in args.nets]
    facts = {
        "benchmark": "training_loop",
        "images": images,
        "batch_size": BATCH_SIZE,
        "rounds": args.rounds,
        "threads": args.threads,
        "device": args.device,
        "cores": os.cpu_count(),
        "load_average_before": load_before,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
        "results": results,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
