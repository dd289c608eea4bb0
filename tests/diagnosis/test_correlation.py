"""Maps of class and channel against the naive loop over images and layers, on nets that make that hard."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hardy
from hardy import seeding
from hardy.diagnosis import class_channel_map, conv_sites, correlations, image_correlations, sure_images
from hardy.errors import CallError, DataError, LayerNotFoundError, ParameterError


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))).mean((2, 3)))


class InPlace(nn.Module):
    """An activation that works in place right behind a convolution, twice, and a norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3), nn.Linear(6, 4)
        self.relu, self.norm = nn.ReLU(inplace=True), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        return self.head(self.relu(self.norm(self.relu(self.b(x)))).mean((2, 3)))


class Residual(nn.Module):
    """Branches that begin side by side, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.short = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x), inplace=True))
        y += self.short(x)
        return self.head(F.relu(y, inplace=True).flatten(2).amax(2))


class Shared(nn.Module):
    """One module, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice, self.head = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.twice(F.silu(self.a(x))))
        return self.head(F.silu(self.twice(x)).mean((2, 3)))


class Concat(nn.Module):
    """Parts of a concatenation that are written to in place, and one that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(7, 4, 1)
        self.lost, self.head = nn.Conv2d(3, 2, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.lost(x)
        y = self.a(x)
        z = torch.cat([y, self.b(F.relu(y))], dim=1)
        z[:, :3].mul_(0.5)
        return self.head(F.elu(self.c(z), inplace=True).mean((2, 3)))


NETS = (Plain, InPlace, Residual, Shared, Concat)


def case(kind: Callable[[], nn.Module], n: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    net = kind().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    return net, torch.rand(n, 3, 7, 7, dtype=torch.float64), torch.arange(n) % 4


def naive(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    site: str,
    *,
    sign: str = "absolute",
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One image at a time: the output of one call becomes a leaf, and the gradient by it is summed."""
    name, _, number = site.partition("#")
    rows = []
    for i in range(len(x)):
        kept, count = [], [0]

        def hook(
            _: nn.Module, __: object, out: Tensor, kept: list[Tensor] = kept, count: list[int] = count, i: int = i
        ) -> Tensor:
            count[0] += 1
            if count[0] - 1 != int(number or 0):
                return out
            kept.append((out if change is None else out + change(out)[i : i + 1]).detach().requires_grad_())
            return kept[0] * 1

        handle = net.get_submodule(name).register_forward_hook(hook)
        z = net(x[i : i + 1])[0, y[i]]
        handle.remove()
        (g,) = torch.autograd.grad(z, kept[0], allow_unused=True) if z.requires_grad else (None,)
        g = torch.zeros_like(kept[0]) if g is None else g
        rows.append((g.abs() if sign == "absolute" else g.relu()).sum((0, 2, 3)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("sign", ["absolute", "positive"])
def test_all_layers_at_once_agree_with_one_image_and_layer_at_a_time(kind: type[nn.Module], sign: str) -> None:
    net, x, y = case(kind)
    sites = conv_sites(net, x)
    found = image_correlations(net, x, y, layers=sites, sign=sign, batch_size=2)
    assert tuple(found) == sites and sum(float(v.sum()) for v in found.values()) > 0
    for site in sites:
        assert torch.allclose(found[site], naive(net, x, y, site, sign=sign), rtol=1e-9, atol=1e-12), site


def test_sites_are_named_by_call_and_in_the_order_of_the_pass() -> None:
    net, x, _ = case(Shared)
    assert conv_sites(net, x) == ("a", "twice#0", "twice#1")
    assert conv_sites(net, x, ["twice#1", "a"]) == ("a", "twice#1")
    net, x, _ = case(Residual)
    assert conv_sites(net, x) == ("a", "b", "short")
    assert conv_sites(net, x, ["b@input"]) == ("b@input",)
    assert conv_sites(net, x, ["?", "head"]) == ("a", "b", "head")


def test_what_a_layer_takes_is_a_site_too() -> None:
    net, x, y = case(Plain)
    found = image_correlations(net, x, y, layers=["b@input"])["b@input"]
    a = torch.tanh(net.get_submodule("a")(x)).detach().requires_grad_()
    z = net.get_submodule("head")(torch.tanh(net.get_submodule("b")(a)).mean((2, 3)))
    (g,) = torch.autograd.grad(z.gather(1, y[:, None]).sum(), a)
    assert torch.allclose(found, g.abs().sum((2, 3)))


def test_a_layer_alone_has_the_same_map_as_among_all() -> None:
    net, x, y = case(Residual)
    together = image_correlations(net, x, y, layers=["*"])
    for site in ("a", "b", "short"):
        assert torch.allclose(image_correlations(net, x, y, layers=[site])[site], together[site], rtol=1e-12)


@pytest.mark.parametrize("kind", [Plain, InPlace, Shared])
def test_noise_goes_to_one_layer_at_a_time_as_equation_4_says(kind: type[nn.Module]) -> None:
    net, x, y = case(kind)
    rows = torch.tensor([7, 3, 9, 100, 4])
    sites = conv_sites(net, x)
    found = image_correlations(net, x, y, layers=sites, draws=3, sigma=0.3, rows=rows, seed=5, batch_size=2)
    for site in sites:
        root = seeding.root(5, f"correlations:{site}")

        def noise(out: Tensor, draw: int, root: int = root) -> Tensor:
            return 0.3 * seeding.normal(seeding.keys(root, rows), draw, out.shape[1:]).double()

        slow = sum(naive(net, x, y, site, change=lambda out, j=j, noise=noise: noise(out, j)) for j in range(3)) / 3
        assert torch.allclose(found[site], slow, rtol=1e-9), site
    plain = image_correlations(net, x, y, layers=sites)
    assert all(not torch.allclose(found[s], plain[s]) for s in sites if kind is not InPlace)


def test_joint_noise_of_one_layer_is_that_of_equation_4_and_of_two_is_not() -> None:
    net, x, y = case(Plain)
    facts = {"draws": 2, "sigma": 0.5, "seed": 3}
    alone = image_correlations(net, x, y, layers=["a"], **facts)
    assert torch.equal(alone["a"], image_correlations(net, x, y, layers=["a"], joint=True, **facts)["a"])
    both = image_correlations(net, x, y, layers=["a", "b"], joint=True, **facts)
    assert not torch.allclose(both["a"], alone["a"])


def test_an_image_has_the_same_numbers_in_any_company() -> None:
    net, x, y = case(InPlace)
    rows, order = torch.arange(5) + 10, torch.tensor([3, 0, 4, 1, 2])
    facts = {"layers": ["a", "b"], "draws": 2, "joint": True}
    whole = image_correlations(net, x, y, rows=rows, batch_size=5, **facts)
    mixed = image_correlations(net, x[order], y[order], rows=rows[order], batch_size=2, **facts)
    for site in ("a", "b"):
        assert torch.allclose(whole[site][order], mixed[site], rtol=1e-12)


def test_maps_are_means_over_the_images_of_a_class_and_nan_without() -> None:
    net, x, _ = case(Plain)
    y = torch.tensor([0, 2, 2, 0, 2])
    found = correlations(net, x, y, layers=["a", "b"], num_classes=4, batch_size=2)
    each = image_correlations(net, x, y, layers=["a", "b"])
    assert found.images.tolist() == [2, 0, 3, 0] and found.passes == {"forward": 5, "backward": 5}
    for site in ("a", "b"):
        for c in (0, 2):
            assert torch.allclose(found.maps[site][c].double(), each[site][y == c].mean(0), rtol=1e-6)
        assert found.maps[site][1].isnan().all() and found.maps[site].dtype == torch.float32


def test_the_map_of_a_class_is_of_the_images_of_which_the_net_is_surest() -> None:
    net, x, _ = case(Plain, n=40)
    with torch.no_grad():
        z = net(x)
    y = torch.where(torch.arange(40) % 3 == 0, (z.argmax(1) + 1) % 4, z.argmax(1))
    found = class_channel_map(net, x, y, layers=["b"], top=4)
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    wanted = []
    for c in range(4):
        mine = [i for i in range(40) if y[i] == c and z[i].argmax() == c]
        wanted += sorted(mine, key=lambda i: -float(p[i]))[:4]
    assert found.index.tolist() == sorted(wanted) and int(found.images.sum()) == len(wanted)
    assert torch.allclose(
        found.maps["b"], correlations(net, x[found.index], y[found.index], layers=["b"], num_classes=4).maps["b"],
        equal_nan=True,
    )  # fmt: skip
    same = class_channel_map(net, x, y, layers=["b"], top=4, logits=z)
    assert torch.equal(same.index, found.index) and found.passes["forward"] == same.passes["forward"] + 40


def test_sure_images_are_told_apart_where_probabilities_are_all_one() -> None:
    z = torch.tensor([[90.0, 0], [200, 0], [100, 0], [0, 80], [5, 5], [torch.nan, 0]])
    y = torch.tensor([0, 0, 0, 1, 0, 0])
    assert z.softmax(1)[:3, 0].tolist() == [1, 1, 1]
    assert sure_images(z, y, top=2).tolist() == [1, 2, 3]
    with pytest.raises(ParameterError, match="top"):
        sure_images(z, y, top=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**20))
def test_sure_images_property(n: int, k: int, top: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=generator)
    y = torch.randint(k, (n,), generator=generator)
    found = sure_images(z, y, top=top).tolist()
    assert found == sorted(set(found)) and all(int(z[i].argmax()) == int(y[i]) for i in found)
    for c in range(k):
        right = [i for i in range(n) if y[i] == c and int(z[i].argmax()) == c]
        assert len([i for i in found if y[i] == c]) == min(top, len(right))


def test_the_net_is_left_as_it_was() -> None:
    net, x, y = case(InPlace)
    next(net.parameters()).requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = copy.deepcopy(net)
    given_x, state = x.clone(), torch.get_rng_state()
    image_correlations(net, x, y, layers=["*"], draws=1)
    assert torch.equal(x, given_x) and torch.equal(state, torch.get_rng_state())
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert net.head.weight.grad.eq(1).all() and net.a.weight.grad is None
    assert not hasattr(net, "_hardy") and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_net_that_raises_is_left_as_it_was_too() -> None:
    net, x, y = case(Plain)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    sites, handle = conv_sites(net, x), net.head.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        image_correlations(net, x, y, layers=sites)
    handle.remove()
    assert all(p.requires_grad for p in net.parameters()) and not hasattr(net, "_hardy")


def test_it_works_inside_no_grad_and_inference_mode() -> None:
    net, x, y = case(Plain)
    wanted = image_correlations(net, x, y, layers=["a"])["a"]
    with torch.no_grad():
        assert torch.equal(image_correlations(net, x, y, layers=["a"])["a"], wanted)
    with torch.inference_mode():
        assert torch.equal(image_correlations(net, x, y, layers=["a"])["a"], wanted)


def test_gradients_do_not_pile_up() -> None:
    """What is kept of a batch is one number per image and channel: no gradient map outlives its hook."""
    net, x, y = case(Plain, n=4)
    sizes: list[int] = []
    work = torch.Tensor.register_hook

    def counted(self: Tensor, hook: Callable[[Tensor], None]) -> object:
        def watched(g: Tensor) -> None:
            hook(g)
            sizes.append(hook.__self__.found.numel())  # type: ignore[attr-defined]  # a bound method

        return work(self, watched)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "register_hook", counted)
        image_correlations(net, x, y, layers=["a", "b"])
    assert sorted(sizes) == [4 * 5, 4 * 6]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers": ["nothing"]}, LayerNotFoundError, "nothing"),
        ({"layers": ["a#3"]}, CallError, "a must be called"),
        ({"layers": "a"}, ParameterError, "list"),
        ({"draws": -1}, ParameterError, "draws"),
        ({"sigma": -0.1}, ParameterError, "sigma"),
        ({"batch_size": 0}, ParameterError, "batch_size"),
        ({"y": torch.tensor([0, 1, 2, 3, 4])}, DataError, "labels"),
        ({"x": torch.full((5, 3, 7, 7), 2.0).double()}, DataError, "pixels"),
    ],
)
def test_bad_questions_are_refused(change: dict[str, object], error: type[Exception], words: str) -> None:
    net, x, y = case(Plain)
    with pytest.raises(error, match=words):
        image_correlations(**({"model": net, "x": x, "y": y, "layers": ["a"]} | change))
    assert not hasattr(net, "_hardy")


def test_train_mode_is_refused_and_not_flipped() -> None:
    net, x, y = case(InPlace)
    net.train()
    with pytest.raises(ParameterError, match=r"eval\(\)"):
        correlations(net, x, y, layers=["a"], num_classes=4)
    assert net.training


def test_no_image_that_is_right_is_said() -> None:
    net, x, _ = case(Plain)
    with torch.no_grad():
        y = (net(x).argmax(1) + 1) % 4
    found = class_channel_map(net, x, y, layers=["a"])
    assert found.maps["a"].isnan().all() and found.maps["a"].shape == (4, 5) and not len(found.index)


def test_no_pass_is_larger_than_a_batch() -> None:
    net, x, y = case(Plain, n=7)
    sizes: list[int] = []
    handle = net.register_forward_pre_hook(lambda _m, given_: sizes.append(len(given_[0])))
    class_channel_map(net, x, y, batch_size=2, top=9)
    class_channel_map(net, x, y, batch_size=2, draws=2)
    handle.remove()
    assert max(sizes) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cifar_resnet20", "cifar_preact_resnet18", "cifar_vgg16", "cifar_densenet121", "cifar_senet18", "cifar_googlenet"],
)
def test_real_nets_agree_with_the_naive_loop(name: str) -> None:
    torch.manual_seed(0)
    net = hardy.load_model(name, num_classes=10).double().eval()
    x, y = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.tensor([1, 7])
    sites = conv_sites(net, x)
    found = image_correlations(net, x, y, layers=sites)
    for site in {sites[0], sites[len(sites) // 3], sites[len(sites) // 2], sites[-2], sites[-1]}:
        assert torch.allclose(found[site], naive(net, x, y, site), rtol=1e-6, atol=1e-12), site
