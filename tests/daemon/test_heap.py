"""One heap for all threads: how many arenas glibc reports."""

from __future__ import annotations

import subprocess
import sys

import pytest

ARENAS = """
import ctypes, os, sys, threading
from lipsyncd.daemon.parts import share_heap

if sys.argv[1] == "shared":
    assert share_heap()
bell = threading.Event()

def hold():
    kept = bytearray(5000)  # more than Python's own allocator serves
    bell.wait()

threads = [threading.Thread(target=hold) for _ in range(6)]
for thread in threads:
    thread.start()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
reader, writer = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(writer, b"w"))
assert libc.malloc_info(0, stream) == 0
libc.fclose(stream)
bell.set()
print(os.read(reader, 1 << 16).count(b"<heap nr="))
"""


@pytest.mark.parametrize(("how", "one"), [("shared", True), ("as it is", False)])
def test_threads_share_one_heap_once_the_daemon_has_set_it(how: str, one: bool) -> None:
    ran = subprocess.run([sys.executable, "-c", ARENAS, how], capture_output=True, text=True, check=True, timeout=200)
    assert (int(ran.stdout) == 1) is one
