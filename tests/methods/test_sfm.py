"""Every pixel moves by at most eps, in [0, 1], each image by its own key."""

import math

import pytest
import torch
from torch import Tensor, nn

from hardy.errors import ParameterError
from hardy.methods.sfm import CARD, PRESETS, SpatialFeatureModification, spatial_feature_modification
from hardy.objective import Objective
from hardy.seeding import fold, keys, root, uniform


def key(n: int) -> Tensor:
    return keys(root(0, "test"), torch.arange(n))


def reference(x: Tensor, eps: float, noise: str, key: Tensor) -> Tensor:
    out = x.clone()
    for i, row in enumerate(x):
        u = uniform(key[i : i + 1], 0, row.shape)[0].flatten().tolist()
        for j, value in enumerate(row.flatten().tolist()):
            delta = (eps if u[j] >= 0.5 else -eps) if noise == "sign" else (2 * u[j] - 1) * eps
            out[i].view(-1)[j] = min(1.0, max(0.0, value + delta))
    return out


@pytest.mark.parametrize("noise", ["sign", "uniform"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 1, 1), (0, 3, 2, 2)])
def test_equals_the_slow_reference(noise: str, shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    got = spatial_feature_modification(x, eps=0.1, noise=noise, key=key(shape[0]))  # type: ignore[arg-type]  # checked
    torch.testing.assert_close(got, reference(x, 0.1, noise, key(shape[0])))


def test_moments_are_those_of_the_distributions() -> None:
    n, eps = 200, 0.2
    x = torch.full((n, 3, 8, 8), 0.5)
    for noise, second in (("sign", eps**2), ("uniform", eps**2 / 3)):
        delta = (spatial_feature_modification(x, eps=eps, noise=noise, key=key(n)) - 0.5).double()  # type: ignore[arg-type]
        assert abs(delta.mean()) < 4 * (second / delta.numel()) ** 0.5
        assert abs(delta.square().mean() / second - 1) < 4 / delta.numel() ** 0.5
        assert delta.abs().max() <= eps + 1e-7
        values = delta[0, 0].flatten()
        assert (len(values.unique()) == 2) is (noise == "sign")


def test_a_row_depends_on_its_key_alone_and_edges_are_kept() -> None:
    x, k, order = torch.rand(6, 3, 4, 4), key(6), torch.tensor([5, 0, 3, 1, 4, 2])
    whole = spatial_feature_modification(x, eps=0.3, noise="sign", key=k)
    assert torch.equal(spatial_feature_modification(x[order], eps=0.3, noise="sign", key=k[order]), whole[order])
    assert whole.min() >= 0 and whole.max() <= 1
    assert not torch.equal(whole, spatial_feature_modification(x, eps=0.3, noise="sign", key=k + 1))


def test_the_objective_feeds_the_noisy_images() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    x, y, k = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]), key(4)
    a = PRESETS["paper"].attach(model, example=x, seed=5)
    logits, losses = Objective(model)(x, y, k)
    noisy = spatial_feature_modification(x, eps=8 / 255, noise="uniform", key=fold(k, a.insert.root))
    torch.testing.assert_close(logits, model(noisy))
    assert list(losses) == ["task"] and not a.sites


@pytest.mark.parametrize(("fields", "says"), [({"eps": -0.1}, "eps"), ({"eps": math.nan}, "eps")])
def test_what_is_out_of_range_is_an_error(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ParameterError, match=f"SpatialFeatureModification: {says} must be"):
        SpatialFeatureModification(**fields)  # type: ignore[arg-type]  # on purpose
    assert CARD.kind == "input" and PRESETS["repo"] == SpatialFeatureModification(eps=8 / 255, noise="sign")
