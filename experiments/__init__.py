"""Programs to launch: `python -m experiments.NAME --config=configs/NAME.py`.

On Linux, where programs must ask for large pages, a program is started again with
glibc's allocator told to ask: a step's buffers are then mapped by pages of 2 MB instead
of 4 KB. `GLIBC_TUNABLES`, once set to anything, is left as it is.
"""

import os
import pathlib
import sys

# Read by glibc (2.35 and later) before a program's first line: none can set it itself.
TUNABLES = "GLIBC_TUNABLES"
LARGE_PAGES = "glibc.malloc.hugetlb=1"


def large_pages(mode: pathlib.Path) -> dict[str, str]:
    """What to add to the environment for large pages; nothing where that is no use.

    Args:
      mode: the kernel's file, that says "madvise" in brackets where one has to ask.

    Example:
      >>> large_pages(pathlib.Path("/no/such/file"))
      {}
    """
    if TUNABLES in os.environ or not mode.is_file():
        return {}
    return {TUNABLES: LARGE_PAGES} if "[madvise]" in mode.read_text() else {}


# So is an argument called only while `python -m` looks for a program in this package:
# before JAX is loaded, and never for who imports it.
if sys.argv[0] == "-m":
    added = large_pages(pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    if added:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **added})
