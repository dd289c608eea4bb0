"""Data in memory is valid from the start, and identities stay with their images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hardy.data import ArrayData
from hardy.errors import DataError, ParameterError


def make(n: int = 10, *, split: str = "test", names: tuple[str, ...] = ("cat", "dog", "cow")) -> ArrayData:
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 3).contiguous()
    return ArrayData(x, torch.arange(n) % 2, torch.arange(n) + 100, names, "toy", split)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), r"toy \(test\): x must be uint8, n c h w; got torch.float32"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"n c h w; got torch.uint8, \(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).int(), "y must be int64, one for each of the 2 images"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"2 images; got torch.int64, \(3,\)"),
        (torch.zeros(0, 3, 4, 4).byte(), torch.zeros(0).long(), "at least one image"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([0, 3]), r"must be in 0 .. 2 \(3 class names\); got 3 at row 1"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.tensor([-1, 0]), "got -1 at row 0"),
    ],
)
def test_wrong_tensors_are_refused(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayData(x, y, torch.arange(len(y)), ("a", "b", "c"), "toy", "test")


def test_a_class_without_an_image_is_named_only_when_asked() -> None:
    data = make(split="train")
    with pytest.raises(DataError, match=r"toy \(train\): every class must have an image to train on; none for 'cow'"):
        data.check_classes()
    assert data.subset(data.y == 1).num_classes == 3  # a selection may lack classes
    full = make(names=("cat", "dog"))
    assert full.check_classes() is full


def test_selections_keep_identities() -> None:
    data = make()
    odd = data.subset(data.y == 1)
    assert odd.index.tolist() == [101, 103, 105, 107, 109]
    assert odd.x[:, 0, 0, 0].tolist() == [1, 3, 5, 7, 9] and odd.y.unique().tolist() == [1]
    assert odd.subset(torch.tensor([4, 0])).index.tolist() == [109, 101]
    with pytest.raises(DataError, match="at least one image"):
        data.subset(data.y == 2)


@given(n=st.integers(1, 12), seed=st.integers(0, 5))
def test_limits_are_exact_nested_balanced_and_in_order(n: int, seed: int) -> None:
    data = make()
    some = data.limit(n, seed=seed)
    assert len(some) == min(n, 10)
    assert some.index.tolist() == sorted(some.index.tolist())
    assert torch.equal(some.x[:, 0, 0, 0].long() + 100, some.index)
    assert set(some.index.tolist()) <= set(data.limit(n + 1, seed=seed).index.tolist())
    assert torch.bincount(some.y, minlength=2).diff().abs() <= 1


def test_limits_of_none_and_zero() -> None:
    data = make()
    assert data.limit(None) is data and data.limit(99) is data
    with pytest.raises(ParameterError, match="limit must be at least 1; got 0"):
        data.limit(0)


def test_images_are_floats_in_0_1_as_torchvision_makes_them() -> None:
    from torchvision.transforms.functional import to_tensor

    data = ArrayData.make(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), torch.tensor([0]))
    assert torch.equal(data.images()[0], to_tensor(data.x[0].permute(1, 2, 0).numpy()))
    assert data.images().min() == 0 and data.images().max() == 1


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_batches_are_the_data_in_order(size: int) -> None:
    data = make()
    batches = list(data.batches(size))
    assert [len(x) for x, _ in batches] == [min(size, 10 - i) for i in range(0, 10, size)]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.images())
    assert torch.equal(torch.cat([y for _, y in batches]), data.y)
    assert torch.equal(next(iter(data))[0], data.images())
    with pytest.raises(ParameterError, match="batch_size"):
        next(data.batches(0))


def test_make_fills_in_names_and_identities() -> None:
    data = ArrayData.make(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 2, 1], dtype=torch.int32))
    assert data.class_names == ("0", "1", "2") and data.index.tolist() == [0, 1, 2] and data.shape == (1, 2, 2)
