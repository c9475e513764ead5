"""Several processes on this machine, joined into one job of JAX."""

import concurrent.futures
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def job(module: str, arguments: list[str]) -> list[subprocess.CompletedProcess]:
    """A process for each argument: `python -m MODULE COORDINATOR PROCESSES NUMBER IT`.

    Args:
      module: under the repository's root.
      arguments: the last of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = [sys.executable, "-m", module, address]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen(
            [*program, str(len(arguments)), str(number), argument],
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number, argument in enumerate(arguments)
    ]
    try:
        # All are read at once: one that waits for a full pipe holds up the others.
        with concurrent.futures.ThreadPoolExecutor(len(children)) as pool:
            told = list(
                pool.map(lambda child: child.communicate(timeout=300), children)
            )
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return [
        subprocess.CompletedProcess(child.args, child.returncode, out, err)
        for child, (out, err) in zip(children, told, strict=True)
    ]
