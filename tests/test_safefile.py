"""Files are whole or absent, and no hostile file does more than raise."""

import contextlib
import errno
import json
import math
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hardy import safefile
from hardy.errors import CheckpointError, DataError
from hardy.safefile import (
    check_writable,
    read_header,
    read_tensors,
    sweep,
    write_atomic,
    write_json,
    write_pair,
    write_tensors,
    write_text,
)

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1, -2], dtype=torch.int64),
    "c": torch.tensor(True),
    "d": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "e": torch.zeros(0, 4),
}
HEADER = {"format": 1, "name": "ümläut \u2028 <b>", "nested": {"list": [1, 2.5, None, True]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    write_tensors(path, TENSORS, HEADER)
    return path


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestTensors:
    def test_what_is_written_is_read(self, file: Path) -> None:
        header, shapes = read_header(file)
        assert header == HEADER
        assert shapes == {
            "a.weight": ("F32", (2, 3)), "b": ("I64", (2,)), "c": ("BOOL", ()), "d": ("BF16", (2,)),
            "e": ("F32", (0, 4)),
        }  # fmt: skip
        again = read_tensors(file)
        assert again.keys() == TENSORS.keys()
        for name, want in TENSORS.items():
            assert again[name].dtype == want.dtype and again[name].shape == want.shape
            assert torch.equal(
                again[name].view(torch.uint8) if want.ndim else again[name],
                want.view(torch.uint8) if want.ndim else want,
            )

    def test_views_tied_weights_and_gradients_are_fine(self, tmp_path: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4).requires_grad_()
        write_tensors(tmp_path / "x", {"t": base.t(), "row": base[1], "tied": base}, {})
        again = read_tensors(tmp_path / "x")
        assert torch.equal(again["t"], base.t()) and torch.equal(again["row"], base[1])
        assert not any(t.requires_grad for t in again.values())

    def test_no_tensors_at_all(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "x", {}, {"a": 1})
        assert read_header(tmp_path / "x") == ({"a": 1}, {}) and read_tensors(tmp_path / "x") == {}

    def test_a_header_that_is_no_json_is_refused_before_writing(self, tmp_path: Path) -> None:
        for header in ({"a": math.nan}, {"a": object()}):
            with pytest.raises((ValueError, TypeError)):
                write_tensors(tmp_path / "x", {}, header)
        assert left(tmp_path) == []


class Bomb:
    """Unpickling it leaves a trace."""

    path = ""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (Bomb.path,)


def safetensor(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(**change: Any) -> dict[str, Any]:
    return {"__metadata__": {"hardy": "{}"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}}


HOSTILE = {
    "empty": b"",
    "zeros": bytes(64),
    "text": b"hello, this is no model",
    "zip": b"PK\x03\x04" + bytes(60),
    "header longer than the file": safetensor(one(), bytes(8), size=2**40),
    "header of 2^63 bytes": safetensor(one(), bytes(8), size=2**63),
    "header length -1": safetensor(one(), bytes(8), size=2**64 - 1),
    "header is a list": safetensor([]),
    "header is not utf-8": safetensor(b'{"\xff": 1}'),
    "header is cut": safetensor(b'{"a": {"dtype": "F32"'),
    "nesting in the outer header": safetensor(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "offsets past the end": safetensor(one(data_offsets=[0, 800]), bytes(8)),
    "offsets before the start": safetensor(one(data_offsets=[-8, 0]), bytes(8)),
    "offsets reversed": safetensor(one(data_offsets=[8, 0]), bytes(8)),
    "shape larger than the data": safetensor(one(shape=[200]), bytes(8)),
    "huge declared size": safetensor(one(shape=[2**40, 2**40], data_offsets=[0, 2**62]), bytes(8)),
    "size that overflows": safetensor(one(shape=[2**62, 2**62, 16]), bytes(8)),
    "negative shape": safetensor(one(shape=[-2]), bytes(8)),
    "shape is text": safetensor(one(shape="2"), bytes(8)),
    "unknown dtype": safetensor(one(dtype="F31"), bytes(8)),
    "data that nobody claims": safetensor(one(), bytes(80)),
    "overlapping tensors": safetensor({**one(), "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
}
BAD_HEADERS = {
    "no metadata": {},
    "other metadata": {"__metadata__": {"format": "pt"}},
    "metadata is no text": {"__metadata__": {"hardy": 3}},
    "not JSON": {"__metadata__": {"hardy": "{'a': 1}"}},
    "cut JSON": {"__metadata__": {"hardy": '{"a": [1, 2'}},
    "a list": {"__metadata__": {"hardy": "[1]"}},
    "a number": {"__metadata__": {"hardy": "1e5"}},
    "null": {"__metadata__": {"hardy": "null"}},
    "a bomb of brackets": {"__metadata__": {"hardy": "[" * 200_000}},
    "a bomb of tables": {"__metadata__": {"hardy": '{"a":' * 100_000 + "1" + "}" * 100_000}},
    "a number of a million digits": {"__metadata__": {"hardy": '{"a": ' + "9" * 1_000_000 + "}"}},
}


class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_a_file_that_is_no_safetensors(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "evil.safetensors"
        path.write_bytes(HOSTILE[name])
        for read in (read_header, read_tensors):
            with pytest.raises(CheckpointError, match=r"evil.safetensors: ") as caught:
                read(path)
            assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("name", BAD_HEADERS)
    def test_a_header_that_is_none_of_ours(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "evil.safetensors"
        path.write_bytes(safetensor(BAD_HEADERS[name]))
        with pytest.raises(CheckpointError, match=r"evil.safetensors: ") as caught:
            read_header(path)
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("protocol", [0, 2, 5])
    def test_a_pickle_under_another_name_executes_nothing(self, protocol: int, tmp_path: Path) -> None:
        Bomb.path = str(tmp_path / "trace")
        evil = tmp_path / "evil.safetensors"
        evil.write_bytes(pickle.dumps(Bomb(), protocol))
        saved = tmp_path / "saved.safetensors"
        torch.save({"a": Bomb()}, saved)
        for path in (evil, saved):
            for read in (read_header, read_tensors):
                with pytest.raises(CheckpointError):
                    read(path)
        assert left(tmp_path) == ["evil.safetensors", "saved.safetensors"]

    def test_a_truncation_at_any_byte(self, tmp_path: Path) -> None:
        path, cut = tmp_path / "m", tmp_path / "cut"
        write_tensors(path, {"a": torch.ones(3)}, {"k": 1})
        whole = path.read_bytes()
        for size in range(len(whole)):
            cut.write_bytes(whole[:size])
            for read in (read_header, read_tensors):
                with pytest.raises(CheckpointError):
                    read(cut)
        cut.write_bytes(whole + b"\0")
        with pytest.raises(CheckpointError):
            read_tensors(cut)

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, 10**6), to=st.integers(0, 255))
    def test_a_flipped_byte_is_other_data_or_a_checkpoint_error(self, file: Path, at: int, to: int) -> None:
        whole = bytearray(file.read_bytes())
        whole[at % len(whole)] = to
        path = file.with_name("flipped")
        path.write_bytes(whole)
        for read in (read_header, read_tensors):
            with contextlib.suppress(CheckpointError):
                read(path)

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.binary(max_size=200), framed=st.booleans())
    def test_any_bytes_are_a_checkpoint_error(self, tmp_path: Path, data: bytes, framed: bool) -> None:
        path = tmp_path / "x"
        path.write_bytes(safetensor(data) if framed else data)
        with pytest.raises(CheckpointError):
            read_header(path)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "missing"):
            for read in (read_header, read_tensors):
                with pytest.raises(CheckpointError, match="no such file"):
                    read(path)

    def test_somebody_elses_safetensors_say_what_to_do(self, tmp_path: Path) -> None:
        safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x")
        with pytest.raises(CheckpointError, match=r"not written by Hardy \(no header\). Load it as weights instead."):
            read_header(tmp_path / "x")
        assert torch.equal(read_tensors(tmp_path / "x")["a"], torch.ones(2))


def half_then(error: BaseException) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        file.flush()
        raise error

    return write


class TestAtomic:
    @pytest.mark.parametrize(
        "error", [ValueError("x"), KeyboardInterrupt(), MemoryError(), SystemExit(1)], ids=lambda e: type(e).__name__
    )
    @pytest.mark.parametrize("old", [True, False])
    def test_a_writer_that_raises_leaves_the_old_file_or_none(
        self, tmp_path: Path, error: BaseException, old: bool
    ) -> None:
        path = tmp_path / "a.json"
        if old:
            path.write_text("old")
        with pytest.raises(type(error)):
            write_atomic(path, half_then(error))
        assert left(tmp_path) == (["a.json"] if old else [])
        assert not old or path.read_text() == "old"

    def test_a_full_disk_is_a_data_error_and_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_text(path, "old")
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(DataError, match=r"a.json: writing failed \(No space left on device\); nothing was changed"):
            write_atomic(path, half_then(full))
        assert path.read_text() == "old" and left(tmp_path) == ["a.json"]

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_disk_that_fails_late_leaves_the_old_file(
        self, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.json"
        write_text(path, "old")

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
        with pytest.raises(DataError, match="Input/output error"):
            write_text(path, "new")
        monkeypatch.undo()
        assert path.read_text() == "old" and left(tmp_path) == ["a.json"]

    def test_the_file_appears_only_when_it_is_complete(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "er" / "a.txt"
        seen: list[bool] = []

        def write(file: IO[bytes]) -> None:
            file.write(b"new")
            file.flush()
            seen.append(path.exists())

        write_atomic(path, write)
        assert seen == [False] and path.read_bytes() == b"new" and left(path.parent) == ["a.txt"]
        write_atomic(path, lambda file: seen.append(path.read_bytes() == b"new" and file.write(b"newer") == 5))
        assert seen == [False, True] and path.read_bytes() == b"newer"

    def test_the_data_is_on_the_disk_before_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        fsync, replace = os.fsync, Path.replace
        monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
        monkeypatch.setattr(Path, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
        write_text(tmp_path / "a", "x")
        assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder

    def test_other_people_may_read_it_as_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("x")
        write_text(tmp_path / "ours", "x")
        mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
        assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == mode

    def test_a_folder_that_cannot_be_written_is_a_data_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(DataError, match=r"cannot write here .* Choose another folder with --out"):
            write_text(tmp_path / "file" / "a.txt", "x")
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match=r"cannot write here \(a folder or device has that name\)"):
            write_text(tmp_path / "folder", "x")
        assert left(tmp_path) == ["file", "folder"]

    def test_a_long_name_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot write here"):
            write_text(tmp_path / ("a" * 300), "x")


class TestTrial:
    def test_a_trial_leaves_nothing_and_makes_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "old.json").write_text("old")
        (tmp_path / ".new.json.12345678.part").write_text("of a killed process")
        for name in ("old.json", "new.json", "deep/er/new.json"):
            check_writable(tmp_path / name)
        assert (
            sorted(p.name for p in tmp_path.iterdir()) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"
        )

    @pytest.mark.parametrize("name", ["file/a.json", "file/b/a.json", "folder", "pipe", "a" * 300])
    def test_a_trial_refuses_what_cannot_be_written(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match=r"cannot write here \(.+\)\. Choose another .*--out"):
            check_writable(tmp_path / name)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "pipe"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
    def test_a_folder_without_permission_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0o555)
        for name in ("closed/a.json", "closed/deeper/a.json"):
            with pytest.raises(DataError, match="Permission denied"):
                check_writable(tmp_path / name)


class TestSweep:
    def test_parts_of_dead_processes_go_and_the_rest_stays(self, tmp_path: Path) -> None:
        for name in (".a.json.12345678.part", ".b.json.12345678.part", "a.json.part", ".part", ".hidden"):
            (tmp_path / name).write_text("x")
        sweep(tmp_path, "a.json")
        assert left(tmp_path) == [".b.json.12345678.part", ".hidden", ".part", "a.json.part"]
        sweep(tmp_path)
        assert left(tmp_path) == [".hidden", ".part", "a.json.part"]
        sweep(tmp_path / "missing")

    def test_a_name_is_no_pattern(self, tmp_path: Path) -> None:
        (tmp_path / ".ab.12345678.part").write_text("x")
        sweep(tmp_path, "a[b]")
        sweep(tmp_path, "*")
        assert left(tmp_path) == [".ab.12345678.part"]

    def test_a_part_that_somebody_writes_stays(self, tmp_path: Path) -> None:
        def write(file: IO[bytes]) -> None:
            file.write(b"outer")
            write_text(tmp_path / "a.txt", "inner")  # of the same file: sweeps first
            sweep(tmp_path)
            assert len(left(tmp_path)) == 2

        write_atomic(tmp_path / "a.txt", write)
        assert (tmp_path / "a.txt").read_text() == "outer" and left(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize(("first", "parts"), [(True, 1), (None, 1), (False, 2)])
    def test_a_new_part_that_a_sweeper_holds_is_given_up(
        self, first: bool | None, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter([first, True])
        monkeypatch.setattr(safefile, "take", lambda _: next(answers))
        made: list[Path] = []
        part_of = safefile._part_of
        monkeypatch.setattr(safefile, "_part_of", lambda path: made.append(part_of(path)) or made[-1])
        part, file = safefile._new(tmp_path / "a.txt")
        file.close()
        assert len(made) == parts and part == made[-1]

    def test_every_write_sweeps_its_own_name(self, tmp_path: Path) -> None:
        for number in range(3):
            (tmp_path / f".a.txt.{number:08}.part").write_text("x")
        write_text(tmp_path / "a.txt", "x")
        assert left(tmp_path) == ["a.txt"]


class TestPair:
    @pytest.mark.parametrize("failing", [0, 1])
    def test_a_failure_of_either_leaves_both_old_ones(self, failing: int, tmp_path: Path) -> None:
        paths = [tmp_path / "a", tmp_path / "b"]
        for path in paths:
            path.write_text("old")
        full = half_then(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        writers: list[Callable[[IO[bytes]], object]] = [lambda file: file.write(b"new")] * 2
        writers[failing] = full
        with pytest.raises(DataError, match=rf"{paths[failing]}: writing failed .*Free some space there"):
            write_pair(paths[0], writers[0], paths[1], writers[1])
        assert [path.read_text() for path in paths] == ["old", "old"] and left(tmp_path) == ["a", "b"]

    def test_both_are_written(self, tmp_path: Path) -> None:
        write_pair(tmp_path / "x" / "a", lambda f: f.write(b"1"), tmp_path / "y" / "b", lambda f: f.write(b"2"))
        assert (tmp_path / "x" / "a").read_bytes() == b"1" and (tmp_path / "y" / "b").read_bytes() == b"2"


class TestJson:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", HEADER)
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == HEADER

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_numbers_that_json_lacks_are_errors(self, tmp_path: Path, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"a": value})
        assert left(tmp_path) == []

    def test_text_is_utf_8(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.txt", "ümlaut")
        assert (tmp_path / "a.txt").read_bytes() == "ümlaut".encode()


def test_reading_gives_ordinary_tensors(file: Path) -> None:
    again: dict[str, Tensor] = read_tensors(file)
    file.unlink()
    again["a.weight"].add_(1)  # its own memory, not the file
    assert torch.equal(again["a.weight"], TENSORS["a.weight"] + 1)
