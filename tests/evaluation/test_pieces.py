"""Pieces: of a size that depends on the question alone, and every row in one of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from hardy.evaluation.pieces import LARGEST, MOST, interleaved, pieces

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@given(n=st.integers(0, 20_000), batch=st.integers(1, 600))
def test_pieces_are_neither_tiny_nor_huge(n: int, batch: int) -> None:
    for device in (CPU, CUDA):
        count = pieces(n, batch, device)
        largest = -(-n // count)
        assert count >= 1 and largest <= LARGEST * batch
        if count > max(1, -(-n // (LARGEST * batch))):  # cut smaller than memory and the journal demand
            assert count <= MOST and count & (count - 1) == 0
            assert n // count >= (1 if device == CPU else batch)
            assert n // count >= 8 * count


def test_cuts_are_where_they_are_said_to_be() -> None:
    assert [pieces(n, 128, CPU) for n in (0, 1, 31, 32, 127, 128, 511, 512, 2047, 2048, 10_000)] == [
        *(1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 20)
    ]
    assert [pieces(n, 128, CUDA) for n in (128, 255, 256, 1000, 10_000)] == [1, 1, 2, 4, 20]
    assert pieces(100, 1, CPU) == 25


@given(n=st.integers(0, 300), count=st.integers(1, 20))
def test_dealt_rows_come_back_in_order(n: int, count: int) -> None:
    index = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    parts, order = interleaved(index, count)
    assert len(parts) == count and torch.equal(torch.cat(parts)[order], index)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
