"""How the C library keeps the memory that a step gives back."""

import ctypes
import sys

# Of glibc's malloc.h; the largest threshold that it takes is half of an arena's heap.
TRIM, PAD, MAP = -1, -2, -3
HEAP, MAPPED, KEPT = 2**26, 2**25, 2**31 - 1


def keep_freed() -> bool:
    """Has this process keep freed memory for what it allocates next.

    Buffers of some megabytes, as codecs and steps make them, go back to the system
    when they are freed, and every page of the next ones is then new: it is mapped and
    zeroed when it is first touched. Up to 2 GB a thread's heap stay with the process
    instead. Buffers above 32 MB come and go as ever.

    Returns:
      Whether there is a glibc to be told so; elsewhere nothing happens.

    Example:
      >>> keep_freed() == sys.platform.startswith("linux")
      True
    """
    if not sys.platform.startswith("linux"):
        return False
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is None:
        return False
    given = ((MAP, MAPPED), (TRIM, KEPT), (PAD, HEAP))
    return all(tune(name, value) == 1 for name, value in given)
