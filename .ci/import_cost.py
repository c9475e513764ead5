"""Checks that `import splitjax` is light: few modules, little time beyond JAX.

Interleaves fresh processes and compares the fastest of each kind, so that a busy
machine does not decide the result.
"""

import importlib.util
import pathlib
import subprocess
import sys

RUNS = 5
LIMIT_SECONDS = 0.5
HEAVY = ("flax.nnx", "tensorflow", "tensorflow_datasets", "grpc", "qwix", "torch")


def run(code: str) -> str:
    """Returns what `code` writes to its output in a fresh interpreter."""
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def seconds(imports: str) -> float:
    """Returns how long the statement `imports` takes in a fresh interpreter."""
    clock = "time.perf_counter()"
    return float(run(f"import time; t = {clock}; {imports}; print({clock} - t)"))


def main() -> None:
    """Exits with a message if the import is heavy or the wheel is incomplete."""
    found = importlib.util.find_spec("splitjax")
    if found is None or found.origin is None:
        sys.exit("splitjax is not installed")
    if not pathlib.Path(found.origin).with_name("py.typed").exists():
        sys.exit("the wheel lacks py.typed")

    loaded = run("import sys, splitjax; print(*sys.modules)").split()
    if heavy := [name for name in HEAVY if name in loaded]:
        sys.exit(f"import splitjax loads {heavy}: import them where they are used")

    pairs = [(seconds("import jax"), seconds("import splitjax")) for _ in range(RUNS)]
    jax, ours = (min(column) for column in zip(*pairs, strict=True))
    print(f"import jax {jax:.2f} s, import splitjax {ours:.2f} s")
    if ours - jax > LIMIT_SECONDS:
        sys.exit(f"{ours - jax:.2f} s more than JAX; the limit is {LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()
