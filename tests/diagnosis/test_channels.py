"""The part ``channels`` on a net whose channels are known by construction."""

import pytest
import torch
from torch import Tensor, nn

from hardy.diagnosis import Diagnosis, diagnose
from hardy.diagnosis.channels import channel_ranges


class Known(nn.Module):
    """Four classes read channels 0 to 3; channel 4 is always 0.25, channel 5 is far below its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 6, 1), nn.Linear(6, 4)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:4, :, 0, 0] = torch.eye(4)
            self.conv.weight[5] = 1.0
            self.conv.bias.copy_(torch.tensor([0, 0, 0, 0, 0.25, -100]))
            self.head.weight.zero_()
            self.head.weight[:, :4] = 3 * torch.eye(4)
            self.head.weight[:, 4:] = 1.0
            self.head.weight[1, 0] = -1.5
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4
    x = 0.1 + 0.2 * torch.rand(n, 4, 5, 5, generator=generator)
    x[torch.arange(n), y] += 0.6
    return x, y


def codes(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.code: finding.text for finding in diagnosis.part("channels").findings}


def test_the_map_of_a_known_net_is_its_head() -> None:
    x, y = images()
    diagnosis = diagnose(Known().eval(), x, y, parts=["channels"], top=5, class_names=tuple("abcd"))
    wanted = torch.zeros(4, 6)
    wanted[:, :4] = 3 * torch.eye(4)
    wanted[:, 4] = 1.0
    wanted[1, 0] = 1.5
    assert torch.allclose(diagnosis.correlation("conv"), wanted, atol=1e-5)
    part = diagnosis.part("channels")
    assert part.tensors["images"].tolist() == [5] * 4 and len(part.tensors["index"]) == 20
    assert part.tensors["channels"].tolist() == [6]
    assert part.tensors["carrying"].tolist() == [[2, 3, 2, 2]]
    assert part.score("channels that carry 90 %, conv").value == pytest.approx(9 / 4 / 6)
    assert part.score("effective channels of a").value == pytest.approx(float(part.tensors["effective"][0, 0]))
    assert part.passes == {"forward": 20 + 40, "backward": 20}


def test_the_positive_sign_leaves_out_what_lowers_the_score() -> None:
    x, y = images()
    found = diagnose(Known().eval(), x, y, parts=["channels"], top=5, sign="positive").correlation("conv")
    assert found[1, 0] == 0 and found[0, 0] == pytest.approx(3, rel=1e-5)


def test_dead_channels_are_told_apart() -> None:
    x, y = images()
    diagnosis = diagnose(Known().eval(), x, y, parts=["channels"])
    tensors = diagnosis.part("channels").tensors
    assert tensors["constant conv"].tolist() == [False] * 4 + [True, False]
    assert tensors["silent conv"].tolist() == [False] * 5 + [True]
    said = codes(diagnosis)
    assert "1 of 6 channels" in said["constant_channels"] and "1 of 6 channels" in said["silent_channels"]
    assert "no_dead_channels" not in said
    alive = Known().eval()
    with torch.no_grad():
        alive.conv.weight[4, 1] = 0.1
        alive.conv.bias[5] = 0.0
    diagnosis = diagnose(alive, x, y, parts=["channels"])
    assert "no_dead_channels" in codes(diagnosis) and "silent conv" not in diagnosis.part("channels").tensors


def test_ranges_are_those_of_all_images_and_places() -> None:
    net, (x, _) = Known().eval(), images()
    low, high = channel_ranges(net, x, ["conv"], batch_size=7)["conv"]
    out = net.conv(x).detach()
    assert torch.allclose(low, out.amin((0, 2, 3))) and torch.allclose(high, out.amax((0, 2, 3)))
    assert not hasattr(net, "_hardy")


def test_confused_classes_that_share_channels_are_named() -> None:
    net, (x, y) = Known().eval(), images(80)
    with torch.no_grad():  # class d reads the channel of c even more than its own
        net.head.weight[3] = torch.tensor([0, 0, 3.5, 3.2, 0, 0])
        net.head.bias[3] = -1.5
    y[2:26:4] = 3  # six images of c are called d
    diagnosis = diagnose(net, x, y, parts=["channels"], class_names=tuple("abcd"))
    part = diagnosis.part("channels")
    assert part.tensors["pairs"].tolist() == [[2, 3]]
    score = part.score("shared by c and d")
    assert score.value == 1 and score.details["confused images"] == 6
    assert "c and d, confused in 6 images, share 100%" in codes(diagnosis)["shared_channels"]
    assert "median pair 0%" in codes(diagnosis)["shared_channels"]


def test_a_class_without_a_right_image_has_no_map_and_is_named() -> None:
    net, (x, y) = Known().eval(), images()
    with torch.no_grad():
        net.head.bias[2] = -100.0
    diagnosis = diagnose(net, x, y, parts=["channels"], class_names=tuple("abcd"))
    assert diagnosis.correlation("conv")[2].isnan().all()
    assert "No map of c:" in codes(diagnosis)["no_map"]
    assert all("of c" not in score.label for score in diagnosis.part("channels").scores)


def test_the_maps_can_be_of_other_images() -> None:
    net, (x, y) = Known().eval(), images(80)
    facts = {"parts": ["channels"], "top": 3}
    split = diagnose(net, x[:40], y[:40], map_x=x[40:], map_y=y[40:], map_rows=torch.arange(40, 80), **facts)
    alone = diagnose(net, x[40:], y[40:], **facts)
    assert torch.equal(split.correlation("conv"), alone.correlation("conv"))
    assert torch.equal(split.part("channels").tensors["index"], alone.part("channels").tensors["index"])
    assert split.map_n == 40 and alone.map_n == 0
    assert any("paper takes training images" in note for note in alone.part("channels").notes)
