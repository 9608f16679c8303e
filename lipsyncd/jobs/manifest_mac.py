"""The proof that the REST service wrote a manifest: an HMAC over all of its fields.

Other programs may write into the inbox, too. A manifest names the uploads of clients (`upload:<id>`), and under `rest`
the client whose job it is. So the service signs what it leaves there, and the inbox refuses these two without a valid
signature. The secret lies in the state folder, which only the daemon reads.

The HMAC-SHA256 is computed over canonical JSON: the manifest's fields without `mac`, keys sorted, ASCII, no spaces.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lipsyncd.errors import BadManifest, InputError, InputsLost
from lipsyncd.jobs.job import Job, JobSpec
from lipsyncd.jobs.manifest import Manifest, classify, fields_of, parse

SECRET_FILE = "manifest-secret"  # in the state folder


def signed(manifest: Manifest, secret: bytes) -> Manifest:
    """The manifest with its proof."""
    return replace(manifest, mac=_mac(manifest, secret))


def check(manifest: Manifest, secret: bytes) -> None:
    """Raise `BadManifest` if a manifest without a valid proof holds something that only the REST service may write."""
    uploads = any(source and classify(source) == "upload" for source in (manifest.image, manifest.audio))
    held = [name for name, there in (("rest", manifest.rest is not None), ("upload:", uploads)) if there]
    if manifest.mac is None and not held:
        return
    if manifest.mac is None or not hmac.compare_digest(manifest.mac, _mac(manifest, secret)):
        what = " and ".join(map(repr, held)) or "'mac'"
        raise BadManifest(
            f"the manifest holds {what} and no valid proof (mac) that the REST service of this daemon wrote it",
            remedy="name files of the inbox or addresses, or send the job over REST",
        )


def is_proof_of(data: bytes, spec: JobSpec, secret: bytes) -> bool:
    """Are these the bytes of the manifest with which the REST service ordered exactly this job?"""
    try:
        manifest = parse(data)
        check(manifest, secret)
    except InputError:
        return False
    return manifest.mac is not None and manifest.id == spec.id and _plain(manifest.rest) == _plain(spec.rest)


def as_ordered(spec: JobSpec, job: Job) -> JobSpec:
    """The spec of a job out of a folder that others may write, with what only its row in the ledger may claim.

    Raises `InputsLost` when it names an upload that its order did not name.
    """
    rest = json.loads(job.rest) if job.rest else None
    uploads = {f"upload:{upload_id}" for upload_id in (rest or {}).get("uploads", ())}
    for source in (spec.image_url, spec.audio_url):
        if source is not None and classify(source) == "upload" and source not in uploads:
            raise InputsLost(f"the kept job.json of job {job.id} was changed: its order named no {source}")
    return replace(spec, rest=rest)


def without_tenant(spec: JobSpec) -> JobSpec:
    """The same without what only a proof may claim: such a job is the administrators'."""
    rest = {name: value for name, value in _plain(spec.rest).items() if name not in ("tenant", "uploads")}
    return replace(spec, rest=rest or None)


def _mac(manifest: Manifest, secret: bytes) -> str:
    fields = {name: value for name, value in fields_of(manifest).items() if name != "mac"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hmac.digest(secret, text.encode(), "sha256").hex()


def _plain(rest: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(rest or {})
