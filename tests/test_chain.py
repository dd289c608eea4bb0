"""A net is read as a chain of layers, or refused by the name of the layer that is none."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hardy
from hardy.chain import Monotone, Scaled, Weighted, read_chain
from hardy.errors import AttachError, ShapeError
from hardy.methods import DefectiveConv, LocalFeatureMasking

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """Functional where a hand-written net is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 2, padding=1, groups=1), nn.BatchNorm2d(4)
        self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = torch.tanh(self.fc1(x.view(len(x), -1)))
        out: Tensor = self.fc2(F.dropout(x, 0.5, self.training))
        return out


def chain(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(3))


def ready(model: nn.Module) -> nn.Module:
    """Give norms statistics of their own, and switch to eval mode."""
    g = torch.Generator().manual_seed(1)
    model.eval()(X)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            size = module.num_features
            module.running_mean = torch.randn(size, generator=g)
            module.running_var = torch.rand(size, generator=g) + 0.5
            if module.affine:
                module.weight.data = torch.randn(size, generator=g)
                module.bias.data = torch.randn(size, generator=g)
    return model


NETS = {
    "written": Written,
    "batch norms": lambda: chain(nn.BatchNorm2d(4), nn.ReLU(True), nn.BatchNorm2d(4, affine=False), nn.ELU(0.5)),
    "pooling": lambda: chain(nn.MaxPool2d(2, ceil_mode=True), nn.LeakyReLU(0.1), nn.ZeroPad2d(1), nn.AvgPool2d(2)),
    "grouped": lambda: chain(nn.Conv2d(4, 8, 3, groups=2, dilation=2, padding="same", bias=False), nn.Hardtanh()),
    "norm first": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
    "nested": lambda: nn.Sequential(chain(nn.Sequential(nn.ReLU(), nn.Identity(), nn.Dropout(0.5)))),
    "lenet": lambda: hardy.load_model("lenet5", num_classes=4, seed=0),
    "vgg": lambda: hardy.load_model("cifar_vgg16", num_classes=4, args={"width": 2}, seed=0),
}


@pytest.mark.parametrize("name", NETS)
def test_layers_one_after_the_other_are_the_net(name: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 32, 32) if name in {"lenet", "vgg"} else X
    model = NETS[name]()
    model.eval()(x)
    model = ready(model) if x is X else model
    body, head = read_chain(model, x, who="test").layers(model)
    z = x.clone()
    for layer in [*body, head]:
        z = layer(z)
    torch.testing.assert_close(z, model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(head.product(torch.zeros_like(z[:, :1]).expand(-1, head.fan_in), head.weight), 0 * z)


def test_norms_are_folded_into_the_weights_before_them_only() -> None:
    model = ready(NETS["batch norms"]())
    body, _ = read_chain(model, X, who="test").layers(model)
    assert [type(layer) for layer in body] == [Weighted, Monotone, Scaled, Monotone, Monotone]
    assert isinstance(body[0], Weighted) and not torch.equal(body[0].scale, torch.ones(4))
    model = ready(NETS["norm first"]())
    body, head = read_chain(model, X, who="test").layers(model)
    assert [type(layer) for layer in body] == [Scaled, Monotone] and len(head.scale) == 5
    classifier = hardy.load_model("lenet5", num_classes=4, seed=0)
    assert isinstance(read_chain(classifier, torch.rand(1, 3, 32, 32), who="test").layers(classifier)[0][0], Scaled)


def test_sums_are_those_of_the_inputs_that_an_output_reads() -> None:
    model = ready(NETS["grouped"]())
    body, head = read_chain(model, X, who="test").layers(model)
    grouped = next(layer for layer in body if isinstance(layer, Weighted) and layer.module.weight.shape[1] == 2)
    z = torch.rand(2, 4, 6, 6)
    want = F.conv2d(z, torch.ones(8, 2, 3, 3), padding="same", dilation=2, groups=2)
    torch.testing.assert_close(grouped.sums(z), want)
    assert grouped.fan_in == 18
    torch.testing.assert_close(head.sums(torch.ones(2, head.fan_in)), torch.full((2, 3), float(head.fan_in)))


def test_a_layer_leaves_its_input_alone_and_runs_no_hooks() -> None:
    module, x = nn.ReLU(inplace=True), torch.tensor([[-1.0, 1.0]])
    module.register_forward_hook(lambda _m, _args, out: 2 * out)
    assert Monotone(module)(x).tolist() == [[0, 1]] and x.tolist() == [[-1, 1]]


def test_reading_leaves_no_trace_and_gradients_reach_the_weights() -> None:
    model = Written().train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = read_chain(model, X, who="test")
    assert model.training and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert found.steps == ("conv", "bn", "relu()", "view()", "fc1", "tanh()", "fc2")
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301
    body, _ = found.layers(model)
    assert isinstance(body[0], Weighted)
    body[0].weight.square().sum().backward()
    assert model.conv.weight.grad is not None and model.bn.weight.grad is not None


def test_half_precision_becomes_single() -> None:
    model = read = ready(NETS["batch norms"]())
    found = read_chain(read, X, who="test")
    body, head = found.layers(model.bfloat16())
    assert head.weight.dtype == torch.float32 and head.bias.dtype == torch.float32
    assert isinstance(body[0], Weighted) and body[0].weight.dtype == torch.float32


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc((x + self.conv(x)).flatten(1))
        return out


class Loud(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.relu()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Residual(), "the operation 'add' is none of them"),
        (chain(nn.GroupNorm(2, 4)), r"1 \(GroupNorm\) is none of them"),
        (chain(nn.GELU()), r"1 \(GELU\)"),
        (chain(nn.ELU(2.0)), r"1 \(ELU\)"),
        (chain(nn.LeakyReLU(1.5)), r"1 \(LeakyReLU\)"),
        (chain(nn.AvgPool2d(2, divisor_override=1)), r"1 \(AvgPool2d\)"),
        (chain(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), r"1 \(Conv2d\)"),
        (chain(nn.BatchNorm2d(4, track_running_stats=False)), r"1 \(BatchNorm2d\)"),
        (chain(Loud()), r"1 \(Loud\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.ReLU()), "ends in a linear layer; it ends in '2'"),
        (nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), "ends in a linear layer; it ends in '1'"),
        (hardy.load_model("cifar_resnet8", num_classes=3), "is none of them"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(model: nn.Module, text: str) -> None:
    model.eval()(X)
    with pytest.raises(AttachError, match=f"me: the net must be a chain .*{text}"):
        read_chain(model, X, who="me")


def test_what_the_layers_do_not_show_is_found_out_by_the_logits() -> None:
    model = ready(chain(nn.ReLU()))
    read_chain(model, X, who="me")
    model[1].register_forward_hook(lambda _m, _args, out: 2 * out)
    with pytest.raises(AttachError, match=r"me: .*they give logits that differ by up to"):
        read_chain(model, X, who="me")


def test_methods_that_stay_are_refused_and_others_are_not_seen() -> None:
    model = ready(chain(nn.BatchNorm2d(4), nn.ReLU()))
    steps = read_chain(model, X, who="me").steps
    with LocalFeatureMasking().attach(model, example=X, seed=0):
        assert read_chain(model, X, who="me").steps == steps
    with (
        DefectiveConv().attach(model, example=X, seed=0),
        pytest.raises(AttachError, match=r"me: .*chain of its own layers; DefectiveConv changes what they return"),
    ):
        read_chain(model, X, who="me")


def test_other_things_than_images_and_nets_are_errors() -> None:
    with pytest.raises(ShapeError, match=r"me: x must be images n c h w; got \(3, 8, 8\)"):
        read_chain(chain(nn.ReLU()), X[0], who="me")
    with pytest.raises(AttachError, match="need the plain model"):
        read_chain(nn.DataParallel(ready(chain(nn.ReLU()))), X, who="me")
