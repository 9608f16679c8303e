"""What is kept of a REST client's request beside its job: the field `rest` of a manifest.

The web server writes it and `talk` tells it again. In between it lies in the inbox, where others may write too, so its
grammar is held there: a wrong type would come out much later, in somebody's list of talks or at the end of the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAST_MS = 253_402_300_799_999  # the last instant of the year 9999, where dates end

FIELDS: Mapping[str, type] = {
    "api": str,  # "talks" or "generate-video"
    "by": str,  # the name of the key
    "base": str,  # where the client reached the server
    "created_ms": int,
    "digest": str,  # of the request, for its Idempotency-Key
    "uploads": list,  # ids that the job reads
    "source_url": str,
    "audio_url": str,
    "driver_url": str,
    "name": str,
    "config": dict,
    "persist": bool,
    "image_sha256": str,
    "audio_sha256": str,
}


def check(said: Mapping[str, Any]) -> None:
    """Raises ValueError with what is allowed."""
    for name, value in said.items():
        if name not in FIELDS:
            raise ValueError(f"an object of {', '.join(FIELDS)}")
        if type(value) is not FIELDS[name]:  # not isinstance: True is no number
            raise ValueError(f"an object whose {name} is of the type {FIELDS[name].__name__}")
    if not 0 <= said.get("created_ms", 0) <= LAST_MS:
        raise ValueError(f"an object whose created_ms is from 0 to {LAST_MS}")
    if not all(isinstance(upload, str) for upload in said.get("uploads", ())):
        raise ValueError("an object whose uploads are texts")
