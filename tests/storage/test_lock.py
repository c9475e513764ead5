import subprocess
import sys

import pytest

from splitjax.storage.lock import InUse, exclusive

HOLD = """
import sys
from splitjax.storage.lock import exclusive
with exclusive(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_its_end_frees_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match=f"process {other.pid}"):
            with exclusive(tmp_path):
                pass
        other.kill()  # nothing is cleaned up, and still nothing stays locked
        other.wait()
    with exclusive(tmp_path):
        pass


def test_a_folder_is_made(tmp_path):
    with exclusive(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
