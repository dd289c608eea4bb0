"""Names of data, parts and sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hardy.data import load_data
from hardy.data.load import LOADERS, _check, resize
from hardy.errors import DataError, ParameterError


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.33])
def test_train_and_val_are_disjoint_and_together_the_training_data(fraction: float) -> None:
    whole = load_data("digits", split="train", val_fraction=0.0)
    train = load_data("digits", split="train", val_fraction=fraction, seed=1)
    if fraction == 0:
        assert torch.equal(train.index, whole.index)
        with pytest.raises(ParameterError, match="leaves none for val"):
            load_data("digits", split="val", val_fraction=0.0)
        return
    val = load_data("digits", split="val", val_fraction=fraction, seed=1)
    assert len(val) == round(fraction * 1437)
    assert sorted(train.index.tolist() + val.index.tolist()) == whole.index.tolist()
    assert torch.equal(val.x, whole.x[val.index]) and torch.equal(train.y, whole.y[train.index])
    assert not torch.equal(val.index, load_data("digits", split="val", val_fraction=fraction, seed=2).index)


def test_the_test_part_depends_on_nothing() -> None:
    a, b = load_data("digits"), load_data("digits", seed=5, val_fraction=0.5)
    assert torch.equal(a.x, b.x) and torch.equal(a.index, b.index)


def test_limit_is_that_of_the_data_in_memory() -> None:
    want = load_data("digits").limit(37, seed=2)
    got = load_data("digits", limit=37, seed=2)
    assert torch.equal(got.index, want.index) and torch.equal(got.x, want.x) and len(got) == 37
    with pytest.raises(DataError, match=r"every class must have an image to train on; none for .* raise limit"):
        load_data("digits", split="train", limit=5)


def test_size_resizes_arrays() -> None:
    assert load_data("digits", limit=3, size=32).shape == (1, 32, 32)


@given(h=st.integers(1, 40), w=st.integers(1, 40), size=st.integers(1, 40), value=st.integers(0, 255))
def test_resizing_keeps_a_constant_image_constant(h: int, w: int, size: int, value: int) -> None:
    y = resize(torch.full((1, 2, h, w), value, dtype=torch.uint8), size)
    assert y.shape == (1, 2, size, size) and (y == value).all()


def test_resizing_by_one_is_the_centre_crop_and_halving_averages() -> None:
    x = torch.randint(0, 256, (2, 3, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(x, 6), x[:, :, :, 2:8])
    smooth = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    inner = resize(smooth, 4)[0, 0, 1:3, 1:3].float()
    want = smooth.float().reshape(4, 2, 4, 2).mean((1, 3))[1:3, 1:3]
    assert (inner - want).abs().max() <= 0.5


def test_shrinking_averages_what_lies_between_the_samples() -> None:
    x = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    x[..., ::4] = 255  # a quarter of the columns, none of which a plain bilinear sample would touch
    assert (resize(x, 8)[0, 0, :, 1:-1].float() - 255 / 4).abs().max() < 20


def test_an_image_that_would_not_fit_is_refused_before_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardy.data.rows.free_bytes", lambda: 10**6)
    with pytest.raises(DataError, match=r"need 0.1 GiB, 0.0 GiB are free"):
        load_data("digits", size=512)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"spec": "digit"}, DataError, "no such kind of data 'digit'; did you mean 'digits'"),
        ({"limit": 0}, ParameterError, "limit must be at least 1"),
        ({"size": 0}, ParameterError, "size must be at least 1"),
        ({"val_fraction": 1.0}, ParameterError, r"val_fraction must be in \[0, 1\); got 1.0"),
        ({"val_fraction": float("nan")}, ParameterError, "val_fraction"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_data(**({"spec": "digits"} | wrong))  # type: ignore[arg-type]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ParameterError, match="split must be one of train, val, test; got 'tset'"):
        _check("tset", None, None, 0.1)


def test_every_loader_is_documented() -> None:
    assert all(name in (load_data.__doc__ or "") for name in LOADERS)
