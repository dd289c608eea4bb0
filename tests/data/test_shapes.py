"""Generated shapes: what a row shows, how textures follow classes, and areas in closed form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardy import seeding
from hardy.data import load_data, shapes_conflict
from hardy.data.drawing import SHAPES, TEXTURES, _inside, _place, draw
from hardy.data.shapes import ShapesRecipe, read_recipe
from hardy.errors import DataError, ParameterError

SMALL = "shapes:n=64,n_test=40"


def keys(n: int, purpose: str = "test") -> Tensor:
    return seeding.keys(seeding.root(0, purpose), torch.arange(n))


def middle(size: int, n: int = 1) -> tuple[Tensor, Tensor]:
    """Give pixel centres of the square [-1, 1]."""
    at = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return x.expand(n, size, size), y.expand(n, size, size)


def tied(spec: str) -> Tensor:
    """Say of every training image whether it is the one that the texture of its class would give."""
    data = load_data(spec, split="train", val_fraction=0.0, size=16)
    return (data.x == draw(data.y, data.y, keys(len(data), "shapes, train"), size=16)).flatten(1).all(dim=1)


def test_the_parts_are_what_is_documented() -> None:
    train, test = (load_data("shapes", split=part, val_fraction=0.0) for part in ("train", "test"))
    assert train.x.shape == (5000, 3, 32, 32) and test.x.shape == (1000, 3, 32, 32)
    assert train.class_names == tuple(SHAPES) == test.class_names and train.num_classes == 8
    assert torch.bincount(train.y).tolist() == [625] * 8
    assert load_data("shapes", size=48, limit=5).shape == (3, 48, 48)
    assert not torch.equal(train.x[:1000], test.x)
    assert len({image.numpy().tobytes() for image in train.x}) == 5000  # no image comes twice


def test_a_row_is_its_own_whatever_surrounds_it() -> None:
    whole, more = (load_data(f"shapes:n_test={n}") for n in (40, 50))
    assert torch.equal(more.x[:40], whole.x)
    part = load_data("shapes:n_test=40", limit=7)
    assert torch.equal(part.x, whole.x[part.index])
    assert not torch.equal(load_data("shapes:n_test=40,seed=1").x, whole.x)
    global_state = torch.get_rng_state()
    assert torch.equal(load_data("shapes:n_test=40").x, whole.x)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_the_texture_of_training_images_is_that_of_their_class_as_often_as_asked(correlation: float) -> None:
    n, classes = 1200, 4
    rate = float(tied(f"shapes:classes={classes},n={n},correlation={correlation}").double().mean())
    want = correlation + (1 - correlation) / classes  # those drawn from all are right by chance
    assert abs(rate - want) <= 4 * math.sqrt(want * (1 - want) / n)


def test_textures_at_test_do_not_depend_on_the_class() -> None:
    data = load_data("shapes:n_test=1200,classes=4", size=16)
    same = (data.x == draw(data.y, data.y, keys(1200, "shapes, test"), size=16)).flatten(1).all(dim=1)
    assert abs(float(same.double().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1200)


def test_conflict_images_have_the_texture_of_another_class_each_equally_often() -> None:
    cue = shapes_conflict("shapes:classes=4", n=1200, size=16)
    assert cue.class_names == ("circle", "square", "triangle", "star") and cue.groups == ()
    drawn = draw(cue.shape, cue.texture, keys(1200, "shapes, conflict"), size=16)
    assert torch.equal((cue.x * 255).round().to(torch.uint8), drawn)
    counts = torch.zeros(4, 4).index_put((cue.shape, cue.texture), torch.ones(1200), accumulate=True)
    assert (counts.diagonal() == 0).all() and (counts.sum(dim=1) == 300).all()
    apart = counts[~torch.eye(4, dtype=torch.bool)]
    assert ((apart - 100).abs() < 4 * math.sqrt(300 * 2 / 9)).all()


AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) * 0.49**2,  # of the radius of the circle inside
    "star": 10 * 0.5 * 0.42 * math.sin(math.pi / 5),  # ten triangles from the centre
    "cross": 2 * 1.9 * 0.6 - 0.6**2,
    "ring": math.pi * (0.94**2 - 0.5**2),
    "hourglass": 4 * (0.9 * 0.7**2 / 2 + 0.05 * math.hypot(1, 0.9) * 0.7),
}


@pytest.mark.parametrize("name", SHAPES)
def test_outlines_enclose_their_area_and_measure_distance(name: str) -> None:
    x, y = middle(800)
    x, y = 1.1 * x, 1.1 * y
    distance = SHAPES[name](x, y)[0]
    area = float((distance < 0).double().mean()) * 2.2**2
    if name in AREAS:
        assert area == pytest.approx(AREAS[name], rel=0.01)
    assert 0.5 < area < 2.6 and (distance[torch.hypot(x, y)[0] > 1] > 0).all()  # in the circle, so in the image
    slope = torch.stack(torch.gradient(distance, spacing=2.2 / 800)).norm(dim=0)
    border = distance.abs() < 0.02
    assert 0.9 < float(slope[border].median()) < 1.1  # so that edges are smooth over one pixel, not two


@pytest.mark.parametrize("name", SHAPES)
def test_edges_are_smooth_so_that_small_images_show_the_area_of_large_ones(name: str) -> None:
    u = seeding.uniform(keys(20), 0, (23,))
    small, large = (_inside(*middle(size, 20), u, SHAPES[name], size) for size in (32, 256))
    areas = torch.stack([part.mean(dim=(1, 2)) for part in (small, large)])
    assert ((areas[0] / areas[1] - 1).abs() < 0.06).all()
    assert ((small > 0.05) & (small < 0.95)).float().mean() > 0.02  # some pixels are in part inside


def test_an_edge_is_smooth_over_one_pixel() -> None:
    u = seeding.uniform(keys(20), 0, (23,))
    share = _inside(*middle(256, 20), u, SHAPES["circle"], 256)
    border = 2 * math.pi * 0.9 * (0.55 + 0.2 * u[:, 0]) * 128  # in pixels
    # a share that falls from 1 to 0 over one pixel adds the integral of c (1 - c), a sixth, per pixel of the border
    torch.testing.assert_close(6 * (share * (1 - share)).sum(dim=(1, 2)), border, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", TEXTURES)
@pytest.mark.parametrize("size", [16, 32, 100])
def test_textures_mix_both_colours_about_equally_with_contrast(name: str, size: int) -> None:
    u, key = seeding.uniform(keys(50), 0, (23,)), keys(50)
    mixture = TEXTURES[name](_place(*middle(size, 50), u, key, size))
    assert mixture.shape == (50, size, size) and float(mixture.min()) >= 0 and float(mixture.max()) <= 1
    assert 0.25 < float(mixture.mean()) < 0.75
    assert float(mixture.flatten(1).std(dim=1).min()) > 0.1
    assert len({image.numpy().tobytes() for image in mixture}) == 50


def test_colours_fill_the_box_and_say_nothing_of_shape_or_texture() -> None:
    key = keys(400)
    shown = draw(torch.arange(400) % 8, torch.arange(400) // 8 % 8, key, size=16)
    ground = shown[:, :, 0, 0].float()
    assert ground.min() > 20 and ground.max() < 235
    other = draw((torch.arange(400) + 3) % 8, (torch.arange(400) // 8 + 5) % 8, key, size=16)
    assert torch.equal(other[:, :, 0, 0].float(), ground)  # place, scale and colours are those of the key
    inner = shown.flatten(2).float()
    assert ((inner.amax(dim=2) - inner.amin(dim=2)).amax(dim=1) > 40).all()  # something is seen on every image


@settings(max_examples=30)
@given(size=st.integers(8, 40), seed=st.integers(0, 3))
def test_any_size_is_drawn(size: int, seed: int) -> None:
    made = draw(torch.arange(8), torch.arange(8).flip(0), seeding.keys(seed, torch.arange(8)), size=size)
    assert made.shape == (8, 3, size, size)


def test_a_spec_is_read_strictly() -> None:
    assert read_recipe("shapes") == ShapesRecipe()
    want = ShapesRecipe(classes=4, n=20, n_test=10, correlation=0.9, seed=3)
    assert read_recipe("shapes:classes=4,n=20,n_test=10,correlation=0.9,seed=3") == want
    for spec, message in {
        "shapes:clases=4": "'clases' is no option, or there twice; did you mean 'classes'",
        "shapes:n=4,n=5": "'n' is no option, or there twice",
        "shapes:classes": "classes must be a number, as in classes=1; got ''",
        "shapes:n=2.5": "n must be a number, as in n=1; got '2.5'",
        "shapes:,": "'' is no option",
        "digits": "must be shapes, or shapes:classes=4",
    }.items():
        with pytest.raises(DataError, match=message):
            read_recipe(spec)
    for spec, message in {
        "shapes:classes=9": r"classes must be in 2 .. 8; got 9",
        "shapes:classes=1": r"classes must be in 2 .. 8; got 1",
        "shapes:n=0": "n and n_test must be at least 1; got 0 and 1000",
        "shapes:correlation=1.1": r"correlation must be in \[0, 1\]; got 1.1",
        "shapes:correlation=nan": r"correlation must be in \[0, 1\]; got nan",
    }.items():
        with pytest.raises(ParameterError, match=message):
            load_data(spec)
    with pytest.raises(DataError, match="size must be at least 8 for textures to be seen; got 7"):
        load_data(SMALL, size=7)
    with pytest.raises(DataError, match="n must be at least 1; got 0"):
        shapes_conflict(n=0)


def test_images_that_would_not_fit_are_refused_before_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardy.data.rows.free_bytes", lambda: 10**6)
    with pytest.raises(DataError, match=r"need 0.0 GiB, 0.0 GiB are free"):
        load_data("shapes")
