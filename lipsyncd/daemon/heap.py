"""One heap for all threads of the daemon.

glibc gives each thread an arena of its own and never moves free memory between them, so that what one thread asks for
and another gives back leaves holes in all of them: several KiB a job were measured. Threads of Python hardly ever ask
for memory at the same moment, so nothing is won by so many arenas. Children do not inherit this: a renderer's threads
work outside of Python's lock and need theirs.
"""

from __future__ import annotations

import ctypes

_ARENA_MAX = -8  # M_ARENA_MAX of <malloc.h>


def share() -> bool:
    """Let threads that start from now on share the first one's heap; False where the C library knows no arenas."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_ARENA_MAX, 1))
