"""Batches against a loop over images, and their independence of everything but seed, identity and epoch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from hardy.data import ArrayData, Batches
from hardy.data.augment import crop_flip, draw
from hardy.errors import ParameterError
from hardy.seeding import fold, keys, root


def make(n: int = 20, c: int = 3, h: int = 8, w: int = 8) -> ArrayData:
    x = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArrayData(x, torch.arange(n) % 4, torch.arange(n) * 3 + 1, tuple("abcd"), "toy", "train")


def reference(x: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """One image, one pixel at a time."""
    n, _, h, w = x.shape
    out = torch.zeros_like(x)
    for b in range(n):
        for i in range(h):
            for j in range(w):
                row, column = i + int(top[b]) - pad, (w - 1 - j if flip[b] else j) + int(left[b]) - pad
                if 0 <= row < h and 0 <= column < w:
                    out[b, :, i, j] = x[b, :, row, column]
    return out


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    pad=st.integers(0, 3),
    data=st.data(),
)
def test_crop_and_flip_equal_loops(shape: tuple[int, int, int, int], pad: int, data: st.DataObject) -> None:
    n = shape[0]
    x = torch.arange(math.prod(shape)).remainder(251).to(torch.uint8).reshape(shape) + 1
    offsets = st.lists(st.integers(0, 2 * pad), min_size=n, max_size=n)
    top, left = torch.tensor(data.draw(offsets)), torch.tensor(data.draw(offsets))
    flip = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    before = x.clone()
    assert torch.equal(crop_flip(x, top=top, left=left, flip=flip, pad=pad), reference(x, top, left, flip, pad))
    assert torch.equal(x, before)


@pytest.mark.parametrize("pad", [1, 4])
def test_windows_are_uniform_flips_are_fair_and_all_three_independent(pad: int) -> None:
    n = 20_000
    top, left, flip = draw(keys(root(0, "test"), torch.arange(n)), pad=pad, flip=True)
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=2 * pad + 1)
        assert len(counts) == 2 * pad + 1 and stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(flip.double().mean() - 0.5) < 4 * 0.5 / n**0.5
    table = torch.histogramdd(
        torch.stack([top, left, flip.long()], 1).double(), bins=[2 * pad + 1, 2 * pad + 1, 2]
    ).hist
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3


def test_a_batch_is_the_drawn_crops_of_the_keyed_rows() -> None:
    data = make(h=16, w=24)
    by_index = {int(i): row for row, i in enumerate(data.index)}
    all_keys = fold(keys(root(7, "sample"), data.index), 2)
    for x, y, key in Batches(data, batch_size=5, seed=7).epoch(2):
        rows = torch.tensor([(all_keys == k).nonzero().item() for k in key])
        assert torch.equal(y, data.y[rows])
        top, left, flip = draw(key, pad=2, flip=True)  # an eighth of 16
        want = reference(data.x[rows], top, left, flip, 2)
        assert torch.equal(x, want.float() / 255) and x.dtype == torch.float32
    assert len(by_index) == len(data)


def rows_of(data: ArrayData, batches: Batches, epoch: int) -> dict[int, tuple[Tensor, int]]:
    """Collect an epoch by key."""
    return {int(k): (xi, int(yi)) for x, y, key in batches.epoch(epoch) for xi, yi, k in zip(x, y, key, strict=True)}


@pytest.mark.parametrize("other", ["batch size", "no shuffle", "subset", "order of the data"])
def test_an_image_does_not_depend_on_its_batch(other: str) -> None:
    data = make()
    want = rows_of(data, Batches(data, batch_size=20, seed=1), 3)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    changed = {
        "batch size": lambda: Batches(data, batch_size=3, seed=1, drop_last=False),
        "no shuffle": lambda: Batches(data, batch_size=4, seed=1, shuffle=False),
        "subset": lambda: Batches(data.subset(data.y == 2), batch_size=5, seed=1),
        "order of the data": lambda: Batches(data.subset(mixed), batch_size=6, seed=1, drop_last=False),
    }[other]()
    got = rows_of(data, changed, 3)
    assert len(got) == (5 if other == "subset" else 20)
    assert all(torch.equal(x, want[k][0]) and y == want[k][1] for k, (x, y) in got.items())


def test_the_order_is_new_each_epoch_and_the_same_for_a_seed_whatever_is_augmented() -> None:
    data = make(200)

    def order(seed: int, epoch: int, **more: object) -> list[int]:
        batches = Batches(data, batch_size=200, seed=seed, **more)  # type: ignore[arg-type]
        return [y for _, ys, _ in batches.epoch(epoch) for y in ys.tolist()]

    first = order(0, 0)
    assert first == order(0, 0, augment=()) == order(0, 0, augment=("flip",), channels_last=True)
    assert first != order(0, 1) and first != order(1, 0) and sorted(first) == sorted(order(1, 0))
    assert order(0, 5, shuffle=False) == data.y.tolist()
    a, b = (next(Batches(data, batch_size=200, seed=s).epoch(0))[2] for s in (0, 1))
    assert not set(a.tolist()) & set(b.tolist())
    c = next(Batches(data, batch_size=200, seed=0).epoch(1))[2]
    assert not set(a.tolist()) & set(c.tolist())


def test_the_order_looks_random() -> None:
    data = make(2000, c=1, h=1, w=1)
    place = torch.empty(2000)
    _, _, key = next(Batches(data, batch_size=2000, seed=0, augment=()).epoch(0))
    all_keys = fold(keys(root(0, "sample"), data.index), 0)
    place[torch.argsort(torch.argsort(key))] = torch.arange(2000.0)  # by key, then back to rows
    by_row = place[torch.argsort(torch.argsort(all_keys))]
    assert abs(stats.spearmanr(by_row.numpy(), range(2000)).statistic) < 4 / 2000**0.5
    assert sorted(key.tolist()) == sorted(all_keys.tolist())


def test_a_run_resumes_within_an_epoch() -> None:
    batches = Batches(make(), batch_size=6, seed=1, drop_last=False)
    whole, rest = list(batches.epoch(4)), list(batches.epoch(4, start=2))
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for x, y in zip(whole[2:], rest, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("size", "drop", "steps"), [(6, True, 3), (6, False, 4), (20, True, 1), (5, False, 4)])
def test_lengths(size: int, drop: bool, steps: int) -> None:
    batches = Batches(make(), batch_size=size, seed=0, drop_last=drop)
    assert len(batches) == batches.steps_per_epoch == len(list(batches.epoch(0))) == steps
    assert sum(len(y) for _, y, _ in batches.epoch(0)) == (min(steps * size, 20))


def test_each_augmentation_alone_and_none() -> None:
    data = make()
    whole = {a: next(Batches(data, batch_size=20, seed=0, augment=a).epoch(0))[0] for a in ((), ("flip",), ("crop",))}
    plain = whole[()]
    flipped = (whole[("flip",)] != plain).flatten(1).any(1)
    assert torch.equal(torch.where(flipped[:, None, None, None], plain.flip(3), plain), whole[("flip",)])
    assert 0 < flipped.sum() < 20
    _, _, key = next(Batches(data, batch_size=20, seed=0).epoch(0))
    top, left, _ = draw(key, pad=1, flip=False)
    none = torch.zeros(20, dtype=torch.bool)
    assert torch.equal(whole[("crop",)], reference((plain * 255).round().byte(), top, left, none, 1).float() / 255)


def test_channels_last_changes_the_layout_only() -> None:
    a, b = (next(Batches(make(), batch_size=20, seed=0, channels_last=c).epoch(0))[0] for c in (False, True))
    assert torch.equal(a, b) and b.is_contiguous(memory_format=torch.channels_last) and a.is_contiguous()


def test_the_global_generator_and_the_data_are_left_alone() -> None:
    data, before = make(), torch.get_rng_state()
    x = data.x.clone()
    list(Batches(data, batch_size=4, seed=0).epoch(0))
    list(Batches(data, batch_size=4, seed=0, augment=()).epoch(0))
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(data.x, x)


def test_wrong_arguments_are_refused() -> None:
    for size in (0, 21):
        with pytest.raises(ParameterError, match=rf"batch_size must be in \[1, 20\], the number of images; got {size}"):
            Batches(make(), batch_size=size, seed=0)
    with pytest.raises(ParameterError, match="no augmentation 'flop'; did you mean 'flip'"):
        Batches(make(), batch_size=4, seed=0, augment=["flop"])


@pytest.mark.gpu
def test_the_gpu_gives_the_same_batches() -> None:
    pairs = zip(*(Batches(make(200), batch_size=64, seed=0, device=d).epoch(1) for d in ("cpu", "cuda")), strict=True)
    assert all(torch.equal(a, b.cpu()) for cpu, gpu in pairs for a, b in zip(cpu, gpu, strict=True))
