"""The field `rest` of a manifest: the parts of a REST request that later responses need.

The web server writes it and `did_talk` reads it. In between it lies in the inbox, where other programs may write too,
so intake checks it: `manifest_mac` proves who wrote it, and the types are checked here, since a wrong one would fail
much later, in a list of talks or at the end of the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LAST_MS = 253_402_300_799_999  # the last millisecond of the year 9999, the latest that datetime can hold

FIELDS: Mapping[str, type] = {
    "api": str,  # "talks", "generate-video" or "jobs"
    "by": str,  # the owner of the key
    "tenant": str,  # whose job it is: the name of the key; absent without a key
    "base": str,  # the address of the server that the client used
    "created_ms": int,
    "digest": str,  # of the request, stored for its Idempotency-Key
    "uploads": list,  # ids of the uploads that the job reads
    "source_url": str,
    "audio_url": str,
    "driver_url": str,
    "name": str,
    "config": dict,
    "persist": bool,
    "image_sha256": str,
    "audio_sha256": str,
}


def check(rest: Mapping[str, Any]) -> None:
    """Raises ValueError with what is allowed."""
    for name, value in rest.items():
        if name not in FIELDS:
            raise ValueError(f"an object of {', '.join(FIELDS)}")
        if type(value) is not FIELDS[name]:  # not isinstance: True would pass as an int
            raise ValueError(f"an object whose {name} is of the type {FIELDS[name].__name__}")
    if not 0 <= rest.get("created_ms", 0) <= LAST_MS:
        raise ValueError(f"an object whose created_ms is from 0 to {LAST_MS}")
    if rest.get("tenant") == "":
        raise ValueError("an object whose tenant is a name, or absent")
    if not all(isinstance(upload, str) for upload in rest.get("uploads", ())):
        raise ValueError("an object whose uploads are texts")
