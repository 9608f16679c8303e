"""Where a finished video goes: checked before the render, filled in one step after it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from lipsyncd.errors import NameTaken, UsageError
from lipsyncd.storage.files import copy_hashed, fsync_folder, open_regular, rename_no_replace, umask

_OVERWRITE = "choose another name, or overwrite it (--force, in Python force=True)"


def target_of(out: Path | None, name: str) -> Path:
    """The file for a video: `out` itself, NAME.mp4 in it if it is a folder, or in the working folder without it."""
    if out is None:
        return Path(f"{name}.mp4")
    return out / f"{name}.mp4" if out.is_dir() else out


def check_target(target: Path, inputs: Iterable[Path], *, force: bool) -> None:
    """Raise what will keep a video from being written to `target`: `NameTaken`, `UsageError`."""
    folder = target.parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r} for {target.name}", remedy="make it, or name another one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"this user cannot write into {str(folder)!r}", remedy="name a file in another folder")
    if target.is_dir():
        raise UsageError(f"{str(target)!r} is a folder", remedy="name a file, such as video.mp4")
    if any(target.exists() and source.exists() and target.samefile(source) for source in inputs):
        raise UsageError(f"{str(target)!r} is one of the inputs", remedy="name another file for the video")
    if os.path.lexists(target) and not force:
        raise NameTaken(f"{str(target)!r} exists already", remedy=_OVERWRITE)


def deliver(video: Path, target: Path, *, force: bool) -> None:
    """Copy a video to `target`, as `arriving` gives it its name."""
    descriptor = open_regular(video)
    try:
        with arriving(target, force=force) as hidden:
            copy_hashed(descriptor, hidden, mode=0o666 & ~umask())
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def arriving(target: Path, *, force: bool) -> Iterator[Path]:
    """A hidden name in the target's folder, for a file to be made there. After the block it gets the target's name.

    Raises `NameTaken` when a file has come under that name meanwhile and `force` is False. Then, and when the block is
    left by an exception, nothing is left there.
    """
    hidden = target.with_name(f".{secrets.token_hex(8)}.mp4.part")
    try:
        yield hidden
        if force:
            hidden.replace(target)
        else:
            rename_no_replace(hidden, target)
    except FileExistsError:
        raise NameTaken(f"{str(target)!r} exists by now", remedy=_OVERWRITE) from None
    finally:
        hidden.unlink(missing_ok=True)
    fsync_folder(target.parent)
