"""Landlock: deny this process, and every process it starts, all files except those listed.

An ordinary process may restrict itself without privileges, and cannot lift the restriction again. Besides files,
Landlock denies TCP (since ABI 4), device ioctls (5), and abstract unix sockets of and signals to other processes (6).
It does not cover UDP.

Owns the three system calls. Leaves the choice of files to `jail`.
Source: Linux, Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

# Rights on a file or a folder, as bits of the kernel's `access_fs`.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = (1 << bit for bit in (0, 1, 2, 3, 5))
_MAKE_REGULAR, _TRUNCATE, _IOCTL_DEVICE = (1 << bit for bit in (8, 14, 15))

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
RUN = READ | _EXECUTE
WRITE = READ | _WRITE_FILE | _TRUNCATE | _MAKE_REGULAR | _REMOVE_FILE  # regular files alone: no links, no folders
CONTROL = READ | _WRITE_FILE | _IOCTL_DEVICE

_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights each ABI has; later ones have no more

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_PATH_BENEATH = 1
_ALL_TCP = 0b11  # bind, connect
_ALL_SCOPES = 0b11  # abstract unix sockets, signals

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """The kernel's version of Landlock; 0 where there is none, or where a system call filter blocks it."""
    version: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    return max(version, 0)


def restrict(rules: Iterable[tuple[str, int]]) -> int:
    """Allow this process only the files and folders in `rules`, each with `LIST`, `READ`, `RUN`, `WRITE` or `CONTROL`.

    A folder's right covers everything below it. The process must have set no_new_privs. Returns the ABI that was used;
    with 0 nothing has changed. Raises OSError, also when a path in `rules` does not exist.
    """
    version = abi()
    if not version:
        return 0
    known = (1 << _FS_BITS[min(version, 5)]) - 1
    # A kernel that has fewer fields accepts the longer struct as long as the rest is zero.
    fields = struct.pack("=QQQ", known, _ALL_TCP if version >= 4 else 0, _ALL_SCOPES if version >= 6 else 0)
    ruleset = _call(_CREATE_RULESET, fields, ctypes.c_size_t(len(fields)), ctypes.c_uint32(0))
    try:
        for path, rights in rules:
            _allow(ruleset, path, rights & known)
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result
