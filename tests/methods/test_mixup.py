"""Mixup against a slow loop, its lambda against the Beta distribution, its partners against what a cycle is."""

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
from hardy.methods.cutmix import CutMix, cutmix
from hardy.methods.label_smoothing import LabelSmoothing
from hardy.methods.mixup import (
    CARD,
    Mixup,
    Scope,
    check_mixing,
    class_count,
    cycle,
    mixing_weights,
    mixup,
    scoped,
    symmetric_beta,
)
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attach, attachments


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def images(n: int, size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 5


def mix(
    x: Tensor, y: Tensor, key: Tensor, *, alpha: float = 1.0, p: float = 1.0, scope: Scope = "sample"
) -> tuple[Tensor, Tensor]:
    return mixup(x, y, alpha=alpha, p=p, scope=scope, num_classes=5, key=key)


class TestLambda:
    @pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 1.0, 3.0, 40.0, 1000.0])
    def test_is_beta_distributed(self, alpha: float) -> None:
        n = 20_000
        lam = symmetric_beta(key(n), 2, alpha).double()
        beta = stats.beta(alpha, alpha)
        assert lam.min() >= 0 and lam.max() <= 1
        assert abs((lam < 0.5).double().mean() - 0.5) < 4 * (0.25 / n) ** 0.5
        below = float(beta.cdf(1e-6))
        for half in (lam[lam < 0.5], 1 - lam[lam > 0.5]):  # near 1 float32 is coarse: compare where it is not
            far = half[half > 1e-6].numpy()
            assert stats.kstest(far, lambda v: (beta.cdf(v) - below) / (0.5 - below)).pvalue > 1e-3
        assert abs((lam < 1e-6).double().mean() - below) <= 4 * (below / n) ** 0.5
        variance, fourth = 1 / (4 * (2 * alpha + 1)), float(beta.stats("k")) + 3
        assert abs(lam.mean() - 0.5) < 4 * (variance / n) ** 0.5
        assert abs(lam.var() / variance - 1) < 4 * ((fourth - 1) / n) ** 0.5

    def test_equals_the_formula_through_the_t_distribution(self) -> None:
        for alpha in (0.5, 1.0, 2.0):
            k = key(500)
            u, v = (uniform(k, 2, (2,)).double() + torch.tensor([2.0**-25, 0])).T
            t = (2 * alpha * (u ** (-1 / alpha) - 1)).sqrt() * torch.cos(2 * math.pi * v)
            want = (1 + t / (2 * alpha + t * t).sqrt()) / 2
            torch.testing.assert_close(symmetric_beta(k, 2, alpha).double(), want, atol=1e-6, rtol=1e-4)

    def test_is_1_where_an_image_is_not_mixed(self) -> None:
        n, p = 10_000, 0.3
        lam = mixing_weights(key(n), alpha=2.0, p=p)
        assert abs((lam < 1).double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
        chosen = lam < 1
        assert torch.equal(lam[chosen], symmetric_beta(key(n), 2, 2.0)[chosen])


class TestPartner:
    @settings(max_examples=40, deadline=None)
    @given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
    def test_is_the_next_on_one_cycle_through_all(self, n: int, seed: int) -> None:
        partner, seen, at = cycle(key(n, seed)).tolist(), [], 0
        for _ in range(n):
            seen.append(at)
            at = partner[at]
        assert sorted(seen) == list(range(n)) and at == 0

    def test_does_not_depend_on_the_order_of_the_rows(self) -> None:
        k, order = key(9), torch.tensor([5, 0, 3, 8, 1, 7, 4, 2, 6])
        assert torch.equal(order[cycle(k[order])], cycle(k)[order])

    def test_is_any_other_image_with_the_same_chance(self) -> None:
        n, batches = 6, 800
        counts = torch.zeros(n, n)
        for seed in range(batches):
            counts[torch.arange(n), cycle(key(n, seed))] += 1
        assert counts.diagonal().sum() == 0
        chance = 1 / (n - 1)
        off = counts[~torch.eye(n, dtype=torch.bool)] / batches
        assert ((off - chance).abs() < 4 * (chance * (1 - chance) / batches) ** 0.5).all()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_equals_the_slow_reference(n: int, scope: Scope, p: float) -> None:
    for seed in range(4):
        (x, y), k = images(n), key(n, seed)
        got_x, got_y = mix(x, y, k, alpha=0.7, p=p, scope=scope)
        order = sorted(range(n), key=lambda i, k=k: int(fold(k[i : i + 1], 1)))
        for place, i in enumerate(order):
            own = k[i : i + 1] if scope == "sample" else k[order[0]][None]
            other = order[(place + 1) % n]
            lam = float(symmetric_beta(own, 2, 0.7)) if uniform(own, 0, ()) < p else 1.0
            torch.testing.assert_close(got_x[i], lam * x[i] + (1 - lam) * x[other])
            want = torch.zeros(5)
            want[y[i]] += lam
            want[y[other]] += 1 - lam
            torch.testing.assert_close(got_y[i], want)


def test_labels_stay_probabilities_and_images_images() -> None:
    (x, y), k = images(200), key(200)
    mixed, soft = mix(x.round(), y, k)  # black and white pixels are the hardest
    assert mixed.min() >= 0 and mixed.max() <= 1 and soft.min() >= 0
    torch.testing.assert_close(soft.sum(1), torch.ones(200), atol=1e-6, rtol=0)


def test_soft_labels_are_mixed_as_they_are() -> None:
    x, _ = images(6)
    y = torch.softmax(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), 1)
    hard = torch.arange(6) % 5
    lam, k = mixing_weights(key(6), alpha=1.0, p=1.0)[:, None], key(6)
    torch.testing.assert_close(mix(x, y, k)[1], lam * y + (1 - lam) * y[cycle(k)])
    assert torch.equal(mix(x, F.one_hot(hard, 5).float(), k)[1], mix(x, hard, k)[1])


def test_nothing_happens_at_p_0_or_to_an_image_alone() -> None:
    for n, p in ((7, 0.0), (1, 1.0), (0, 1.0)):
        x, y = images(n)
        for scope in ("sample", "batch"):
            mixed, soft = mix(x, y, key(n), p=p, scope=scope)
            assert torch.equal(mixed, x) and torch.equal(soft, F.one_hot(y, 5).float())


def test_one_draw_serves_the_batch_if_asked_whatever_its_order() -> None:
    k, order = key(16), torch.randperm(16, generator=torch.Generator().manual_seed(0))
    own = scoped(k, "batch")
    assert len(own.unique()) == 1 and own[0] in k and torch.equal(scoped(k[order], "batch"), own)
    assert torch.equal(scoped(k, "sample"), k)
    shares = [len(mixing_weights(scoped(key(8, seed), "batch"), alpha=1.0, p=0.5).unique()) for seed in range(20)]
    assert shares == [1] * 20
    untouched = [
        mix(*images(8), key(8, seed), p=0.5, scope="batch")[1].max(1).values.eq(1).all() for seed in range(200)
    ]
    assert abs(sum(map(float, untouched)) / 200 - 0.5) < 4 * (0.25 / 200) ** 0.5


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


def test_lambda_is_distributed_as_in_torchvision() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        theirs = v2.MixUp(alpha=0.4, num_classes=2)
        x, y = torch.zeros(2, 1, 1, 1), torch.arange(2)
        lam = [float(theirs(x, y)[1][0, 0]) for _ in range(800)]
    ours = mixing_weights(key(800), alpha=0.4, p=1.0)
    assert stats.ks_2samp(lam, ours).pvalue > 1e-3


class Echo(nn.Module):
    """Shows what the net saw: its logits are the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize(("scope", "p"), [("sample", 0.5), ("batch", 0.9)])
def test_attach_mixes_in_the_objective_with_the_key_of_the_row_and_the_seed_of_the_caller(
    scope: Scope, p: float
) -> None:
    model, (x, y), k = Echo(), images(8), key(8, 5)
    a = Mixup(alpha=0.8, p=p, scope=scope).attach(model, example=x[:1], seed=7)
    assert a.sites == () and list(model.state_dict()) == []
    objective, own = Objective(model), fold(k, root(7, "mixup"))
    want, soft = mixup(x, y, alpha=0.8, p=p, scope=scope, num_classes=108, key=own)
    logits, losses = objective(x, y, k)
    assert torch.equal(logits, want.flatten(1)) and not torch.equal(want, x)
    torch.testing.assert_close(losses["task"], F.cross_entropy(want.flatten(1), soft))
    assert torch.equal(objective.eval()(x, y, k)[0], x.flatten(1))
    a.detach()
    assert attachments(model) == [] and torch.equal(objective.train()(x, y, k)[0], x.flatten(1))


def test_with_label_smoothing_the_mixed_label_is_smoothed() -> None:
    model, (x, y), k = Echo(), images(6), key(6)
    attach(model, [Mixup(), LabelSmoothing(smoothing=0.3)], example=x, seed=0)
    logits, losses = Objective(model)(x, y, k)
    _, soft = mixup(x, y, alpha=1.0, p=1.0, scope="sample", num_classes=108, key=fold(k, root(0, "mixup")))
    want = -((0.7 * soft + 0.3 / 108) * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["task"], want)


def test_with_cutmix_both_act_in_order() -> None:
    model, (x, y), k = Echo(), images(6), key(6)
    attach(model, [Mixup(p=0.5), CutMix(p=0.5)], example=x, seed=0)
    logits, losses = Objective(model)(x, y, k)
    first = mixup(x, y, alpha=1.0, p=0.5, scope="sample", num_classes=108, key=fold(k, root(0, "mixup")))
    mixed, soft = cutmix(*first, alpha=1.0, p=0.5, scope="sample", num_classes=108, key=fold(k, root(0, "cutmix")))
    assert torch.equal(logits, mixed.flatten(1))
    torch.testing.assert_close(losses["task"], F.cross_entropy(logits, soft))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))


def test_the_number_of_classes_is_read_without_a_trace() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 7))
    before, rng = {name: v.clone() for name, v in model.state_dict().items()}, torch.get_rng_state()
    assert class_count(model, images(2)[0], "mixup") == 7 and model.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_model_without_logits_or_a_compiled_one_is_an_error() -> None:
    x, _ = images(2)
    with pytest.raises(AttachError, match=r"mixup: the model must return logits \(n, k\); got \(1, 3, 6, 6\)"):
        Mixup().attach(nn.Identity(), example=x, seed=0)
    never = Echo()
    never.forward = None  # type: ignore[assignment]  # said before the first forward pass
    with pytest.raises(AttachError, match="OptimizedModule: attach and detach need the plain model"):
        Mixup().attach(torch.compile(never, backend="eager"), example=x, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.0}, r"Mixup: alpha must be above 0 and finite; got 0.0"),
        ({"alpha": math.nan}, r"Mixup: alpha must be above 0 and finite; got nan"),
        ({"alpha": math.inf}, r"Mixup: alpha must be above 0"),
        ({"p": 1.5}, r"Mixup: p must be in \[0, 1\]; got 1.5"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Mixup(**change)  # type: ignore[arg-type]


def test_an_unknown_scope_is_an_error() -> None:
    with pytest.raises(ParameterError, match=r"Mixup: scope must be one of sample, batch; got 'epoch'"):
        check_mixing("Mixup", alpha=1.0, p=1.0, scope="epoch")


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live
