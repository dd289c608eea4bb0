"""Bounds on the margin: closed forms, loops, and attackers of every kind that never get below."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hardy.certificates import margin_bound, votes
from hardy.errors import AttachError, DataError, ParameterError
from hardy.methods import DefectiveConv

SLACK = 2e-4  # rounding, relative to the logits


def perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Linear(8, 4)
    )


def convs() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 2, stride=2, groups=2, bias=False),
        nn.ELU(),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
        nn.BatchNorm1d(4),
    )


def batch_norm_last() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4))


NETS: dict[str, Callable[[], nn.Sequential]] = {"perceptron": perceptron, "convs": convs, "one": batch_norm_last}


def make(name: str, seed: int = 0) -> nn.Sequential:
    """Build a net with random weights, biases and norms."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = NETS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for value in (module.weight.data, module.bias.data, module.running_mean):
                    value.normal_()  # type: ignore[union-attr]  # the mean is there
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


def images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=g), torch.randint(4, (n,), generator=g)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -math.inf).amax(dim=1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight": m.weight.data for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }


def attacked(model: nn.Module, x: Tensor, y: Tensor, *, eps: float, weight_eps: float, seed: int) -> Tensor:
    """Find small margins of one image by random, corner and gradient perturbations of pixels and weights together."""
    g = torch.Generator().manual_seed(seed)
    clean = {name: value.clone() for name, value in model.state_dict().items()}
    found = []
    for trial in range(9):
        corner = trial % 3 == 1
        delta = torch.rand(x.shape, generator=g) * 2 - 1
        moved = {name: torch.rand(value.shape, generator=g) * 2 - 1 for name, value in weights(model).items()}
        if corner:
            delta, moved = delta.sign(), {name: value.sign() for name, value in moved.items()}
        for _ in range(1 if trial % 3 < 2 else 4):
            leaf = (x + eps * delta).clamp(0, 1).requires_grad_()
            values = {name: (clean[name] + weight_eps * moved[name]).requires_grad_() for name in moved}
            margin = margins(torch.func.functional_call(model, values, (leaf,)), y)
            found.append(margin.detach())
            slopes = torch.autograd.grad(margin.sum(), [leaf, *values.values()])
            delta, moved = -slopes[0].sign(), {n: -s.sign() for n, s in zip(moved, slopes[1:], strict=True)}
    return torch.stack(found).amin(dim=0)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(NETS)),
    seed=st.integers(0, 1000),
    eps=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    weight_eps=st.sampled_from([0.0, 0.001, 0.03, 0.2]),
)
def test_no_attacker_gets_below_and_intervals_are_tighter(name: str, seed: int, eps: float, weight_eps: float) -> None:
    model, (x, y) = make(name, seed), images(3, seed)
    interval, norm = (margin_bound(model, x, y, eps=eps, weight_eps=weight_eps, form=f) for f in ("interval", "norm"))
    slack = SLACK * (1 + norm.abs())
    assert (norm <= interval + slack).all()
    for i in range(3):
        worst = attacked(model, x[i : i + 1], y[i : i + 1], eps=eps, weight_eps=weight_eps, seed=seed)
        assert (worst >= interval[i] - slack[i]).all()


@pytest.mark.parametrize("form", ["interval", "norm"])
@pytest.mark.parametrize("name", NETS)
def test_without_perturbations_it_is_the_margin(name: str, form: str) -> None:
    model, (x, y) = make(name), images(20)
    got = margin_bound(model, x, y, eps=0.0, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(got, margins(model(x), y).detach(), rtol=1e-4, atol=1e-5)
    assert not got.requires_grad


@pytest.mark.parametrize("weight_eps", [0.0, 0.02])
def test_is_reached_by_the_worst_corner_where_there_is_one_layer(weight_eps: float) -> None:
    model, (x, y), eps = make("one", 3), images(12), 0.15
    scale = model[2].weight.data / (model[2].running_var + 1e-5).sqrt()  # type: ignore[operator]
    a = model[1].weight.data * scale[:, None]
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    interval, norm, z = [], [], model(x).detach()
    for i, label in enumerate(y.tolist()):
        rest = [j for j in range(4) if j != label]
        loose = {j: weight_eps * float(scale[label].abs() + scale[j].abs()) for j in rest}
        offset = {j: float(z[i, label] - z[i, j] - (a[label] - a[j]) @ x[i].flatten()) for j in rest}
        ends = {j: ends_of((a[label] - a[j]).tolist(), low[i].tolist(), high[i].tolist(), loose[j])[0] for j in rest}
        interval.append(min(offset[j] + ends[j] for j in rest))
        norm.append(
            min(
                float(z[i, label] - z[i, j])
                - (float((a[label] - a[j]).abs().sum()) + 16 * loose[j]) * eps
                - loose[j] * float(x[i].sum())
                for j in rest
            )
        )
    got = margin_bound(model, x, y, eps=eps, weight_eps=weight_eps)
    torch.testing.assert_close(got, torch.tensor(interval), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        margin_bound(model, x, y, eps=eps, weight_eps=weight_eps, form="norm"), torch.tensor(norm), rtol=1e-4, atol=1e-4
    )
    if weight_eps == 0:  # and an attacker reaches it: the bound is exact
        reached = torch.stack([margins(model(corner(model, x, y, j, eps)), y) for j in range(4)]).amin(dim=0)
        torch.testing.assert_close(got, reached.detach(), rtol=1e-4, atol=1e-4)


def corner(model: nn.Module, x: Tensor, y: Tensor, other: int, eps: float) -> Tensor:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    gap = (logits.gather(1, y[:, None])[:, 0] - logits[:, other]).sum()
    return (x - eps * torch.autograd.grad(gap, leaf)[0].sign()).clamp(0, 1)


@pytest.mark.parametrize("weight_eps", [0.0, 0.05])
def test_intervals_against_the_four_corners_of_every_product(weight_eps: float) -> None:
    model, (x, y), eps = make("perceptron", 5), images(3, 5), 0.1
    want = []
    for image, label in zip(x, y.tolist(), strict=True):
        low = [max(0.0, float(v) - eps) for v in image.flatten()]
        high = [min(1.0, float(v) + eps) for v in image.flatten()]
        for layer, act in ((model[1], torch.relu), (model[3], torch.tanh)):
            ends = [ends_of(row, low, high, weight_eps) for row in layer.weight.tolist()]  # type: ignore[union-attr, operator]
            bias = [0.0] * len(ends) if layer.bias is None else layer.bias.tolist()  # type: ignore[union-attr, operator]
            low = [float(act(torch.tensor(a + b))) for (a, _), b in zip(ends, bias, strict=True)]
            high = [float(act(torch.tensor(a + b))) for (_, a), b in zip(ends, bias, strict=True)]
        w, b = model[5].weight.data, model[5].bias.data
        rows = [j for j in range(4) if j != label]
        gaps = [ends_of((w[label] - w[j]).tolist(), low, high, 2 * weight_eps)[0] for j in rows]
        want.append(min(gap + float(b[label] - b[j]) for gap, j in zip(gaps, rows, strict=True)))
    got = margin_bound(model, x, y, eps=eps, weight_eps=weight_eps)
    if weight_eps == 0:
        torch.testing.assert_close(got, torch.tensor(want), rtol=1e-4, atol=1e-5)
    else:  # equal but where weights and activations may both change sign
        assert (got <= torch.tensor(want) + 1e-5).all()
        loss, corners = (margins(model(x), y) - bound for bound in (got, torch.tensor(want)))
        assert (loss < 1.05 * corners).all()


def test_where_weights_and_activations_may_have_any_sign_no_corner_counts_twice() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False, eps=0.0), nn.Flatten(), nn.Linear(16, 4)).eval()
    model[0].running_mean[:] = 0.5  # type: ignore[index]
    model[2].weight.data.zero_()
    model[2].bias.data[:] = torch.tensor([1.0, 0, 0, 0])
    x, y = torch.full((1, 1, 4, 4), 0.5), torch.tensor([0])
    for form in ("interval", "norm"):  # activations in [-0.1, 0.1], differences of weights in [-0.02, 0.02]
        got = margin_bound(model, x, y, eps=0.1, weight_eps=0.01, form=form)  # type: ignore[arg-type]
        assert float(got) == pytest.approx(1 - 16 * 0.1 * 0.02, abs=1e-6)


def ends_of(row: list[float], low: list[float], high: list[float], loose: float) -> tuple[float, float]:
    least = most = 0.0
    for w, a, b in zip(row, low, high, strict=True):
        products = [(w + s * loose) * v for s in (-1, 1) for v in (a, b)]
        least, most = least + min(products), most + max(products)
    return least, most


def test_norm_form_of_a_convolution_written_as_loops() -> None:
    model, (x, y), eps, e = make("convs", 2), images(2, 2), 0.03, 0.01
    first, conv1, norm1, conv2, head, norm2 = (model[i] for i in (0, 1, 2, 5, 9, 10))

    def scale(norm: nn.Module) -> Tensor:
        return norm.weight.data / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator, union-attr, return-value]

    for image, label in zip(x, y.tolist(), strict=True):
        d = eps * float(scale(first).abs().max())
        z = first(image[None]).detach()
        for conv, s, groups in ((conv1, scale(norm1), 1), (conv2, torch.ones(6), 2)):
            pad = F.pad(z, (1, 1, 1, 1)) if conv is conv1 else z
            width, stride = conv.weight.shape[2], conv.stride[0]  # type: ignore[union-attr, index]
            steps = []
            for r, kernel in enumerate(conv.weight.data):  # type: ignore[arg-type]
                group = r // (len(s) // groups)
                taken = pad[0].chunk(groups)[group].abs()
                spots = range(0, taken.shape[1] - width + 1, stride)
                patch = max(float(taken[:, i : i + width, j : j + width].sum()) for i in spots for j in spots)
                k = float(s[r].abs())
                steps.append((k * float(kernel.abs().sum()) + e * k * kernel.numel()) * d + e * k * patch)
            d = max(steps)
            z = (model[1:5](z) if conv is conv1 else model[5:8](z)).detach()
        z, k = z.detach().flatten(), scale(norm2)
        w = head.weight.data * k[:, None]  # type: ignore[operator]
        logits = model(image[None])[0].detach()
        want = []
        for j in set(range(4)) - {label}:
            loose = e * float(k[label].abs() + k[j].abs())
            drop = (float((w[label] - w[j]).abs().sum()) + loose * 6) * d + loose * float(z.abs().sum())
            want.append(float(logits[label] - logits[j]) - drop)
        got = margin_bound(model, image[None], torch.tensor([label]), eps=eps, weight_eps=e, form="norm")
        assert float(got) == pytest.approx(min(want), rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(list(NETS)), st.sampled_from(["interval", "norm"]), st.floats(0, 0.3), st.floats(0, 0.3))
def test_larger_perturbations_give_lower_bounds(name: str, form: str, a: float, b: float) -> None:
    model, (x, y) = make(name), images(4)
    for field in ("eps", "weight_eps"):
        near, far = (
            margin_bound(model, x, y, form=form, **({"eps": 0.01, "weight_eps": 0.01} | {field: e}))  # type: ignore[arg-type]
            for e in sorted((a, b))
        )
        assert (far <= near + SLACK * (1 + near.abs())).all()


@pytest.mark.parametrize("form", ["interval", "norm"])
def test_an_image_does_not_depend_on_its_batch_and_nothing_is_left_behind(form: str) -> None:
    model, (x, y), rng = make("convs"), images(9), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    whole, parts = (margin_bound(model, x, y, eps=0.05, weight_eps=0.01, form=form, batch_size=b) for b in (9, 2))  # type: ignore[arg-type]
    torch.testing.assert_close(whole, parts)
    alone = margin_bound(model, x[4:5], y[4:5], eps=0.05, weight_eps=0.01, form=form)  # type: ignore[arg-type]
    torch.testing.assert_close(whole[4:5], alone)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())


def test_a_class_without_finite_logits_is_not_certified() -> None:
    model, (x, y) = make("perceptron"), images(3)
    model[5].bias.data[:] = math.inf
    with pytest.raises(AttachError, match="differ by up to nan"):
        margin_bound(model, x, y, eps=0.01)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"eps": -0.1}, "eps must be a finite number, at least 0; got -0.1"),
        ({"weight_eps": math.nan}, "weight_eps must be a finite number, at least 0; got nan"),
        ({"form": "box"}, 'form must be "interval" or "norm"; got \'box\''),
        ({"batch_size": 0}, "batch_size must be a finite number, at least 1; got 0"),
    ],
)
def test_numbers_out_of_range_are_errors(facts: dict[str, object], text: str) -> None:
    x, y = images(2)
    with pytest.raises(ParameterError, match=f"margin_bound: {text}"):
        margin_bound.__wrapped__(make("one"), x, y, **({"eps": 0.1} | facts))  # type: ignore[attr-defined]


def test_wrong_models_images_and_labels_are_errors() -> None:
    model, (x, y) = make("convs"), images(2)
    with pytest.raises(ParameterError, match="margin_bound: the model must be in eval mode"):
        margin_bound(make("convs").train(), x, y, eps=0.1)
    with pytest.raises(DataError, match=r"margin_bound: x must be images with pixels in \[0, 1\]"):
        margin_bound(model, x + 0.5, y, eps=0.1)
    with pytest.raises(DataError, match=r"labels must be in 0 .. 3"):
        margin_bound(model, x, y + 3, eps=0.1)
    with (
        DefectiveConv(sites=("all",)).attach(model, example=x, seed=0),
        pytest.raises(AttachError, match=r"margin_bound: .*DefectiveConv"),
    ):
        margin_bound(model.eval(), x, y, eps=0.1)


def test_an_image_that_the_net_treats_otherwise_is_refused() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make("perceptron")

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out if float(x.max()) < 0.9 else out.flip(1)

    x, y = torch.full((3, 1, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    assert len(margin_bound(Sometimes().eval(), x, y, eps=0.0)) == 3
    x[2] = 1.0
    with pytest.raises(AttachError, match="differ by up to"):
        margin_bound(Sometimes().eval(), x, y, eps=0.0, batch_size=2)


def test_a_part_in_train_mode_is_refused() -> None:
    model = make("convs")
    model[2].train()
    with pytest.raises(ParameterError, match="eval mode"):
        margin_bound(model, torch.rand(1, 1, 4, 4), torch.tensor([0]), eps=0.0)


def test_reduced_precision_is_off_inside_and_back_afterwards() -> None:
    seen = []

    class Asks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            out: Tensor = super().forward(x)
            return out

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        x, model = torch.rand(2, 1, 4, 4), Asks(*make("perceptron")).eval()
        margin_bound(model, x, torch.tensor([0, 1]), eps=0.1)
        votes(model, x, sigma=0.1, draws=3, key=torch.arange(2), batch_size=4)
        assert len(seen) > 3 and set(seen) == {("highest", False)}
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
