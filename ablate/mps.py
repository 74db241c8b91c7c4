"""NVIDIA's Multi-Process Service: kernels of several processes run on a GPU at once, and not in turns."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.environment import exported

BINARY = "nvidia-cuda-mps-control"
ELSEWHERE = "/usr/local/nvidia/bin"
"""Where containers have it that do not name it in PATH."""
SECONDS = 20.0
"""What the daemon may take to start, and to end."""


def control() -> str | None:
    """The path of the program that starts the service, where there is one."""
    return shutil.which(BINARY) or shutil.which(BINARY, path=ELSEWHERE)


@contextmanager
def mps(folder: Path) -> Iterator[str]:
    """A daemon of its own for the CUDA processes that are started meanwhile, with its sockets and logs in `folder`.

    Gives why there is none, or an empty text. It ends with the context, and with this process, however that ends.
    """
    binary = control()
    if binary is None:
        yield f"{BINARY} is not installed"
        return
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    for path in own.values():
        Path(path).mkdir()
    # workers name GPUs by their number among all
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | own
    with (folder / "mps-log" / "start").open("w+b") as log:  # the daemon would hold a pipe open
        try:
            done = subprocess.run(
                [binary, "-d"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield f"{BINARY}: {error}"
            return
        log.seek(0)
        said = log.read().decode(errors="replace").split()
    if done.returncode:
        yield f"{BINARY} ended with {done.returncode}: {' '.join(said)[:200]}"
        return
    # this process may be killed: whoever reads from its end of the pipe sees to the end then
    end = subprocess.Popen(
        ["sh", "-c", 'read -r line; echo quit -t 5 | "$0"', binary], env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        with exported(own):
            yield ""
    finally:
        assert end.stdin is not None
        end.stdin.close()
        try:
            end.wait(SECONDS)
        except subprocess.TimeoutExpired:
            end.kill()
