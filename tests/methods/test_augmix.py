"""AugMix: each operation against Pillow and torchvision, the mixture against a slow loop, the loss against scipy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy import special, stats
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from hardy.errors import AttachError, ParameterError
from hardy.methods import augmix as module
from hardy.methods.augmix import CARD, COLOURS, WARPS, AugMix, augmix, jensen_shannon, warp, warp_matrix
from hardy.methods.mixup import symmetric_beta
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform
from hardy.surgery import attachments

LEVELS = [0.1, 1.7, 2.9, 5.0, 9.9]
KNOBS: dict[str, Any] = {"severity": 5.0, "width": 2, "depth": (2, 4), "alpha": 0.7}


def key(n: int, seed: int = 0) -> Tensor:
    return keys(root(seed, "test"), torch.arange(n))


def photos(n: int, c: int = 3, h: int = 20, w: int = 24) -> Tensor:
    """Smooth images of 256 levels, as photographs are."""
    small = torch.rand(n, c, 5, 5, generator=torch.Generator().manual_seed(n + c))
    return (255 * F.interpolate(small, size=(h, w), mode="bicubic").clamp(0, 1)).round() / 255


def view(
    x: Tensor,
    key: Tensor,
    *,
    severity: float = 3.0,
    width: int = 3,
    depth: tuple[int, int] = (1, 3),
    alpha: float = 1.0,
) -> Tensor:
    return augmix(x, severity=severity, width=width, depth=depth, alpha=alpha, key=key)


def pillow(x: Tensor, change: Callable[[Any], Any]) -> Tensor:
    """Apply an operation of Pillow to each image."""
    mode = "L" if x.shape[1] == 1 else "RGB"
    out = []
    for image in (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        array = np.asarray(change(Image.fromarray(image.squeeze(-1) if mode == "L" else image, mode=None)))
        out.append(torch.from_numpy(array.copy()).reshape(*x.shape[2:], x.shape[1]).permute(2, 0, 1))
    return torch.stack(out).float() / 255


class TestOperations:
    @pytest.mark.parametrize("c", [1, 3])
    @pytest.mark.parametrize("level", LEVELS)
    def test_colours_equal_those_of_pillow(self, c: int, level: float) -> None:
        x = 0.2 + 0.5 * photos(3, c)
        x = (255 * x).round() / 255
        want = {
            "autocontrast": pillow(x, ImageOps.autocontrast),
            "equalize": pillow(x, ImageOps.equalize),
            "posterize": pillow(x, lambda image: ImageOps.posterize(image, 4 - int(level * 4 / 10))),
            "solarize": pillow(x, lambda image: ImageOps.solarize(image, 256 - int(level * 256 / 10))),
        }
        assert list(want) == list(COLOURS)
        for name, change in COLOURS.items():
            got = change(x, torch.full((3,), level))
            slack = 1.01 / 255 if name == "autocontrast" else 1e-6  # that stays between the 256 levels here
            torch.testing.assert_close(got, want[name], atol=slack, rtol=0)

    def test_every_image_has_its_own_level(self) -> None:
        x, level = photos(5), torch.tensor(LEVELS)
        for change in COLOURS.values():
            whole = change(x, level)
            assert all(torch.equal(change(x[i : i + 1], level[i : i + 1])[0], whole[i]) for i in range(5))

    @pytest.mark.parametrize("level", [*LEVELS, -0.1, -2.9, -9.9])
    @pytest.mark.parametrize("name", WARPS)
    def test_warps_equal_those_of_pillow_and_torchvision(self, name: str, level: float) -> None:
        x, (h, w) = photos(2), (20, 24)
        move_x, move_y, shear = int(level * (w / 3) / 10), int(level * (h / 3) / 10), level * 0.3 / 10
        affine: dict[str, tuple[float, ...]] = {
            "shear_x": (1, shear, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, shear, 1, 0),
            "translate_x": (1, 0, move_x, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, move_y),
        }

        def change(image: Any) -> Any:
            bilinear = Image.Resampling.BILINEAR
            if name == "rotate":
                return image.rotate(int(level * 3), resample=bilinear)
            return image.transform((w, h), Image.Transform.AFFINE, affine[name], resample=bilinear)

        matrix = warp_matrix(torch.full((2,), WARPS.index(name)), torch.full((2,), level), (h, w))
        got, want = warp(x, matrix), pillow(x, change)
        inner = warp(torch.ones(2, 1, h, w), matrix) > 0.999  # Pillow repeats the border for half a pixel
        assert inner.float().mean() > 0.4
        assert ((got - want).abs() * inner).max() < 1.5 / 255
        degrees = [math.degrees(math.atan(shear)) if name == each else 0.0 for each in ("shear_x", "shear_y")]
        options: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR}
        if name == "rotate":
            theirs = tv.rotate(x, int(level * 3), **options)  # type: ignore[attr-defined]
        else:
            move = [-move_x * (name == "translate_x"), -move_y * (name == "translate_y")]
            theirs = tv.affine(  # type: ignore[attr-defined]
                x, angle=0.0, translate=move, scale=1.0, shear=degrees, center=[0.0, 0.0], **options
            )
        torch.testing.assert_close(got, theirs, atol=2e-4, rtol=0)

    def test_warps_of_level_0_change_nothing(self) -> None:
        x = photos(5)
        torch.testing.assert_close(
            warp(x, warp_matrix(torch.arange(5), torch.zeros(5), (20, 24))), x, atol=1e-5, rtol=0
        )


def reference(x: Tensor, key: Tensor, spec: AugMix) -> Tensor:
    """The algorithm of the paper, one operation on one image at a time."""
    names, out, (low, high) = [*COLOURS, *WARPS], [], spec.depth
    for i in range(len(x)):
        own, image, total = key[i : i + 1], x[i : i + 1], torch.zeros_like(x[i : i + 1])
        u = [uniform(own, counter, (spec.width, high))[0] for counter in (2, 3, 4)]
        gamma = special.gammaincinv(spec.alpha, uniform(own, 6, (spec.width,))[0].double().numpy() + 2.0**-25)
        for j in range(spec.width):
            chain = image
            for step in range(low + int(uniform(own, 1, (spec.width,))[0, j] * (high - low + 1))):
                name, level = names[int(u[0][j, step] * 9)], 0.1 + u[1][j, step] * (spec.severity - 0.1)
                if name in COLOURS:
                    chain = COLOURS[name](chain, level[None])
                else:
                    sign = 1 if u[2][j, step] < 0.5 else -1
                    kind = torch.tensor([WARPS.index(name)])
                    chain = warp(chain, warp_matrix(kind, sign * level[None], (x.shape[2], x.shape[3])))
            total = total + float(gamma[j] / gamma.sum()) * chain
        m = float(symmetric_beta(own, 5, spec.alpha))
        out.append((1 - m) * image + m * total)
    return torch.cat(out)


@pytest.mark.parametrize("spec", [AugMix(), AugMix(severity=10.0, width=1, depth=(1, 1), alpha=0.3), AugMix(**KNOBS)])
@pytest.mark.parametrize(("n", "c"), [(6, 3), (5, 1), (1, 3)])
def test_equals_the_slow_reference(spec: AugMix, n: int, c: int) -> None:
    x = photos(n, c, 9, 12)
    for seed in range(2):
        k = key(n, seed)
        got = augmix(x, severity=spec.severity, width=spec.width, depth=spec.depth, alpha=spec.alpha, key=k)
        torch.testing.assert_close(got, reference(x, k, spec), atol=1e-5, rtol=0)


def test_the_draws_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    n, alpha, seen = 4000, 0.6, dict.fromkeys(range(9), 0)
    sizes: list[Tensor] = []
    for number, name in enumerate(COLOURS):

        def change(x: Tensor, level: Tensor, number: int = number) -> Tensor:
            seen[number] += len(x)
            sizes.append(level)
            return x

        monkeypatch.setitem(COLOURS, name, change)

    def matrix(kind: Tensor, level: Tensor, _shape: tuple[int, int]) -> Tensor:
        for each in kind.tolist():
            seen[4 + each] += 1
        sizes.append(level)
        return torch.zeros(len(kind), 2, 3)

    monkeypatch.setattr(module, "warp_matrix", matrix)
    monkeypatch.setattr(module, "warp", lambda x, _matrix: x)
    view(torch.rand(n, 1, 1, 1), key(n), severity=5.0)
    total = sum(seen.values())
    assert abs(total - n * 3 * 2) < 4 * (n * 3 * 2 / 3) ** 0.5  # 1, 2 or 3 steps: mean 2, variance 2/3
    assert all(abs(count / total - 1 / 9) < 4 * (8 / 81 / total) ** 0.5 for count in seen.values())
    level = torch.cat(sizes)
    assert stats.kstest(level.abs().numpy(), stats.uniform(0.1, 4.9).cdf).pvalue > 1e-3
    signs = torch.cat([each for each in sizes if (each < 0).any()])
    assert abs((signs < 0).float().mean() - 0.5) < 4 * (0.25 / len(signs)) ** 0.5
    shares = module._dirichlet(key(n), 6, alpha, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(n))
    for j in range(3):
        assert stats.kstest(shares[:, j].numpy(), stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-3


def test_result_is_an_image_near_the_one_it_is_made_of() -> None:
    for c in (1, 3):
        x = photos(40, c)
        before, rng = x.clone(), torch.get_rng_state()
        y = view(x, key(40))
        assert y.min() >= 0 and y.max() <= 1 and y.shape == x.shape and (y != x).flatten(1).any(1).all()
        assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), rng)
    for colour in (0.0, 1.0):  # nothing leaves [0, 1], whatever the rounding
        y = view(torch.full((1000, 3, 4, 4), colour), key(1000), severity=10.0)
        assert y.min() >= 0 and y.max() <= 1
    assert view(photos(0), key(0)).shape == (0, 3, 20, 24)
    assert not view(photos(2).requires_grad_(), key(2)).requires_grad


def test_changes_an_image_about_as_much_as_torchvision_does() -> None:
    x = photos(200)
    theirs = v2.AugMix(severity=10, all_ops=False)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        out = torch.stack([theirs(each) for each in (255 * x).round().to(torch.uint8)]).float() / 255
    change = [(each - x).abs().mean((1, 2, 3)) for each in (out, view(x, key(200), severity=10.0))]
    # theirs takes 10 steps from 0 to the largest size, ours a uniform number: mean 0.5 and 0.505 of the largest
    error = (change[0].var() / 200 + change[1].var() / 200) ** 0.5
    assert abs(change[0].mean() - change[1].mean()) < 4 * error


def test_severity_makes_it_stronger() -> None:
    x = photos(300)
    change = [float((view(x, key(300), severity=severity) - x).abs().mean()) for severity in (1.0, 5.0, 10.0)]
    assert change == sorted(change) and change[2] > 1.2 * change[0]


def test_rows_do_not_depend_on_the_batch() -> None:
    x, k, order = photos(6), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    whole = view(x, k)
    assert torch.equal(view(x[order], k[order]), whole[order])
    assert torch.equal(torch.cat([view(x[i : i + 1], k[i : i + 1]) for i in range(6)]), whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_stay(dtype: torch.dtype) -> None:
    x = photos(4).to(dtype, memory_format=torch.channels_last)
    y = view(x, key(4))
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.float(), view(x.float().contiguous(), key(4)), atol=0.01, rtol=0)


def test_autocast_changes_no_pixel() -> None:
    x, k = photos(4), key(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = view(x, k)
    assert torch.equal(got, view(x, k))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_and_differs_by_rounding_only() -> None:
    x, k = photos(16), key(16)
    difference = (view(x.cuda(), k.cuda()).cpu() - view(x, k)).abs()
    assert difference.median() < 1e-5 and (difference > 1 / 255).float().mean() < 1e-3


class TestJensenShannon:
    def test_of_equal_answers_is_0_and_of_certain_different_ones_the_logarithm_of_their_number(self) -> None:
        logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
        for number in (2, 3):
            torch.testing.assert_close(jensen_shannon([logits] * number), torch.zeros(5), atol=1e-6, rtol=0)
            sure = [100 * F.one_hot(torch.full((5,), i), 7).float() for i in range(number)]
            torch.testing.assert_close(jensen_shannon(sure), torch.full((5,), math.log(number)))

    def test_of_two_equals_that_of_scipy(self) -> None:
        g = torch.Generator().manual_seed(0)
        a, b = (3 * torch.randn(20, 7, generator=g) for _ in range(2))
        want = [jensenshannon(p, q) ** 2 for p, q in zip(a.double().softmax(1), b.double().softmax(1), strict=True)]
        torch.testing.assert_close(jensen_shannon([a, b]).double(), torch.tensor(want), atol=1e-6, rtol=1e-5)

    def test_of_three_equals_the_entropy_of_the_mean_less_the_mean_entropy(self) -> None:
        g = torch.Generator().manual_seed(0)
        views = [3 * torch.randn(20, 7, generator=g) for _ in range(3)]
        p = np.stack([each.double().softmax(1).numpy() for each in views])
        want = stats.entropy(p.mean(0), axis=1) - stats.entropy(p, axis=2).mean(0)
        torch.testing.assert_close(jensen_shannon(views).double(), torch.from_numpy(want), atol=1e-6, rtol=1e-5)

    def test_gradients_are_finite_even_where_a_chance_is_0(self) -> None:
        a, b = torch.tensor([[200.0, 0.0, -200.0]]), torch.tensor([[-200.0, 0.0, 200.0]])
        a.requires_grad_()
        loss = jensen_shannon([a, b, a])
        (g,) = torch.autograd.grad(loss.sum(), a)
        assert loss.isfinite().all() and g.isfinite().all()
        soft = torch.randn(2, 3, requires_grad=True)
        (g,) = torch.autograd.grad(jensen_shannon([soft, torch.zeros(2, 3)]).sum(), soft)
        assert g.abs().max() > 1e-3


class Echo(nn.Module):
    """Shows what the net saw: its logits are the pixels, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.weight * x.flatten(1)


def test_attach_without_the_loss_trains_on_mixtures() -> None:
    model, x, k, y = Echo(), photos(5, 3, 8, 8), key(5, 5), torch.arange(5)
    a = AugMix(**KNOBS, jsd=0.0).attach(model, example=x[:1], seed=7)
    assert a.sites == () and list(model.state_dict()) == ["weight"]
    objective = Objective(model)
    want = augmix(x, **KNOBS, key=fold(k, root(7, "augmix")))
    logits, losses = objective(x, y, k)
    assert torch.equal(logits, 2 * want.flatten(1)) and not torch.equal(want, x) and list(losses) == ["task"]
    assert torch.equal(objective.eval()(x, y, k)[0], 2 * x.flatten(1))
    a.detach()
    assert attachments(model) == [] and torch.equal(objective.train()(x, y, k)[0], 2 * x.flatten(1))


def test_attach_with_the_loss_classifies_the_image_and_compares_three_answers() -> None:
    model, x, k, y = Echo(), photos(5, 3, 8, 8), key(5, 5), torch.arange(5)
    AugMix(**KNOBS, jsd=3.0).attach(model, example=x[:1], seed=7)
    objective = Objective(model)
    logits, losses = objective(x, y, k)
    own = fold(k, root(7, "augmix"))
    views = [x, *(augmix(x, **KNOBS, key=fold(own, number)) for number in (1, 2))]
    assert len(model.seen) == 3 and all(torch.equal(a, b) for a, b in zip(model.seen, views, strict=True))
    assert not torch.equal(views[1], views[2])
    torch.testing.assert_close(losses["task"], F.cross_entropy(2 * x.flatten(1), y))  # on the clean images
    want = 3 * jensen_shannon([2 * each.flatten(1) for each in views]).mean()
    torch.testing.assert_close(losses["jsd"], want)
    (g,) = torch.autograd.grad(losses["jsd"], model.weight)
    assert g > 0 and logits.shape == (5, 192)
    assert list(objective.eval()(x, y, k)[1]) == ["task"]


def test_other_channels_are_an_error_at_attach() -> None:
    with pytest.raises(AttachError, match="augmix: images must have 1 or 3 channels; got 4"):
        AugMix().attach(Echo(), example=torch.rand(1, 4, 8, 8), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"severity": 0.5}, r"AugMix: severity must be in \[1, 10\]; got 0.5"),
        ({"severity": 11.0}, r"AugMix: severity must be in \[1, 10\]; got 11.0"),
        ({"width": 0}, r"AugMix: width must be at least 1; got 0"),
        ({"depth": (0, 3)}, r"AugMix: depth must be 1 <= low <= high; got \(0, 3\)"),
        ({"depth": (3, 2)}, r"AugMix: depth must be"),
        ({"alpha": 0.0}, r"AugMix: alpha must be above 0 and finite; got 0.0"),
        ({"alpha": math.nan}, r"AugMix: alpha must be"),
        ({"jsd": -1.0}, r"AugMix: jsd must be at least 0 and finite; got -1.0"),
        ({"jsd": math.inf}, r"AugMix: jsd must be"),
    ],
)
def test_values_out_of_range_are_errors(change: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        AugMix(**change)  # type: ignore[arg-type]


def test_says_what_it_is() -> None:
    assert CARD.kind == "input" and not CARD.live
