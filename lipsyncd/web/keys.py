"""The keys that clients of the REST service must send: where they are configured, whose they are, when one is needed.

Each key belongs to a tenant, a client with jobs and uploads of its own. Only digests of keys are kept. `web.access`
checks the keys that requests bring.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.did_talk import OWNER
from lipsyncd.settings import Web
from lipsyncd.settings.rules import UNSET

KEY_VARIABLE = "LIPSYNCD_API_KEY"
_CREDENTIAL = "api-key"
_SHORTEST_KEY = 8
_LONGEST_TENANT = 200
_TENANT_DIGITS = 16  # of the digest of a key without a user
_ADMIN = re.compile(r"(.*\S)[ \t]+admin")


@dataclass(frozen=True)
class Key:
    """One key.

    owner    the name in D-ID's answers
    digests  the SHA-256 of each form in which clients may send it
    tenant   the name under which its jobs and uploads are kept
    admin    it has the jobs and uploads of all tenants, and those of the folder
    """

    owner: str
    digests: tuple[bytes, ...]
    tenant: str
    admin: bool = False


def key_of(text: str) -> Key:
    """The key for a configured text: `user:password`, or one word; an administrator's has the word `admin` behind it.

    Clients may also send D-ID's form, in which the user is base64, perhaps without `=`, and the password is not.
    """
    found = _ADMIN.fullmatch(text)
    secret = found[1] if found else text
    user, colon, password = secret.partition(":")
    forms = [secret]
    if colon:
        coded = base64.b64encode(user.encode("utf-8", "surrogateescape")).decode()
        forms += dict.fromkeys((f"{coded}:{password}", f"{coded.rstrip('=')}:{password}"))
    named = bool(colon and user and user.isprintable() and len(user) <= _LONGEST_TENANT)
    tenant = user if named else digest_of(secret).hex()[:_TENANT_DIGITS]
    owner = OWNER if not colon else tenant
    return Key(owner, tuple(digest_of(form) for form in forms), tenant, admin=found is not None)


def distinct(keys: Iterable[Key]) -> list[Key]:
    """The keys without repetitions: two are equal when clients may send the same text for both.

    A key that is an administrator's in one place is so everywhere.
    """
    found: list[Key] = []
    for key in keys:
        same = next((one for one in found if set(one.digests) & set(key.digests)), None)
        if same is None:
            found.append(key)
            continue
        digests = tuple(dict.fromkeys((*same.digests, *key.digests)))
        found[found.index(same)] = replace(same, digests=digests, admin=same.admin or key.admin)
    return found


def without_admin(keys: Sequence[Key]) -> bool:
    """Are there several keys, and none an administrator's? Then no client sees the jobs of the folder and of before."""
    return len(keys) > 1 and not any(key.admin for key in keys)


def read_keys(settings: Web, environ: Mapping[str, str] = os.environ) -> list[Key]:
    """All keys: of systemd's credentials, of `web.api_key_file` (one on each line) and of the environment.

    Equal ones count once.

    Raises `ConfigError` for a file that cannot be read or that holds no key, for a key that is too short, and if there
    is no key at all although other machines could reach the server.
    """
    texts: list[tuple[str, str]] = []
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(folder) / _CREDENTIAL
        if path.exists():  # the unit gives an empty one where the administrator has made none
            texts += [(str(path), line) for line in _lines(path, may_be_empty=True)]
    if settings.api_key_file != UNSET:
        texts += [(str(settings.api_key_file), line) for line in _lines(settings.api_key_file)]
    if text := environ.get(KEY_VARIABLE, "").strip():
        texts.append((f"environment {KEY_VARIABLE}", text))
    for origin, text in texts:
        length = len(_ADMIN.sub(r"\1", text))
        if length < _SHORTEST_KEY:
            raise ConfigError(
                f"a key read from {origin} has {length} characters", remedy=f"allowed: {_SHORTEST_KEY} or more"
            )
    if not texts and not settings.allow_anonymous and not is_loopback(settings.host):
        raise ConfigError(
            f"web.host is {settings.host!r} and no key is configured, so other machines could use this server",
            remedy=f"set web.api_key_file or {KEY_VARIABLE}, or write web.allow_anonymous = true",
        )
    return distinct(key_of(text) for _, text in texts)


def _lines(path: Path, *, may_be_empty: bool = False) -> list[str]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the keys in {path}: {error}", remedy="correct web.api_key_file") from None
    if mode & stat.S_IROTH:
        raise ConfigError(f"every user of this machine may read the keys in {path}", remedy=f"chmod o-r {path}")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found and not may_be_empty:
        raise ConfigError(f"{path} holds no key", remedy="put one key on each line, as user:password or one word")
    return found


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def is_address(name: str) -> bool:
    """Is it an IP address and not a name?"""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Is it an address that only this machine reaches?"""
    return host.lower() == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)
