"""Counted in a process of its own: the setting is for good."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource
import numpy as np
from splitjax.train.allocator import keep_freed

if {kept}:
    assert keep_freed()
found = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2_500_000, np.float32) for _ in range(6)]
    del arrays
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(found[1:]))
"""


def faults(kept):
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(kept=kept)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")
def test_what_is_freed_is_used_again():
    assert faults(False) > 1000 > 100 > faults(True)
