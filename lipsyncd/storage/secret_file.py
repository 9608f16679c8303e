"""Secrets of our own in the state folder: random bytes, made once, readable by the daemon alone."""

from __future__ import annotations

import secrets
from pathlib import Path

from lipsyncd.storage.files import replace_durably

SECRET_BYTES = 32


def secret_in(path: Path) -> bytes:
    """The 32 bytes in that file. The first use makes them: they are durable before anything is signed with them.

    Raises OSError when the file cannot be read or written; an unreadable secret is never replaced by another one.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = b""
    if len(found) != SECRET_BYTES:
        found = secrets.token_bytes(SECRET_BYTES)
        replace_durably(path, found, mode=0o600)
    return found
