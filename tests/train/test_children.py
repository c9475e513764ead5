"""Processes that a process of ours starts."""

import os
import signal
import subprocess
import sys
import time

PARENT = """
import sys
from splitjax.train.processes import process
with process(["-c", sys.argv[1]], None) as child:
    print(child.pid, flush=True)
    child.wait()
"""
CHILD = """
import signal, sys, time
from splitjax.train.processes import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(300)
"""

TOLD = """
import os, signal, sys
from splitjax.train.processes import told_to_end
wait, left = told_to_end(), [30]
def again(frame, event, argument):
    if left[0]:
        left[0] -= 1
        os.kill(os.getpid(), signal.SIGTERM)
sys.setprofile(again)  # a signal wherever the handler of another one may be
os.getpid()
wait()
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # Who has lost its parent may have nobody to reap it.
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_a_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True
    )
    with parent:
        child, ready = (parent.stdout.readline().strip() for _ in range(2))
        assert ready == "ready" and not gone(int(child))
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        end = time.monotonic() + 60
        while not gone(int(child)) and time.monotonic() < end:
            time.sleep(0.02)
        assert gone(int(child))


def test_who_is_told_to_end_many_times_ends():
    """A second signal may find the handler of the first at work."""
    told = subprocess.run([sys.executable, "-c", TOLD], timeout=100)
    assert told.returncode == 0
