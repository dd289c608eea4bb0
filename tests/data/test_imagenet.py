"""ImageNet's layout: WordNet ids in sorted order, val as the test part, and names from torchvision's file."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hardy.data import load_data
from hardy.errors import DataError

WNIDS = ("n01440764", "n02012849", "n03126707")
WORDS = {"n01440764": ("tench", "Tinca tinca"), "n02012849": ("crane",), "n03126707": ("crane",), "n9": ()}


def tree(root: Path, *parts: str, wnids: tuple[str, ...] = WNIDS) -> str:
    for p, part in enumerate(parts):
        for c, name in enumerate(wnids):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (100 * p + 10 * c + i, 0, 0)).save(root / part / name / f"{name}_{i}.JPEG")
    return f"imagenet:{root}"


def test_val_is_the_test_part_and_classes_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    spec = tree(tmp_path, "train", "val")
    train, test = load_data(spec, split="train", val_fraction=0.25), load_data(spec)
    assert test.class_names == train.class_names == WNIDS and test.name == spec
    assert test.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (test.x[:, 0].float().mean(dim=(1, 2)) / 10).floor().tolist() == [10] * 4 + [11] * 4 + [12] * 4
    assert len(train) == 9 and len(load_data(spec, split="val", val_fraction=0.25)) == 3
    same = load_data(f"folder:{tmp_path}")
    assert torch.equal(same.x, test.x) and torch.equal(same.index, test.index)


def test_one_part_is_enough(tmp_path: Path) -> None:
    spec = tree(tmp_path, "val")
    assert len(load_data(spec)) == 12
    with pytest.raises(DataError, match="has no train part; it has test"):
        load_data(spec, split="train")


def test_names_are_the_first_words_with_the_id_where_two_share_them(tmp_path: Path) -> None:
    spec = tree(tmp_path, "val")
    torch.save((WORDS, ["n01440764"]), tmp_path / "meta.bin")
    assert load_data(spec).class_names == ("tench", "crane (n02012849)", "crane (n03126707)")
    torch.save(({"n01440764": ("tench",)}, []), tmp_path / "meta.bin")
    assert load_data(spec).class_names == ("tench", *WNIDS[1:])  # words for some only


def test_folders_that_are_not_imagenet_say_so(tmp_path: Path) -> None:
    for spec in ("imagenet", f"imagenet:{tmp_path}", f"imagenet:{tmp_path}/nowhere"):
        with pytest.raises(DataError, match=r"must have train/ or val/ .* cannot be downloaded without an account"):
            load_data(spec, download=True)
    spec = tree(tmp_path, "val", wnids=(*WNIDS, "tench"))
    with pytest.raises(
        DataError, match=r"class folders must be WordNet ids, as n01440764; got 'tench'. Use folder:DIR"
    ):
        load_data(spec)
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "ILSVRC2012_val_00000001.JPEG").touch()
    with pytest.raises(DataError, match="must have one sub-folder per class; got none"):
        load_data(f"imagenet:{tmp_path / 'other'}", split="train")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("went off",)


@pytest.mark.parametrize("content", [None, [1, 2, 3], ({"n01440764": 3}, []), (["n01440764"], []), (Bomb(), [])])
def test_another_meta_file_is_named_and_not_executed(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tree(tmp_path, "val")
    torch.save(content, tmp_path / "meta.bin")
    with pytest.raises(DataError, match=r"meta.bin must be the file that torchvision writes .* Delete it"):
        load_data(spec)
    assert "went off" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_meta_file_is_a_data_error(data: st.DataObject, tmp_path: Path) -> None:
    if not (tmp_path / "val").exists():
        tree(tmp_path, "val")
    torch.save((WORDS, ["n01440764"]), tmp_path / "meta.bin")
    whole = (tmp_path / "meta.bin").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
    damaged = whole[:at] if data.draw(st.booleans()) else whole[:at] + flipped + whole[at + 1 :]
    (tmp_path / "meta.bin").write_bytes(damaged)
    try:
        assert len(load_data(f"imagenet:{tmp_path}").class_names) == 3
    except DataError as error:
        assert "meta.bin" in str(error)  # noqa: PT017
