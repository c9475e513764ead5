"""DP-KFAC on four devices of several processes, for `test_f7`.

It joins a job and prints the parameters after some steps:
`python -m tests.systems.dp_kfac_process COORDINATOR PROCESSES NUMBER STEPS`.
"""

import json
import sys

import jax
import numpy as np

from splitjax.core.tree import flat
from splitjax.parallel.mesh import join_processes
from tests.systems.test_dp_kfac import data, on_mesh


def main(coordinator: str, processes: str, number: str, steps: str) -> None:
    """Prints the numbers of each leaf that is no tap, as JSON."""
    jax.config.update("jax_num_cpu_devices", 4 // int(processes))
    join_processes(coordinator, processes=int(processes), number=int(number))
    run, params, state = on_mesh(4, {})
    for step in range(int(steps)):
        params, state = run(params, state, np.asarray(data(16, seed=step)))
    found = {
        name: np.ravel(leaf.addressable_data(0)).tolist()
        for name, leaf in flat(params).items()
        if "tap" not in name
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
