"""CutMix against a slow loop, and its boxes and areas against torchvision's."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torchvision.transforms import v2

from hardy.errors import AttachError, ParameterError
from hardy.methods.cutmix import CARD, CutMix, cutmix, pasted
from hardy.methods.label_smoothing import LabelSmoothing
from hardy.methods.mixup import Scope, cycle, symmetric_beta
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attach, attachments


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def images(n: int, h: int = 6, w: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 5


def mix(
    x: Tensor, y: Tensor, key: Tensor, *, alpha: float = 1.0, p: float = 1.0, scope: Scope = "sample"
) -> tuple[Tensor, Tensor]:
    return cutmix(x, y, alpha=alpha, p=p, scope=scope, num_classes=5, key=key)


@pytest.mark.parametrize(("n", "h", "w"), [(1, 6, 6), (2, 5, 9), (5, 8, 8), (8, 1, 7), (4, 32, 20)])
@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_equals_the_slow_reference(n: int, h: int, w: int, scope: Scope, p: float) -> None:
    for seed in range(4):
        (x, y), k = images(n, h, w), key(n, seed)
        got_x, got_y = mix(x, y, k, alpha=0.7, p=p, scope=scope)
        order = sorted(range(n), key=lambda i, k=k: int(fold(k[i : i + 1], 1)))
        for place, i in enumerate(order):
            own = k[i : i + 1] if scope == "sample" else k[order[0]][None]
            other, want, area = order[(place + 1) % n], x[i].clone(), 0
            if uniform(own, 0, ()) < p:
                ratio = math.sqrt(1 - float(symmetric_beta(own, 2, 0.7)))
                u, v = uniform(own, 3, (2,))[0].tolist()
                top, bottom = (min(max(int(u * h) + s * (int(ratio * h) // 2), 0), h) for s in (-1, 1))
                left, right = (min(max(int(v * w) + s * (int(ratio * w) // 2), 0), w) for s in (-1, 1))
                want[:, top:bottom, left:right] = x[other, :, top:bottom, left:right]
                area = (bottom - top) * (right - left)
            assert torch.equal(got_x[i], want)
            label = torch.zeros(5)
            label[y[i]] += 1 - area / (h * w)
            label[y[other]] += area / (h * w)
            torch.testing.assert_close(got_y[i], label)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 6), h=st.integers(1, 20), w=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_the_label_counts_the_pixels_of_one_box(n: int, h: int, w: int, seed: int) -> None:
    x = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 2, h, w) / 8
    before, k = x.clone(), key(n, seed)
    mixed, soft = cutmix(x, torch.arange(n), alpha=1.0, p=1.0, scope="sample", num_classes=n, key=k)
    other = x[cycle(k)]
    inside = mixed == other
    assert torch.equal(mixed, torch.where(inside, other, x)) and torch.equal(x, before)
    assert torch.equal(inside.all(1), inside.any(1))
    height, width = inside[:, 0].any(-1).sum(-1), inside[:, 0].any(-2).sum(-1)
    assert torch.equal(inside[:, 0].sum((1, 2)), height * width)
    share = inside[:, 0].float().mean((1, 2))
    rows = torch.arange(n)
    torch.testing.assert_close(soft[rows, cycle(k)], share)
    torch.testing.assert_close(soft[rows, rows], 1 - share)
    torch.testing.assert_close(soft.sum(1), torch.ones(n))


@pytest.mark.parametrize(("h", "w", "alpha"), [(32, 32, 1.0), (9, 5, 1.0), (16, 8, 0.3)])
def test_boxes_are_distributed_as_in_torchvision(h: int, w: int, alpha: float) -> None:
    draws = 1500
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        theirs = v2.CutMix(alpha=alpha, num_classes=2)
        x = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, h, w).contiguous()
        out = [theirs(x, torch.arange(2)) for _ in range(draws)]
    hit, area = torch.stack([o[0][0, 0] for o in out]), torch.tensor([float(o[1][0, 1]) for o in out])
    ours = pasted(key(draws), (h, w), alpha=alpha, p=1.0)[:, 0].float()
    assert stats.ks_2samp(area, ours.mean((1, 2))).pvalue > 1e-3
    chance = (hit.mean(0) + ours.mean(0)) / 2
    assert ((hit.mean(0) - ours.mean(0)).abs() < 4.5 * (2 * chance * (1 - chance) / draws).sqrt() + 1e-9).all()


def test_share_of_images_with_a_box_is_p() -> None:
    n, p = 6000, 0.3
    boxes = pasted(key(n), (32, 32), alpha=1.0, p=p).flatten(1).any(1).float()
    never = (2 / 32) ** 2  # lambda above 1 - (2/32)^2 leaves half a side of 0 pixels
    want = p * (1 - never)
    assert abs(boxes.mean() - want) < 4 * (want * (1 - want) / n) ** 0.5


def test_nothing_happens_at_p_0_or_to_an_image_alone() -> None:
    for n, p in ((7, 0.0), (1, 1.0), (0, 1.0)):
        x, y = images(n)
        for scope in ("sample", "batch"):
            mixed, soft = mix(x, y, key(n), p=p, scope=scope)
            assert torch.equal(mixed, x) and torch.equal(soft, F.one_hot(y, 5).float())


def test_soft_labels_are_mixed_as_they_are() -> None:
    x, hard = images(6)
    y = torch.softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), 1)
    k = key(6)
    share = pasted(k, (6, 6), alpha=1.0, p=1.0).float().mean((1, 2, 3))[:, None]
    torch.testing.assert_close(mix(x, y, k)[1], (1 - share) * y + share * y[cycle(k)])
    assert torch.equal(mix(x, F.one_hot(hard, 5).float(), k)[1], mix(x, hard, k)[1])


def test_one_box_serves_the_batch_if_asked() -> None:
    x, y = images(8, 16, 16)
    black, white = torch.zeros_like(x), x + 1
    for seed in range(5):
        k = key(8, seed)
        mixed, _ = mix(white, y, k, scope="batch")
        changed = (mixed != white).any(1)
        assert torch.equal(changed, changed[:1].expand_as(changed))
        assert torch.equal(mix(black, y, k, scope="batch")[0], black)


def test_the_input_the_order_and_the_global_generator_do_not_matter() -> None:
    (x, y), k, order = images(8), key(8), torch.tensor([5, 0, 3, 7, 1, 4, 2, 6])
    before, rng = x.clone(), torch.get_rng_state()
    mixed, soft = mix(x, y, k, p=0.6)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), rng)
    again = mix(x[order], y[order], k[order], p=0.6)
    assert torch.equal(again[0], mixed[order]) and torch.equal(again[1], soft[order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x, y = images(4)
    mixed, soft = mix(x.to(dtype, memory_format=torch.channels_last), y, key(4))
    assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=torch.channels_last)
    assert soft.dtype == torch.float32


class Echo(nn.Module):
    """Shows what the net saw: its logits are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize(("scope", "p"), [("sample", 0.5), ("batch", 0.9)])
def test_attach_pastes_in_the_objective_with_the_key_of_the_row_and_the_seed_of_the_caller(
    scope: Scope, p: float
) -> None:
    model, (x, y), k = Echo(), images(8), key(8, 5)
    a = CutMix(alpha=0.8, p=p, scope=scope).attach(model, example=x[:1], seed=7)
    assert a.sites == () and list(model.state_dict()) == []
    objective, own = Objective(model), fold(k, root(7, "cutmix"))
    want, soft = cutmix(x, y, alpha=0.8, p=p, scope=scope, num_classes=108, key=own)
    logits, losses = objective(x, y, k)
    assert torch.equal(logits, want.flatten(1)) and not torch.equal(want, x)
    torch.testing.assert_close(losses["task"], F.cross_entropy(want.flatten(1), soft))
    assert torch.equal(objective.eval()(x, y, k)[0], x.flatten(1))
    a.detach()
    assert attachments(model) == [] and torch.equal(objective.train()(x, y, k)[0], x.flatten(1))


def test_with_label_smoothing_the_mixed_label_is_smoothed() -> None:
    model, (x, y), k = Echo(), images(6), key(6)
    attach(model, [LabelSmoothing(smoothing=0.3), CutMix(p=1.0)], example=x, seed=0)
    logits, losses = Objective(model)(x, y, k)
    _, soft = cutmix(x, y, alpha=1.0, p=1.0, scope="sample", num_classes=108, key=fold(k, root(0, "cutmix")))
    want = -((0.7 * soft + 0.3 / 108) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["task"], want)


def test_a_model_without_logits_is_an_error() -> None:
    with pytest.raises(AttachError, match=r"cutmix: the model must return logits \(n, k\); got \(1, 3, 6, 6\)"):
        CutMix().attach(nn.Identity(), example=images(2)[0], seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, r"CutMix: alpha must be above 0 and finite; got -1.0"),
        ({"alpha": math.nan}, r"CutMix: alpha must be above 0"),
        ({"p": -0.5}, r"CutMix: p must be in \[0, 1\]; got -0.5"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        CutMix(**change)  # type: ignore[arg-type]


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live
