"""A program: a cloud meets a real limit of the size of its files, and goes on after it.

It runs in a process of its own, since the limit is of a process.
"""

import pathlib
import resource
import sys

import jax

from splitjax.runtime.control import Refused
from tests.runtime.conftest import Here, batches, run_all, same
from tests.runtime.served import SAVED, STEPS, alone, model, start


def limit(size_bytes: int) -> None:
    """No file may grow beyond it; -1: no limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))


def main(folder: pathlib.Path) -> None:
    # A compiled program would not fit under the limit.
    jax.config.update("jax_compilation_cache_dir", None)
    one, steps = model("u"), batches(STEPS)
    want, losses, _ = alone("u", STEPS)
    both = Here(one, folder)
    edge = one.edge(both.dial)
    run, _ = run_all(edge, start(edge, one), steps[:SAVED])
    kept = jax.device_get(run.edge)
    edge.saved(run)
    edge.close()
    [path] = (folder / "slot_0" / "run" / "journal").iterdir()

    def again():
        edge = one.edge(both.dial)
        begun = start(edge, one, tick=run.tick)
        return edge, begun._replace(edge=jax.tree.map(jax.numpy.asarray, kept))

    def refused(work):
        try:
            work()
        except Refused as error:
            return error.code
        finally:
            limit(-1)

    edge, begun = again()
    limit(path.stat().st_size + 300)
    codes = [refused(lambda: run_all(edge, begun, steps[SAVED:]))]  # at the journal
    edge.close()
    edge, begun = again()
    middle, _ = run_all(edge, begun, steps[SAVED:3])
    limit(300)
    codes += [refused(lambda: edge.saved(middle))]  # at the checkpoint
    edge.close()
    edge, begun = again()
    end, found = run_all(edge, begun, steps[SAVED:])
    edge.close()
    both.close()
    same(end.edge, want.edge)
    assert found == losses[SAVED:] and codes == ["full", "full"], codes


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
