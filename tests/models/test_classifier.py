"""A classifier carries its normalisation and its source through everything that happens to a model."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import v2

from hardy.config import build as from_json
from hardy.errors import ParameterError, ShapeError
from hardy.models import Classifier, Normalize, Source, build

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)


def source(**changes: object) -> Source:
    given = {"builder": "external", "name": "net", "num_classes": 2, "in_channels": 3, "mean": MEAN, "std": STD}
    return Source(**(given | changes))  # type: ignore[arg-type]


def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), source())


def test_normalisation_is_that_of_torchvision() -> None:
    x = torch.rand(4, 3, 5, 6)
    torch.testing.assert_close(Normalize(MEAN, STD)(x), v2.Normalize(MEAN, STD)(x))


def test_the_net_sees_normalised_images_and_its_logits_come_out() -> None:
    m, x = model(), torch.rand(4, 3, 5, 6)
    torch.testing.assert_close(m(x), m.net(v2.Normalize(MEAN, STD)(x)))
    assert getattr(m, m.inner) is m.net


def test_normalisation_adds_no_state_dict_keys() -> None:
    assert all(name.startswith("net.") for name in model().state_dict())


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copies_are_whole(copied: str) -> None:
    m, x = model(), torch.rand(2, 3, 5, 5)
    m.class_names = ("cat", "dog")
    twin = copy.deepcopy(m) if copied == "deepcopy" else pickle.loads(pickle.dumps(m))  # noqa: S301
    assert torch.equal(twin(x), m(x))
    assert twin.source == m.source and twin.class_names == ("cat", "dog")
    twin.normalize.mean += 1
    assert not torch.equal(twin(x), m(x))


def test_buffers_follow_the_model_to_another_dtype() -> None:
    x = torch.rand(2, 3, 5, 5).double()
    m = model().double()
    assert m.normalize.mean.dtype == m(x).dtype == torch.float64


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 4, 5, 5), (3, 5, 5), (2, 5, 5, 3)])
def test_another_number_of_channels_is_an_error_and_never_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"n c h w with c = 3; got \("):
        model()(torch.rand(shape))


def test_class_names_are_one_per_logit() -> None:
    m = model()
    assert m.class_names == ("0", "1")
    for wrong in (("a",), "ab", ("a", "b", "c")):
        with pytest.raises(ParameterError, match="class_names must be 2 names"):
            m.class_names = wrong
    assert m.class_names == ("0", "1")


def test_repr_is_one_line() -> None:
    assert repr(build("cifar_resnet8")) == (
        "Classifier(builtin:cifar_resnet8, 10 classes, 3 channels, "
        "Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.201)))"
    )


@given(
    classes=st.integers(1, 2000),
    stats=st.lists(st.tuples(st.floats(-2, 2), st.floats(1e-3, 3)), min_size=1, max_size=5),
    size=st.none() | st.integers(1, 512),
    args=st.dictionaries(st.text(max_size=5), st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=5)),
)
def test_source_survives_json(
    classes: int, stats: list[tuple[float, float]], size: int | None, args: dict[str, bool | int | float | str]
) -> None:
    mean, std = zip(*stats, strict=True)
    before = source(num_classes=classes, in_channels=len(stats), mean=mean, std=std, input_size=size, args=args)
    data = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(before))).items() if v is not None}
    after = from_json(Source, data)
    assert after == before and hash(after) == hash(before)
    assert [type(v) for v in after.args.values()] == [type(v) for v in args.values()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ({"num_classes": 10**9}, "num_classes must be at most 1000000; got 1000000000"),
        ({"in_channels": 1}, "mean must be one finite number for each of the 1 channels"),
        ({"mean": (0.0, 0.0, float("nan"))}, "mean must be one finite number"),
        ({"std": (1.0, 1.0, 0.0)}, "std must be above 0"),
        ({"std": (1.0,)}, "std must be one finite number"),
        ({"input_size": -1}, "input_size must be at least 1"),
    ],
)
def test_bad_sources_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        source(**changes)


@pytest.mark.slow
def test_compiled_logits_are_equal() -> None:
    code = (  # in a process without the type checks of these tests, which cannot be compiled
        "import torch; from hardy.models import build; m, x = build('cifar_resnet8').eval(), torch.rand(2, 3, 16, 16);"
        "torch.testing.assert_close(torch.compile(m, fullgraph=True)(x), m(x), atol=1e-5, rtol=1e-4)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)  # noqa: S603
