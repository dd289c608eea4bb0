"""A signal ends a command once, wherever it hits, and what was there before is there again."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import typer

from hardy.cli.common import guarded
from hardy.cli.stops import PATIENCE, settle, signals, stopping
from hardy.errors import DataError

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Undo what a script does to the background job that the tests may be: it ignores SIGINT."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def handlers() -> list[object]:
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGCHLD]
    return [*map(signal.getsignal, numbers), sys.unraisablehook]


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("raised", [None, DataError("x"), ValueError("Can't close the ZIP file"), SystemExit(0)])
def test_a_command_ends_with_the_code_of_the_signal_whatever_it_makes_of_it(
    number: signal.Signals, raised: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = handlers()

    @guarded
    def command() -> None:
        try:
            send(number)
        except KeyboardInterrupt:
            if raised is not None:
                raise raised from None
            raise

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == CODES[number] and handlers() == before and not stopping()


class Finalizer:
    """Is signalled where Python drops exceptions."""

    def __del__(self) -> None:
        send(signal.SIGTERM)


@pytest.mark.parametrize("where", ["finalizer", "fork"])
def test_an_interrupt_that_python_drops_is_repeated(where: str, capfd: pytest.CaptureFixture[str]) -> None:
    armed = [True]

    def forked() -> None:
        if armed:
            armed.clear()
            send(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), signals():  # noqa: PT012
        if where == "finalizer":
            Finalizer()
        else:
            os.register_at_fork(after_in_parent=forked)
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)
        assert stopping() == signal.SIGTERM  # it went on
        for _ in range(500):
            time.sleep(0.01)
    assert capfd.readouterr() == ("", "")


def test_an_echo_does_not_interrupt_the_last_words() -> None:
    said = []
    with signals():
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt as error:
            settle(error)
            send(signal.SIGTERM)
            send(signal.SIGINT)
            said.append("bye")
    assert said == ["bye"]


def test_a_second_signal_ends_a_process_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndError(Exception):
        pass

    def end(code: int) -> None:
        raise EndError(code)

    monkeypatch.setattr("hardy.cli.stops.os._exit", end)
    now = time.monotonic()
    with pytest.raises(EndError, match="143"), signals():  # noqa: PT012
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            monkeypatch.setattr("hardy.cli.stops.time.monotonic", lambda: now + PATIENCE + 1)
            send(signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background job
    try:
        with signals():
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_another_thread_has_no_handlers() -> None:
    found: list[bool] = []

    def work() -> None:
        with signals():
            found.append(handlers() == before)

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]
