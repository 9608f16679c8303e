"""Put a job into the inbox: whole files under new names, the manifest last.

Works with and without a running daemon. The files are checked first, so that the user of the command learns of a wrong
one at once.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lipsyncd.errors import BadManifest, BadName, InboxUnavailable, MissingFile, UsageError
from lipsyncd.jobs.job import IMAGE, new_id
from lipsyncd.jobs.manifest import Manifest, build, classify, clean_file_name, clean_out_name, to_json
from lipsyncd.media import Kind, check_input, examine
from lipsyncd.media.check_input import PictureLimits
from lipsyncd.storage.files import copy_into, open_regular
from lipsyncd.storage.folders import INBOX_OF, Folders
from lipsyncd.storage.open_folder import OpenFolder, open_to_group
from lipsyncd.storage.shared_folders import SharedFolder

_MODE = 0o664
_OWN_MODE = 0o640  # of what REST leaves
_SUFFIX = {Kind.JPEG: ".jpg"}


@dataclass(frozen=True)
class Submission:
    """The job that was dropped. `file` is its manifest as `lipsyncd status` names it, with the queue before it."""

    job_id: str
    out_name: str
    file: str


def manifest_of(**given: Any) -> Manifest:
    """The manifest of a command line, or of a Python call. Raises `UsageError` with what is wrong.

    options  of the renderer, each as "KEY=VALUE"; or a mapping of values
    """
    options = given.pop("options", ())
    options = dict(options if isinstance(options, Mapping) else map(_option, options))
    fields = {
        "id": given.pop("job_id", None),
        "out_name": given.pop("name", None),
        "lipsyncd": options or None,
        **given,
    }
    image, audio = fields["image"], fields["audio"]
    if (audio is None) == (fields["text"] is None):
        raise UsageError("give either AUDIO or --text")
    # Paths of this machine are no names in the inbox: they are checked when they are opened.
    local = {role: path for role, path in (("image", image), ("audio", audio)) if path and classify(path) == "file"}
    try:
        manifest = build({k: v for k, v in fields.items() if v is not None} | dict.fromkeys(local, "file"))
    except (BadManifest, BadName) as error:
        of_manifests = error.remedy == BadManifest.default_remedy  # there is none to correct
        raise UsageError(error.message, remedy="" if of_manifests else error.remedy) from error
    if any(source and classify(source) == "upload" for source in (manifest.image, manifest.audio)):
        raise UsageError("only clients of REST may name uploads; give a file or an address")
    return replace(manifest, image=local.get("image", manifest.image), audio=local.get("audio", manifest.audio))


def _option(pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise UsageError(f"--option {pair!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def drop(folders: Folders, manifest: Manifest, *, limits: PictureLimits, queue: str = "") -> Submission:
    """Drop a manifest and the files that it names. `image` and `audio` are paths of this machine, or addresses.

    limits  of pictures: the section `intake` of the settings
    queue   which folder of the inbox they go to; "" is the inbox itself

    Raises `UsageError` for a queue that is none, `InboxUnavailable`; `MissingFile` or what is wrong with a file.
    """
    inbox = _inbox_of(folders, queue)
    job_id = manifest.id or new_id()
    out_name = manifest.out_name or natural_name(manifest)
    files: dict[str, tuple[Path, str]] = {}
    for role, source in (("image", manifest.image), ("audio", manifest.audio)):
        if source is not None and classify(source) == "file":
            path = Path(source)
            suffix = check_file(path, role, limits)
            files[role] = (path, f"{clean_file_name(path.stem)[:100]}.{job_id[-12:]}{suffix}")
    file = f"{out_name[:100]}.{job_id[-12:]}.json"
    named: dict[str, Any] = {role: name for role, (_, name) in files.items()}
    whole = replace(manifest, id=job_id, out_name=out_name, whole=bool(named), **named)
    try:
        with inbox.opened() as folder:
            if folder is None:
                raise InboxUnavailable(inbox.absence)
            for path, name in files.values():
                _copy_in(folder, path, name)
            _write_in(folder, file, to_json(whole))
    except OSError as error:
        raise InboxUnavailable(
            f"cannot write into {inbox.where}: {error.strerror}",
            remedy="join the group of the inbox, or drop the files with a user that may write it",
        ) from error
    return Submission(job_id, out_name, f"{queue}/{file}" if queue else file)


def check_queue(folders: Folders, queue: str) -> str:
    """The kind of folder that a queue is; "" is the inbox itself. Raises `UsageError` for a queue that is none."""
    kind = INBOX_OF.format(queue) if queue else "inbox"
    if kind not in folders.shared:
        known = [kind.partition("/")[2] for kind in folders.shared if "/" in kind]
        raise UsageError(
            f"there is no queue {queue!r}",
            remedy=f"queues are {', '.join(known)}" if known else "give the settings file a table [queue.NAME] for it",
        )
    return kind


def _inbox_of(folders: Folders, queue: str) -> SharedFolder:
    kind = check_queue(folders, queue)
    if kind not in folders.known():
        if not _are_own(folders):
            raise InboxUnavailable(
                f"{folders.shared[kind].where} was not made yet",
                remedy="start the daemon once, or run `lipsyncd init` as its user",
            )
        folders.initialise()
    return folders.shared[kind]


def _are_own(folders: Folders) -> bool:
    """Would the folders be this user's own, and not a service's? Decided by the owner of what exists of their path."""
    there = next(path for path in (folders.state, *folders.state.parents) if path.exists())
    return there.stat().st_uid == os.geteuid()


def leave(folders: Folders, manifest: Manifest, file_name: str) -> None:
    """Drop a manifest of the daemon's own that names no file of this machine, as `file_name`.

    Other users of the inbox cannot change it: it would prove nothing any more, and its client's job would be lost.
    Raises `InboxUnavailable`.
    """
    inbox = folders.shared["inbox"]
    try:
        with inbox.opened() as folder:
            if folder is None:
                raise InboxUnavailable(inbox.absence)
            _write_in(folder, file_name, to_json(manifest), mode=_OWN_MODE, prepare=None)
    except OSError as error:
        raise InboxUnavailable(f"cannot write into {inbox.where}: {error.strerror}") from error


def natural_name(manifest: Manifest) -> str:
    """`anna` for anna.png with anna.wav; `anna-hello` for anna.png with hello.wav. An address's query is no name."""
    sources = [source for source in (manifest.image, manifest.audio) if source is not None]
    places = [urlsplit(source).path if classify(source) == "url" else source for source in sources]
    stems = [Path(place.rpartition("/")[2]).stem for place in places]
    return clean_out_name("-".join(dict.fromkeys(stems)))


def check_file(path: Path, role: str, limits: PictureLimits) -> str:
    """The suffix for the content of a file, by its structure. Raises the reason why it cannot be used."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise MissingFile(
            f"cannot read {str(path)!r}: {error.strerror}", remedy="name a file that you can read"
        ) from None
    try:
        size_bytes = os.fstat(descriptor).st_size
        structure = examine(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    if role == IMAGE:
        fault = check_input.picture_fault(structure, path.name, size_bytes=size_bytes, limits=limits)
    else:
        fault = check_input.sound_fault(structure, path.name, size_bytes=size_bytes)
    if fault is not None:
        raise fault
    assert structure.kind is not None  # otherwise it is a fault
    return _SUFFIX.get(structure.kind, f".{structure.kind.value}")


def _copy_in(inbox: OpenFolder, path: Path, name: str) -> None:
    source, hidden = open_regular(path), _hidden(name)
    try:
        target = inbox.create(hidden, _MODE)
        open_to_group(target)
        copy_into(source, target)
        inbox.rename(hidden, inbox, name)
    except BaseException:
        inbox.remove(hidden)
        raise
    finally:
        os.close(source)


def _write_in(
    inbox: OpenFolder,
    name: str,
    content: bytes,
    *,
    mode: int = _MODE,
    prepare: Callable[[int], None] | None = open_to_group,
) -> None:
    hidden = _hidden(name)
    try:
        inbox.write(hidden, content, mode=mode, prepare=prepare)
        inbox.rename(hidden, inbox, name)
    except BaseException:
        inbox.remove(hidden)
        raise
    inbox.fsync()


def _hidden(name: str) -> str:
    """A name that the inbox's scan leaves alone, and that no other user can foresee."""
    return f".{name}.{secrets.token_hex(4)}.part"
