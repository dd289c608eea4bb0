"""What one forward pass did: calls of modules, and from which values each value was made."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardy.errors import AttachError
from hardy.tracing import Trace, trace


class Net(nn.Module):
    """In-place operations, a module called twice, a split, a value handed through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2, self.drop, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Identity(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv1(x)))
        y = self.drop(self.conv2(x))
        y += x
        y = self.relu(y)
        a, b = torch.split(y, 2, dim=1)
        out: Tensor = self.fc(torch.cat([a, F.silu(b, inplace=True)], 1).mean((2, 3)))
        return out


@pytest.fixture
def found() -> Trace:
    return trace(Net(), torch.rand(2, 3, 8, 8))


def test_calls_come_in_order_of_return_with_their_number(found: Trace) -> None:
    want = ["conv1", "bn", "relu", "conv2", "drop", "relu", "fc"]
    assert [call.name for call in found.calls] == want
    assert [call.number for call in found.calls] == [0, 0, 0, 0, 0, 1, 0]
    assert [found.site(call) for call in found.calls][2:6] == ["relu#0", "conv2", "drop", "relu#1"]
    assert [call.opened for call in found.calls] == list(range(7))


def test_an_in_place_operation_makes_a_new_value_of_the_same_tensor(found: Trace) -> None:
    conv1, bn, relu, conv2, drop, relu2, _ = found.calls
    assert bn.given == conv1.out and relu.given == bn.out and relu.out != bn.out
    assert conv2.given == relu.out
    added = found.nodes[relu2.given or 0]
    assert added.op in {"add_", "__iadd__"} and set(added.parents) == {drop.out, relu.out}
    assert relu2.out != relu2.given
    assert "silu" in [node.op for node in found.nodes]


def test_a_tensor_that_is_handed_through_is_one_value(found: Trace) -> None:
    calls = {call.name: call for call in found.calls}
    assert calls["drop"].out == calls["conv2"].out == calls["drop"].given


def test_only_the_first_image_is_run_and_the_output_is_known(found: Trace) -> None:
    assert found.shape(0) == (1, 3, 8, 8) and found.nodes[0].op == "input"
    assert found.output is not None and found.shape(found.output) == (1, 2)
    assert found.calls[-1].out == found.output


def test_ancestors_and_convolutions_on_the_way(found: Trace) -> None:
    conv1, _, _, conv2, _, _, fc = found.calls
    assert found.made(0, fc.out) and found.made(conv1.out, conv2.out) and not found.made(conv2.out, conv1.out)
    assert found.made(conv1.out, conv1.out)
    assert [found.nodes[c.out].convs for c in (conv1, conv2, fc)] == [1, 2, 2]
    splits = [i for i, node in enumerate(found.nodes) if node.op == "split"]
    assert len(splits) == 2 and not found.made(splits[0], splits[1])


def test_ancestors_equal_a_slow_walk(found: Trace) -> None:
    def walk(number: int) -> set[int]:
        return {number}.union(*(walk(parent) for parent in found.nodes[number].parents))

    for number in range(len(found.nodes)):
        assert {i for i in range(len(found.nodes)) if found.made(i, number)} == walk(number)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 3), Hidden()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.conv(x))
        return out


class Hidden(nn.Module):
    """Computes where operations on tensors cannot be seen, as scripted code does."""

    def forward(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x.sigmoid()


def test_what_a_hidden_operation_makes_is_made_from_what_its_module_was_given() -> None:
    found = trace(Scripted(), torch.rand(1, 3, 8, 8))
    conv, act = found.calls
    assert act.given == conv.out and found.made(conv.out, act.out) and found.output == act.out
    assert found.nodes[act.out].op == "act"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


def test_a_model_that_returns_no_tensor_has_no_output_value() -> None:
    found = trace(Pair(), torch.rand(1, 3, 4, 4))
    assert found.output is None and [call.name for call in found.calls] == ["conv"]


def test_leaves_no_hook_even_after_an_error_and_refuses_a_compiled_model() -> None:
    net = Net()
    with pytest.raises(RuntimeError):
        trace(net, torch.rand(1, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()) and net.training
    with pytest.raises(AttachError, match="plain model"):
        trace(torch.compile(net), torch.rand(1, 3, 8, 8))
