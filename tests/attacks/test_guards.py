"""One integer per image, known rules, float32 weights."""

import pytest
import torch
from torch import nn

from hardy.attacks.guards import check_precision, check_rows, check_stop
from hardy.errors import DataError, ParameterError, ShapeError

X = torch.zeros(4, 1, 2, 2)


def test_integers_of_any_width_become_int64() -> None:
    for dtype in (torch.uint8, torch.int32, torch.int64):
        got = check_rows("y", torch.arange(4, dtype=dtype), X)
        assert got.dtype == torch.int64 and got.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (torch.zeros(4, 1, dtype=torch.int64), ShapeError, r"y must be \(4,\), one per image; got \(4, 1\)"),
        (torch.zeros(3, dtype=torch.int64), ShapeError, r"got \(3,\)"),
        (torch.zeros(4), DataError, r"y must be integers; got torch.float32. Convert with y.long\(\)"),
        (torch.zeros(4, dtype=torch.bool), DataError, "got torch.bool"),
        (torch.zeros(4, dtype=torch.int64, device="meta"), DataError, "x is on cpu, y on meta"),
    ],
)
def test_other_rows_are_an_error(values: torch.Tensor, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        check_rows("y", values, X)


def test_unknown_rules_are_an_error() -> None:
    check_stop(None)
    check_stop("never")
    with pytest.raises(ParameterError, match="unknown stop 'min_nrm'; did you mean 'min_norm'"):
        check_stop("min_nrm")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_an_error(dtype: torch.dtype) -> None:
    check_precision(nn.Linear(2, 2), "attack")
    net = nn.Sequential(nn.ReLU(), nn.Linear(2, 2).to(dtype))
    with pytest.raises(DataError, match=rf"1.weight is {dtype}. Call model.float\(\)"):
        check_precision(net, "attack")
