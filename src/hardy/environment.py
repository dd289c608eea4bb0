"""What a number depends on besides its recipe: versions, machine, command, commit."""

import importlib.metadata
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from hardy import __version__

__all__ = ["command_line", "environment"]


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Describe this process: versions, device, threads, command, and the git commit of the working folder, if any."""
    kind = torch.device(device)
    facts = {
        "hardy": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(kind) if kind.type == "cuda" else f"{kind.type} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "command": command_line(),
    }
    commit = _commit()
    return {**facts, "commit": commit} if commit else facts


def command_line() -> str:
    """Give the command that started this process, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _commit() -> str:
    """Give the commit of the working folder, with ``-dirty`` where tracked files differ; empty where there is none."""
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603  (fixed words)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
