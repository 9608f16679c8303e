"""The token of a Ray cluster: anyone who has it runs programs as the user of the cluster's processes.

Ray 2.60.0 makes its file readable for all users, so it is made here first. `python -m lipsyncd.cluster.auth_token`
does so before Ray starts.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from lipsyncd.errors import ConfigError

_MAKE = "make it with `python -m lipsyncd.cluster.auth_token` and copy it to each machine of the cluster"


def token_file(environ: Mapping[str, str]) -> Path:
    """Where Ray reads the token, unless it stands in RAY_AUTH_TOKEN."""
    given = environ.get("RAY_AUTH_TOKEN_PATH", "")
    return Path(given) if given else Path(environ.get("HOME") or Path.home()) / ".ray" / "auth_token"


def fault(environ: Mapping[str, str] = os.environ) -> str:
    """Why there is no token that only this user can read; "" if there is one."""
    if environ.get("RAY_AUTH_TOKEN", "").strip():
        return ""
    path = token_file(environ)
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            return f"{path} is no regular file"
        if info.st_uid != os.geteuid():
            return f"{path} belongs to user {info.st_uid}, not to {os.geteuid()}"
        if info.st_mode & 0o077:
            return f"{path} has mode {info.st_mode & 0o777:04o}, so other users can use the cluster: `chmod 600 {path}`"
        if not path.read_bytes().strip():
            return f"{path} is empty"
    except FileNotFoundError:
        return f"{path} does not exist"
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def require(*, allow_none: bool, environ: Mapping[str, str] = os.environ) -> str:
    """The value of RAY_AUTH_MODE. Raises `ConfigError` without a token, unless `allow_none`."""
    found = fault(environ)
    if not found:
        return "token"
    if allow_none and not token_file(environ).exists():
        return "disabled"
    raise ConfigError(f"the token of the Ray cluster cannot be used: {found}", remedy=_MAKE)


def make(environ: Mapping[str, str] = os.environ) -> Path:
    """Make the file unless it exists; only its owner can read it."""
    path = token_file(environ)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(file.fileno())
    return path


if __name__ == "__main__":
    made = make()
    if wrong := fault():
        raise SystemExit(wrong)
    print(made)
