"""A site names modules of the model itself, and a wrong one is answered with the closest right ones."""

import pytest
import torch
from torch import nn

from hardy.errors import AttachError, CallError, LayerNotFoundError
from hardy.sites import check_plain, module_names, resolve


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, 2)


class Outer(nn.Module):
    """Holds the net in a child, and says so."""

    inner = "net"

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.net = nn.Identity(), Inner()


def test_names_are_in_model_order_and_leave_out_what_is_attached() -> None:
    net = Inner()
    want = ["layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "layer2.1", "fc"]
    assert module_names(net) == want
    net.add_module("_hardy", nn.ModuleDict({"lfm": nn.Identity()}))
    net.layer1.add_module("_hardy", nn.Identity())
    assert module_names(net) == want


@pytest.mark.parametrize(
    ("sites", "want"),
    [
        (["fc"], {"fc": ()}),
        (["layer?.0"], {"layer1.0": (), "layer2.0": ()}),
        (["layer2.1#1", "layer1.*#0", "layer2.1#0"], {"layer1.0": (0,), "layer1.1": (0,), "layer2.1": (0, 1)}),
        (["fc#3", "fc"], {"fc": ()}),
        (["*.1#10", "layer1.1#2"], {"layer1.1": (2, 10), "layer2.1": (10,)}),
        ([], {}),
    ],
)
def test_patterns_become_names_and_calls(sites: list[str], want: dict[str, tuple[int, ...]]) -> None:
    found = resolve(Inner(), sites)
    assert found == want
    assert list(found) == [n for n in module_names(Inner()) if n in want]


def test_names_may_be_relative_to_the_net_that_a_model_holds() -> None:
    net = Outer()
    assert resolve(net, ["layer1.0#2"]) == resolve(net, ["net.layer1.0#2"]) == {"net.layer1.0": (2,)}
    assert resolve(net, ["normalize", "fc"]) == {"normalize": (), "net.fc": ()}
    assert list(resolve(net, ["layer?.0"])) == ["net.layer1.0", "net.layer2.0"]
    with pytest.raises(LayerNotFoundError):
        resolve(net.net, ["net.fc"])


def test_a_site_that_matches_nothing_is_an_error_with_the_closest_names() -> None:
    with pytest.raises(LayerNotFoundError, match=r"Inner has no layer 'layr1.0' \(closest: layer1.0"):
        resolve(Inner(), ["layr1.0"])
    with pytest.raises(LayerNotFoundError, match=r"Outer has no layer 'layr1.0' \(closest: layer1.0"):
        resolve(Outer(), ["layr1.0"])
    with pytest.raises(LayerNotFoundError, match=r"no layer 'zzzzz#1' \(run `hardy layers MODEL` to list them\)"):
        resolve(Inner(), ["fc", "zzzzz#1"])
    with pytest.raises(LayerNotFoundError, match="''"):
        resolve(Inner(), [""])


@pytest.mark.parametrize("call", ["", "last", "-1", "1.5", "0#1"])
def test_a_call_is_a_number(call: str) -> None:
    with pytest.raises(CallError, match="a call is a number from 0, as in 'fc#0'"):
        resolve(Inner(), [f"fc#{call}"])


def test_a_wrapped_part_is_refused_as_the_whole_is() -> None:
    net = nn.Sequential(torch.compile(nn.ReLU(), backend="eager"))
    with pytest.raises(AttachError, match="OptimizedModule"):
        check_plain(net)
    with pytest.raises(AttachError, match=r"DataParallel: attach and detach need the plain model. Use `.module`"):
        resolve(nn.DataParallel(Inner()), ["*"])
    check_plain(Inner())


@pytest.mark.parametrize(
    ("sites", "want"),
    [
        (["layer2@input"], {"layer2@input": ()}),
        (["layer?.0@input#1"], {"layer1.0@input": (1,), "layer2.0@input": (1,)}),
        (["fc", "fc@input"], {"fc@input": (), "fc": ()}),  # what enters comes first
    ],
)
def test_what_enters_a_module_is_a_site_as_well(sites: list[str], want: dict[str, tuple[int, ...]]) -> None:
    found = resolve(Inner(), sites)
    assert found == want and list(found) == list(want)
    assert list(resolve(Outer(), sites)) == [f"net.{name}" for name in want]


@pytest.mark.parametrize("site", ["fc@output", "fc@", "fc@inputs", "fc@input@input"])
def test_behind_the_at_sign_only_input_is_possible(site: str) -> None:
    with pytest.raises(CallError, match="only 'input' is possible, as in 'fc@input'"):
        resolve(Inner(), [site])
