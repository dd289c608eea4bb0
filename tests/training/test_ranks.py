"""Several processes train the net that one trains; when one dies, all end, or begin again where they were."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from hardy import io
from hardy.cli.launch import check_processes
from hardy.data import load_data
from hardy.errors import ConfigError
from hardy.training.folder import RunFolder
from hardy.training.ranks import TrainingRanks, job, running_statistics, synced_norms
from hardy.training.state import Tally

HERE = Path(__file__).parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1] / "src"), "PYTHONUNBUFFERED": "1"}
PATIENCE = 240  # seconds for what takes about 10 on an idle machine
RECIPE = """
[model]
name = "cifar_resnet8"
args = { width = 4 }
[data]
name = "digits"
limit = 256
augment = ["crop"]
[[methods]]
name = "lfm"
p = 1.0
[train]
epochs = 6
batch_size = 32
ema = 0.9
save_every = 3
"""


# ------------------------------------------------------------------------------------------------ one process


def test_shares_of_any_sizes_make_the_mean_over_all_rows() -> None:
    ranks = TrainingRanks("cpu", precision="32-true")
    for size, rows in ((2, 7), (3, 32), (4, 5)):
        ranks.size = size
        losses = torch.rand(rows, dtype=torch.float64)
        local = [losses[r::size].mean() * ranks.share(len(losses[r::size]), rows) for r in range(size)]
        assert torch.allclose(torch.stack(local).mean(), losses.mean())
    assert ranks.share(16, 64) == 1.0  # exactly: even shares are not touched


def test_every_validation_image_is_in_one_share() -> None:
    data = load_data("digits", split="test").limit(5)
    ranks = TrainingRanks("cpu", precision="32-true")
    assert ranks.part(data) is data
    ranks.size, seen = 7, []
    for ranks.rank in range(7):
        part = ranks.part(data)
        seen += [] if part is None else part.index.tolist()
    assert sorted(seen) == sorted(data.index.tolist())


class Norms(nn.Module):
    """Batch norms of the known kinds, and one of somebody's own."""

    def __init__(self) -> None:
        super().__init__()

        class Own(nn.BatchNorm2d):
            pass

        self.plain, self.fused, self.own = nn.BatchNorm2d(3), BatchNormAct2d(3), Own(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.fused(self.plain(x)))


def test_batch_norms_are_synced_in_the_block_and_as_they_were_after_it() -> None:
    model, seen = Norms(), []
    model.plain.register_forward_hook(lambda *_: seen.append("hook"))
    keys, kinds = list(model.state_dict()), [type(m) for m in model.modules()]
    parameters = [id(p) for p in model.parameters()]
    with synced_norms(model) as counts:
        assert counts == (2, 1) and type(model.plain) is nn.SyncBatchNorm and type(model.fused) is SyncBatchNormAct
        assert len(running_statistics(model)) == 2  # the own one's
        model.eval()
        x = torch.randn(2, 3, 4, 4)
        synced = model(x)
    assert [type(m) for m in model.modules()] == kinds and list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == parameters and "process_group" not in vars(model.plain)
    assert torch.equal(model(x), synced) and seen == ["hook", "hook"]


def test_only_norms_that_learn_have_statistics_to_average() -> None:
    model = Norms()
    assert len(running_statistics(model)) == 6
    model.fused.eval()
    assert len(running_statistics(model)) == 4


def test_sums_of_half_an_epoch_come_back_exactly_and_in_order() -> None:
    tally = Tally()
    for i in range(3):
        tally.add({"task": torch.rand(()), "a": torch.rand(()) / 3}, torch.tensor(i), 7)
    back = Tally.of(json.loads(json.dumps(tally.facts(1.5))), torch.device("cpu"))
    assert list(back.losses) == ["task", "a"] and back.seconds == 1.5 and back.row() == tally.row()
    for each in (tally, back):
        each.add({"task": torch.tensor(1 / 3), "a": torch.tensor(0.1)}, torch.tensor(2), 5)
    assert back.row() == tally.row() and back.losses["task"].dtype == torch.float32


def test_a_run_belongs_to_the_job_that_began_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.belongs_to("job/1")
    folder.env_file.write_text('{"torch": "2"}')
    assert not folder.belongs_to("job/1") and not folder.belongs_to(None)
    folder.env_file.write_text('{"job": "job/1"}')
    assert folder.belongs_to("job/1") and not folder.belongs_to("job/2")


def test_a_job_is_known_by_its_launcher_even_where_all_launchers_have_one_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert job() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # what torchrun says without --rdzv-id
    ours = job()
    assert ours is not None and ours == job() and ours.startswith(f"none/{os.getppid()}/")
    monkeypatch.setattr("hardy.training.ranks._started", lambda _: "later")
    assert job() != ours


def test_devices_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(2, restarts=1, device="cpu")
    with pytest.raises(ConfigError, match=r"must be at least 1 and 0; got 0 and 0"):
        check_processes(0, device="cpu")
    with pytest.raises(ConfigError, match=r"at most \d+, one process for each GPU"):
        check_processes(1000, device="cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    check_processes(1, device="cpu")
    with pytest.raises(ConfigError, match=r"torchrun has started the processes already"):
        check_processes(2, device="cpu")


# ------------------------------------------------------------------------------------------ several processes


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=PATIENCE, check=False)  # noqa: S603  (ours)


def cases(case: str, out: Path, processes: int) -> Any:
    """Run a case of rank_cases.py; give what rank 0 said."""
    command = [sys.executable, str(HERE / "rank_cases.py"), case, str(out), str(processes)]
    done = run(command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def check_same_curve(one: dict[str, Any], many: dict[str, Any]) -> None:
    """Compare loss curves: float32 sums in another order, which differ by a unit in the last place (6e-8) or a few.

    1.2e-7 was seen after 32 steps; 1e-5 leaves room for other libraries. Wrong weights of the shares of 32 images
    (11, 11 and 10) would change the third digit.
    """
    assert len(set(many["digests"])) == 1  # all processes end with the same bits
    assert one["history"][-1]["val_accuracy"] > 0.5  # something was learned; chance is 0.1
    for a, b in zip(one["history"], many["history"], strict=True):
        assert a.keys() == b.keys() and (a["step"], a["lr"]) == (b["step"], b["lr"])
        assert b["task"] == pytest.approx(a["task"], rel=1e-5)
        assert abs(a["train_accuracy"] - b["train_accuracy"]) <= 1 / 512  # an image on the fence
        assert abs(a["val_accuracy"] - b["val_accuracy"]) <= 1 / 37


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases("curves", tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_curve_is_that_of_one_process(processes: int, alone: Any, tmp_path: Path) -> None:
    many = cases("curves", tmp_path, processes)
    assert many["ranks"] == processes
    check_same_curve(alone, many)
    text = (tmp_path / "net" / "log.txt").read_text()
    assert text.count(f"{processes} processes, gloo share each batch of 64 images") == 1
    assert io.read(tmp_path / "net" / "model.safetensors").metrics["epoch"] >= 1


@pytest.mark.slow
def test_adversarial_training_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    one, two = (cases("adversarial", tmp_path / str(processes), processes) for processes in (1, 2))
    for name in ("awp", "free"):
        assert len(set(two[name]["digests"])) == 1
        a, b = one[name]["history"][0], two[name]["history"][0]
        assert a["forward_passes"] == b["forward_passes"] == {"awp": 6, "free": 3}[name]
        # 1e-8 was seen; a pixel with a slope of almost 0 may step the other way elsewhere
        assert b["task"] == pytest.approx(a["task"], rel=1e-4)


@pytest.mark.slow
def test_what_one_process_finds_all_say_and_batch_norms_end_alike(tmp_path: Path) -> None:
    found = cases("mistakes", tmp_path, 2)
    texts = {
        "overflow": r"TrainingError: train: the loss must be finite; loss 'penalty' was not at step 3",
        "few": r"DataError: train: at least 2 training images are needed; got 1",
        "taken": r"TrainingError: .*already holds a run",
        "small": r"ParameterError: batches: batch_size must be at least 2",
        "norms": r"none",
    }
    for name, text in texts.items():
        assert len(set(found[name])) == 1 and re.match(text, found[name][0]), (name, found[name])
    assert found["attached"] == 0 and len(set(found["digests"])) == 1
    assert "running statistics averaged" in (tmp_path / "norms" / "log.txt").read_text()


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "rank_cases.py"), "fails", str(tmp_path / "a"), "2"]
    done = run(command)
    assert done.returncode == 1 and re.match(
        r"RankError: rank 1 of 2 \(process \d+\): must run to the end", done.stderr
    )
    assert done.stderr.rstrip().endswith("ZeroDivisionError: a bug")


@pytest.mark.slow
def test_an_error_reaches_the_launcher_when_the_others_hang_and_is_not_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = run([sys.executable, str(HERE / "rank_cases.py"), "hangs", str(out), "2", "1"])
    assert (done.returncode, done.stderr.strip()) == (1, "DataError: image 7 is damaged.")
    assert {file.name for file in out.iterdir()} == {"begun-0-0", "begun-0-1"}  # not begun again


@pytest.mark.slow
def test_an_error_of_all_ends_no_process_before_it_has_cleaned_up(tmp_path: Path) -> None:
    done = run([sys.executable, str(HERE / "rank_cases.py"), "agrees", str(tmp_path / "a"), "3"])
    assert (done.returncode, done.stderr.strip()) == (1, "DataError: all images are damaged.")
    assert len(list((tmp_path / "a").glob("cleaned-*"))) == 3


@pytest.mark.slow
def test_two_machines_of_two_processes_are_one_process(alone: Any, tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={port}", str(HERE / "rank_cases.py"), "curves", str(tmp_path), "0",
    ]  # fmt: skip
    agents = [
        subprocess.Popen(  # noqa: S603  (ours)
            [*command[:3], f"--node-rank={node}", *command[3:]], env=ENV, stdout=subprocess.PIPE, text=True
        )
        for node in (0, 1)
    ]
    said = [agent.communicate(timeout=PATIENCE)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0] and said[1] == ""
    many = json.loads(said[0])
    assert many["ranks"] == 4
    check_same_curve(alone, many)


# ------------------------------------------------------------------------------------------ killed and stopped


def descendants(pid: int) -> list[int]:
    """List the processes below one."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return [pid for child in found for pid in (child, *descendants(child))]


def ranks_below(pid: int) -> dict[int, int]:
    """Give the training processes below one, by rank; they are the ones with an environment that says so."""
    found = {}
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"--multiprocessing-fork" in words or b"train" in words:
                found[child] = len(found)
    return {number: child for child, number in found.items()}


def wait_for(what: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        if process.poll() is not None:
            pytest.fail(f"ended too early ({process.returncode}):\n{process.communicate()[1]}")
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pids: list[int]) -> list[int]:
    """Say which processes are there and not just waiting to be buried."""
    left = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.append(pid)
    return left


def end_of(pids: list[int]) -> list[int]:
    """Wait a little for processes to end; give those that do not (multiprocessing's own helper ends last)."""
    end = time.monotonic() + 60
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.1)
    return alive(pids)


@contextlib.contextmanager
def training(*arguments: str | Path, launcher: tuple[str, ...] = ()) -> Iterator["subprocess.Popen[str]"]:
    """Start ``hardy train`` in a session of its own; nothing of it outlives the block."""
    command = [sys.executable, *(launcher or ("-m",)), "hardy", "train", *map(str, arguments)]
    process = subprocess.Popen(  # noqa: S603  (ours)
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def ending(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return io.read_tensors(folder / "model.safetensors"), [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a training over two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.toml").write_text(RECIPE)
    with training(folder / "recipe.toml", "--out", folder / "run", "--devices", "2", "--json") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    document = json.loads(out)  # once, and nothing else
    assert len(document["history"]) == 6 and document["out"] == str(folder / "run")
    assert "Warning" not in err and err.count("next: hardy evaluate") == 1
    return folder


def check_same(a: Path, b: Path) -> None:
    (ours, rows), (theirs, their_rows) = ending(a), ending(b)
    assert rows == their_rows and ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["hardy", "torchrun"])
def test_killed_processes_begin_again_and_end_with_the_same_bits(launcher: str, whole: Path, tmp_path: Path) -> None:
    run, ours = tmp_path / "run", ("--devices", "2", "--restarts", "3")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3", "-m")
    begin = (ours, ()) if launcher == "hardy" else ((), torchrun)
    with training(whole / "recipe.toml", "--out", run, *begin[0], launcher=begin[1]) as process:
        for victim, epochs in ((1, 0), (0, 3)):
            rows = RunFolder(run)
            wait_for(lambda f=rows, n=epochs: f.checkpoint_file.exists() and len(f.rows()) >= n, process)  # type: ignore[misc]
            os.kill(ranks_below(process.pid)[victim], signal.SIGKILL)
            log, times = run / "log.txt", 1 + (victim == 0)
            wait_for(lambda f=log, n=times: f.read_text().count("resumed after") >= n, process)  # type: ignore[misc]
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    check_same(run, whole / "run")


@pytest.mark.slow
def test_a_process_killed_on_one_of_two_machines_begins_again_on_both(whole: Path, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free_port()
    torchrun = (
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--max-restarts=3", "-m",
    )  # fmt: skip
    arguments = (whole / "recipe.toml", "--out", run)
    with training(*arguments, launcher=torchrun) as one, training(*arguments, launcher=torchrun) as other:
        wait_for((run / "checkpoints" / "last.safetensors").exists, one)
        os.kill(ranks_below(other.pid)[0], signal.SIGKILL)  # only the torchrun of its machine counts this restart
        said = [process.communicate(timeout=PATIENCE)[1] for process in (one, other)]
    assert one.returncode == other.returncode == 0, said
    assert (run / "log.txt").read_text().count("resumed after") == 1
    check_same(run, whole / "run")


@pytest.mark.slow
def test_a_killed_process_ends_all_at_once_and_the_message_says_which(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(whole / "recipe.toml", "--out", run, "--devices", "2") as process:
        wait_for((run / "checkpoints" / "last.safetensors").exists, process)
        below = descendants(process.pid)
        victim = ranks_below(process.pid)[1]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - began < 60  # about 1 on an idle machine
    assert process.returncode == 2 and end_of(below) == []
    said = " ".join(err.split())
    assert f"rank 1 of 2 (process {victim}): must run to the end; SIGKILL killed it, and the others were ended" in said
    assert "The last checkpoint is kept. Go on: add --resume" in said and "Traceback" not in said
    with training(
        whole / "recipe.toml", "--out", run, "--resume"
    ) as process:  # with one process: equal, not bit for bit
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and len(ending(run)[1]) == 6, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(whole / "recipe.toml", "--out", run, "--devices", "2", "--restarts", "1") as process:
        wait_for((run / "checkpoints" / "last.safetensors").exists, process)
        below = descendants(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number and end_of(below) == []
    assert "stopped" in err and "The last checkpoint is kept" in err and "Traceback" not in err


@pytest.mark.slow
def test_no_process_outlives_a_killed_launcher(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(whole / "recipe.toml", "--out", run, "--devices", "2") as process:
        wait_for((run / "checkpoints" / "last.safetensors").exists, process)
        below = descendants(process.pid)
        process.kill()
        process.wait()
        left = end_of(below)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.slow
def test_a_restart_does_not_go_on_with_a_run_of_others(whole: Path) -> None:
    before = ending(whole / "run")
    with training(whole / "recipe.toml", "--out", whole / "run", "--devices", "2", "--restarts", "2") as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "already holds a run" in " ".join(err.split())
    assert ending(whole / "run")[1] == before[1]
