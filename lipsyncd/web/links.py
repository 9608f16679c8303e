"""Addresses of results and uploads that open without a key: their query holds a signature.

The signature is an HMAC over the name of the file, with a secret that is made once and kept in `state/link-secret`. It
does not expire: a link works as long as retention keeps the file.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from urllib.parse import quote

from lipsyncd.jobs.did_talk import talk_id
from lipsyncd.storage.secret_file import secret_in

_SIGNATURE_CHARS = 32


class Links:
    """Makes and checks addresses. `signed` is False while no key is configured: then no address needs a signature."""

    def __init__(self, state: Path, *, signed: bool) -> None:
        self.signed = signed
        self._secret = secret_in(state / "link-secret")

    def talk(self, job_id: str, name: str, base: str) -> str:
        """Where D-ID's clients download the video of a job; `base` is an address such as "http://box:8003"."""
        return f"{base}/files/{talk_id(job_id)}/{quote(name, safe='')}.mp4{self._query('result', job_id)}"

    def video(self, job_id: str) -> str:
        """Where clients of the original service download it: a path."""
        return f"/storage/videos/{job_id}.mp4{self._query('result', job_id)}"

    def upload(self, role: str, upload_id: str, name: str, base: str) -> str:
        return f"{base}/files/{role}s/{upload_id}/{quote(name, safe='')}{self._query('upload', upload_id)}"

    def is_signed(self, kind: str, name: str, signature: str) -> bool:
        """Is this the signature of that "result" or "upload"? Takes the same time for every signature."""
        expected = self._signature(kind, name)
        return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass"))

    def _query(self, kind: str, name: str) -> str:
        return f"?sig={self._signature(kind, name)}" if self.signed else ""

    def _signature(self, kind: str, name: str) -> str:
        return hmac.digest(self._secret, f"{kind}\0{name}".encode(), "sha256").hex()[:_SIGNATURE_CHARS]
