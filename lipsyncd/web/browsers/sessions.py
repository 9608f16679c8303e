"""The sign-ins of browsers: each has a random token, which its browser sends as a cookie, and belongs to one key.

They outlive the daemon in `state/sessions.json`, which holds neither tokens nor keys: only their HMACs under a secret
of its own file. A sign-in ends when its browser signs out, when the configured keys change, when it was not used for
long, and after a month in any case. That is decided when it is used, so it costs nothing otherwise.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lipsyncd.storage.files import read_json, write_json
from lipsyncd.storage.secret_file import secret_in
from lipsyncd.web.keys import Key

log = logging.getLogger(__name__)

FILE, SECRET_FILE = "sessions.json", "session-secret"
LONGEST_S = 30 * 86_400.0
LONGEST_IDLE_S = 7 * 86_400.0
MOST_OF_ONE_KEY = 32
_TOKEN_BYTES = 32
_MOST_TOKEN_CHARS = 64
_MOST_FILE_BYTES = 16 << 20
_SAVED_EVERY_S = 3600.0  # the time of the last use


@dataclass
class Session:
    """One sign-in.

    id       the HMAC of its token
    key      the HMAC of its key
    began_s  when it was made, and when it was last used: seconds of the wall clock, since it outlives the daemon
    """

    id: str
    key: str
    began_s: float
    used_s: float

    def is_over(self, now_s: float) -> bool:
        """A clock that was set back makes no session older."""
        return now_s - self.began_s > LONGEST_S or now_s - self.used_s > LONGEST_IDLE_S


class Sessions:
    """The sign-ins of one server. Any thread may call; what writes the file is named so."""

    def __init__(self, state: Path, keys: Sequence[Key], *, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._path = state / FILE
        self._clock = clock
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._saved_s = clock()
        self._sessions: dict[str, Session] = {}
        self._keys: dict[str, Key] = {}  # by their HMAC
        self._fingerprint = ""
        self._take(keys)
        self._load()

    @cached_property
    def _secret(self) -> bytes:
        return secret_in(self._state / SECRET_FILE)

    def take_keys(self, keys: Sequence[Key]) -> None:
        """These are the keys now. If they are others than before, every sign-in ends. Writes the file then."""
        if self._take(keys):
            self.save()

    def _take(self, keys: Sequence[Key]) -> bool:
        marks = {self._hmac(b"key", key.digests[0]): key for key in keys}
        fingerprint = self._fingerprint_of(keys)
        with self._lock:
            changed = fingerprint != self._fingerprint
            if changed:
                self._sessions = {}
            self._keys, self._fingerprint = marks, fingerprint
        return changed

    def key_of(self, token: str) -> tuple[str, Key] | None:
        """The id of the sign-in with that token, and its key; None if there is none any more. It counts as a use."""
        if not self._sessions or not token or len(token) > _MOST_TOKEN_CHARS or not token.isascii():
            return None
        session_id, now_s = self._hmac(b"token", token.encode()), self._clock()
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                return None
            if session.is_over(now_s):
                del self._sessions[session_id]
                return None
            session.used_s = now_s
            return session_id, self._keys[session.key]

    def sign_in(self, key: Key) -> str:
        """A new sign-in with that key; returns its token. Writes the file.

        The one that was not used for longest ends when a key has `MOST_OF_ONE_KEY` of them.
        """
        token, now_s = secrets.token_urlsafe(_TOKEN_BYTES), self._clock()
        mark = self._hmac(b"key", key.digests[0])
        session = Session(self._hmac(b"token", token.encode()), mark, now_s, now_s)
        with self._lock:
            if mark not in self._keys:  # the keys have just changed
                return token
            self._sessions = {one.id: one for one in self._sessions.values() if not one.is_over(now_s)}
            mine = sorted((one for one in self._sessions.values() if one.key == mark), key=lambda one: one.used_s)
            for one in mine[: max(0, len(mine) - MOST_OF_ONE_KEY + 1)]:
                del self._sessions[one.id]
            self._sessions[session.id] = session
        self.save()
        return token

    def sign_out(self, session_id: str) -> None:
        """End a sign-in. Writes the file."""
        with self._lock:
            self._sessions.pop(session_id, None)
        self.save()

    @property
    def is_stale(self) -> bool:
        """Is the file so old that it should be written again, with the times of the last uses?"""
        return bool(self._sessions) and abs(self._clock() - self._saved_s) > _SAVED_EVERY_S

    def save(self) -> None:
        """Write the file. Where that is impossible, it is removed, so that no restart brings back an ended sign-in."""
        with self._writing:
            with self._lock:
                rows = [[one.id, one.key, one.began_s, one.used_s] for one in self._sessions.values()]
                content = {"keys": self._fingerprint, "sessions": rows}
                self._saved_s = self._clock()
            try:
                if rows:
                    write_json(self._path, content)
                else:
                    self._path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("sign-ins end when the daemon stops: %s cannot be written: %s", self._path, error.strerror)
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)

    def _load(self) -> None:
        """Read the file. One of other keys, or that is damaged, is removed: those keys may come back."""
        try:
            content = read_json(self._path, most_bytes=_MOST_FILE_BYTES) or {}
            if hmac.compare_digest(str(content.get("keys")).encode(), self._fingerprint.encode()):
                found = [Session(str(a), str(b), float(c), float(d)) for a, b, c, d in content["sessions"]]
                self._sessions = {one.id: one for one in found if one.key in self._keys}
        except (OSError, KeyError, TypeError, ValueError) as error:
            log.warning("sign-ins of before are lost: %s cannot be read: %s", self._path, error)
        if not self._sessions:
            self.save()

    def _fingerprint_of(self, keys: Sequence[Key]) -> str:
        """The same for the same keys in any order; another one for an administrator who no longer is one."""
        parts = sorted(b"".join((*key.digests, bytes([key.admin]))) for key in keys)
        return self._hmac(b"keys", b"".join(parts)) if keys else ""

    def _hmac(self, kind: bytes, value: bytes) -> str:
        return hmac.digest(self._secret, kind + b"\0" + value, "sha256").hex()
