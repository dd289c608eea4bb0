"""Counts page faults, which do not depend on how busy the machine is."""

import subprocess
import sys

import pytest

from hardy.allocator import OWN, keep_freed_memory

FAULTS = """
import resource
import torch
from hardy.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(2**24).fill_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(*, keep: bool) -> int:
    code = FAULTS.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  (our own code)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_big_tensors_cost_no_page_faults_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN:
        monkeypatch.delenv(name, raising=False)
    try:
        kept = faults(keep=True)
    except subprocess.CalledProcessError:
        pytest.skip("malloc is not glibc's")
    assert kept < 100 < faults(keep=False)


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    assert not keep_freed_memory()
