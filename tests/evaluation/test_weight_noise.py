"""Weights in hardware: against loops, against the binomial distribution, and keyed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardy.errors import ParameterError
from hardy.evaluation.weight_noise import analogue_noise, flip_bits, prune_random, prune_smallest, quantise
from hardy.seeding import root

ROOT = root(0, "test")


def kernel(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_quantise(values: list[float], bits: int) -> list[float]:
    most = 2 ** (bits - 1) - 1
    scale = max(abs(v) for v in values) / most
    if scale == 0:
        return values
    return [max(-most, min(most, round(v / scale))) * scale for v in values]


@given(bits=st.integers(2, 16), seed=st.integers(0, 50), per_channel=st.booleans())
@settings(max_examples=40, deadline=None)
def test_quantised_weights_are_those_of_a_loop(bits: int, seed: int, per_channel: bool) -> None:
    weight = kernel(3, 2, 3, 3, seed=seed).double()
    weight[1] *= 100
    groups = list(weight.flatten(1)) if per_channel else [weight.flatten()]
    wanted = torch.tensor([slow_quantise(group.tolist(), bits) for group in groups], dtype=torch.float64)
    got = quantise(weight, bits=bits, per_channel=per_channel)
    assert torch.allclose(got, wanted.reshape(weight.shape), rtol=1e-12, atol=0)
    for was, now in zip(groups, got.reshape(len(groups), -1), strict=True):
        step = float(was.abs().max()) / (2 ** (bits - 1) - 1)
        assert float((now - was).abs().max()) <= step / 2 * (1 + 1e-9)
        assert float(now.abs().max()) == pytest.approx(float(was.abs().max()))  # the largest keeps its value
        assert len(now.unique()) <= 2**bits - 1
    assert torch.allclose(quantise(got, bits=bits, per_channel=per_channel), got)  # twice is once


def test_a_dead_channel_stays_dead_and_one_scale_for_all_is_coarser() -> None:
    weight = kernel(3, 4)
    weight[0], weight[1] = 0, 0.001 * weight[1]
    assert not quantise(weight, bits=4)[0].any()
    assert quantise(weight, bits=4)[1].any() and not quantise(weight, bits=4, per_channel=False)[1].any()


def flipped_bits(weight: Tensor, got: Tensor) -> Tensor:
    """Read the stored bytes off the weights before and after, and give the bits that differ, (weights, 8)."""
    scale = weight.abs().flatten(1).amax(dim=1) / 127
    codes = [(value.flatten(1) / scale[:, None]).round().long().flatten() for value in (weight, got)]
    stored = [torch.tensor([int(code).to_bytes(1, "big", signed=True)[0] for code in each]) for each in codes]
    return (stored[0] ^ stored[1])[:, None].bitwise_and(1 << torch.arange(8)) > 0


@pytest.mark.parametrize("rate", [0.0005, 0.01, 0.3, 0.9])
def test_bits_flip_as_often_as_they_should_everywhere_and_alike(rate: float) -> None:
    weight = kernel(16, 8, 9)
    hits = torch.stack(
        [flipped_bits(weight, flip_bits(weight, rate, root(i, "test"), "w")) for i in range(20)]
    ).double()

    def close(sample: Tensor, chance: float) -> bool:
        return abs(float(sample.mean()) - chance) <= 4.5 * math.sqrt(chance * (1 - chance) / sample.numel())

    assert close(hits, rate)
    assert all(close(hits[:, :, bit], rate) for bit in range(8))
    assert close(hits[:, : hits.shape[1] // 2], rate) and close(hits[:, -50:], rate)  # to the last weight
    flat = hits.flatten(1)
    assert close(flat[:, 1:] * flat[:, :-1], rate**2)  # neighbours do not know of each other
    counts = flat.sum(dim=1)
    spread = flat.shape[1] * rate * (1 - rate)
    assert 0.25 < float(counts.var()) / spread < 2.5  # chi-square with 19 degrees of freedom


def test_all_bits_flip_at_rate_one_and_the_sign_bit_makes_the_smallest_weight_the_largest() -> None:
    weight = torch.tensor([[127.0, -127.0, 0.0, 5.0]])
    assert flip_bits(weight, 1.0, ROOT, "w").tolist() == [[-128.0, 126.0, -1.0, -6.0]]  # ~c = -c - 1


@given(rate=st.floats(1e-6, 1), seed=st.integers(0, 1000), size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_whatever_flips_the_result_is_a_byte(rate: float, seed: int, size: int) -> None:
    weight = kernel(2, size, seed=seed)
    got = flip_bits(weight, rate, seed, "w")
    codes = got / (weight.abs().amax(dim=1, keepdim=True) / 127)
    assert got.shape == weight.shape and torch.allclose(codes, codes.round(), atol=1e-3)
    assert float(codes.min()) >= -128.001 and float(codes.max()) <= 127.001


def test_weights_are_lost_at_the_rate_and_those_of_a_smaller_share_are_among_them() -> None:
    weight = kernel(32, 16, 3, 3) + 10
    few, many = (prune_random(weight, share, ROOT, "w") == 0 for share in (0.1, 0.3))
    assert bool((many | ~few).all())
    for lost, share in ((few, 0.1), (many, 0.3)):
        assert abs(float(lost.double().mean()) - share) < 4.5 * math.sqrt(share * (1 - share) / weight.numel())
        assert torch.equal(prune_random(weight, share, ROOT, "w")[~lost], weight[~lost])
    assert not prune_random(weight, 1.0, ROOT, "w").any()


@given(share=st.floats(0.001, 1), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_exactly_the_smallest_weights_go(share: float, seed: int) -> None:
    weight = kernel(3, 5, 2, seed=seed).round(decimals=1)  # with ties
    values = weight.flatten().tolist()
    order = sorted(range(30), key=lambda i: (abs(values[i]), i))
    for i in order[: round(share * 30)]:
        values[i] = 0.0
    assert prune_smallest(weight, share).flatten().tolist() == values


def test_analogue_noise_is_relative_to_the_largest_weight() -> None:
    weight = kernel(32, 16, 3, 3)
    noise = (analogue_noise(weight, 0.05, ROOT, "w") - weight) / float(weight.abs().max())
    n = noise.numel()
    assert abs(float(noise.std()) / 0.05 - 1) < 4.5 / math.sqrt(2 * n) and abs(
        float(noise.mean())
    ) < 0.05 * 4.5 / math.sqrt(n)
    twice = (analogue_noise(weight, 0.1, ROOT, "w") - weight) / float(weight.abs().max())
    assert torch.allclose(twice, 2 * noise, atol=1e-6)
    assert not analogue_noise(torch.zeros(2, 2), 0.1, ROOT, "w").any()


@pytest.mark.parametrize("change", [flip_bits, prune_random, analogue_noise])
def test_a_root_and_a_name_decide_and_nothing_is_changed_in_place(change: object) -> None:
    assert callable(change)
    weight = kernel(4, 3, 3, 3)
    kept, state = weight.clone(), torch.get_rng_state()
    first = change(weight, 0.2, ROOT, "a.weight")
    assert torch.equal(first, change(weight, 0.2, ROOT, "a.weight"))
    assert not torch.equal(first, change(weight, 0.2, ROOT, "b.weight"))
    assert not torch.equal(first, change(weight, 0.2, root(1, "test"), "a.weight"))
    assert torch.equal(weight, kept) and torch.equal(state, torch.get_rng_state())
    quantise(weight, bits=3), prune_smallest(weight, 0.5)
    assert torch.equal(weight, kept)


def test_bad_settings_are_refused() -> None:
    weight = kernel(2, 2)
    with pytest.raises(ParameterError, match="bits must be at least 2; got 1"):
        quantise(weight, bits=1)
    for share in (0.0, 1.5, math.nan):
        for who, change in {"flip_bits": flip_bits, "prune_random": prune_random}.items():
            with pytest.raises(ParameterError, match=who):
                change(weight, share, ROOT, "w")
        with pytest.raises(ParameterError, match="prune_smallest"):
            prune_smallest(weight, share)
    for sigma in (0.0, -1.0, math.inf):
        with pytest.raises(ParameterError, match="sigma"):
            analogue_noise(weight, sigma, ROOT, "w")
