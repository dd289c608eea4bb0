"""Equal digests mean equal images and equal weights."""

import copy
import hashlib

import torch
from torch import Tensor, nn

from hardy.evaluation.fingerprint import images_digest, weights_digest


def test_images_are_hashed_by_value(x: Tensor) -> None:
    want = hashlib.blake2b(x.contiguous().numpy().tobytes(), digest_size=16).digest()
    assert images_digest(x) == images_digest(x.transpose(2, 3).contiguous().transpose(2, 3)) == want
    changed = x.clone()
    changed[-1, 0, -1, -1] += 1e-6
    assert images_digest(changed) != want and images_digest(x.flip(0)) != want


def test_weights_are_hashed_by_name_shape_and_value(net: nn.Module) -> None:
    digest = weights_digest(net)
    assert len(digest) == 16 and int(digest, 16) >= 0
    twin = copy.deepcopy(net).train()
    assert weights_digest(twin) == digest
    twin[1].running_mean[3] += 1e-4
    assert weights_digest(twin) != digest
    assert weights_digest(nn.Sequential(net)) != digest  # other names
    flat, square = nn.Module(), nn.Module()
    flat.register_buffer("w", torch.arange(4.0))
    square.register_buffer("w", torch.arange(4.0).reshape(2, 2))
    assert weights_digest(flat) != weights_digest(square)


def test_every_dtype_can_be_hashed() -> None:
    odd = nn.Module()
    for i, dtype in enumerate([torch.bfloat16, torch.float16, torch.bool, torch.int64]):
        odd.register_buffer(f"b{i}", torch.ones(3).to(dtype))
    odd.register_buffer("scalar", torch.tensor(2.0))
    odd.register_buffer("empty", torch.zeros(0))
    assert len(weights_digest(odd)) == 16 == len(weights_digest(nn.ReLU()))
