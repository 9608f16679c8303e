"""Remove names from a shared folder that others may exchange at any moment.

What lies under a name is first renamed into our hidden folder, where no one else can reach it. Only there it is proved
to be what we want to remove. Then it is removed, or gets its name back.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self, TypeAlias

from lipsyncd.jobs.job import Identity
from lipsyncd.storage.failpoints import reach
from lipsyncd.storage.files import NotRegular
from lipsyncd.storage.open_folder import Name, OpenFolder

log = logging.getLogger(__name__)

IsOurs: TypeAlias = Callable[[OpenFolder, Name], bool]  # see `Removal.take`

_TAKEN = "gone-"  # in the hidden folder: what is being removed, under its own name


class Removal:
    """Removes names from the shared folder `root` by way of our hidden folder in it, `private`."""

    def __init__(self, private: OpenFolder, root: OpenFolder) -> None:
        self._private = private
        self._root = root
        self._folders: dict[str, OpenFolder] = {}  # by their names in `private`

    def take(self, folder: OpenFolder, name: Name, is_ours: IsOurs) -> bool:
        """Take what lies in `folder` under that name; False when there is nothing, or when it is not ours.

        Raises OSError: then it has its name again, or what is left of it.

        folder   the shared folder, or one within it
        is_ours  looks at it in the folder where it lies then, and may remove it there. What it leaves and calls ours
                 is removed here; what is not ours gets its name back.
        """
        here = self._open(folder)
        try:
            folder.rename(name, here, name)
        except FileNotFoundError:
            return False
        reach("removal-taken")
        try:
            ours = is_ours(here, name)
            if ours:
                here.remove_any(name)
        except BaseException:  # what is left of it gets its name back, so that it can be tried again
            put_back(here, folder, name)
            raise
        if not ours:
            put_back(here, folder, name)
        return ours

    def take_file(self, folder: OpenFolder, name: Name, expected: Identity) -> bool:
        """Take a file that still has this identity; the time of its last change of status may differ."""

        def is_ours(here: OpenFolder, name: Name) -> bool:
            found = here.identity(name)
            return found is not None and _same_content(found, expected)

        return self.take(folder, name, is_ours)

    def fsync(self) -> None:
        """Make what was removed durable: after a power cut, the next start would put it back."""
        for folder in self._folders.values():
            folder.fsync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for name, folder in self._folders.items():
            folder.close()
            for _ in range(2):  # where the disk fails twice, or something could not be put back, the next start goes on
                with contextlib.suppress(OSError):
                    self._private.remove_folder(name)
                    break
        self._folders = {}

    def _open(self, folder: OpenFolder) -> OpenFolder:
        """Where things from that folder are taken to. Its name tells the next start where they came from."""
        outer = folder.where.removeprefix(self._root.where).removeprefix("/")
        known = next((name for name in self._folders if name.partition(".")[2] == outer), None)
        if known is not None:
            return self._folders[known]
        name = f"{_TAKEN}{os.urandom(6).hex()}.{outer}"
        self._folders[name] = made = self._private.make_new(name, 0o700)
        return made


def put_back(here: OpenFolder, folder: OpenFolder, name: Name) -> None:
    """Give a thing its name back, or, when another has that by now, one beside it. Never replaces."""
    text = os.fsdecode(name)
    for number in range(1, 100):
        try:
            here.rename(name, folder, os.fsencode(text if number == 1 else f"{text} ({number})"))
        except FileExistsError:
            continue
        except FileNotFoundError:  # it was removed before the error
            return
        return
    log.error("%s cannot get its name back in %s; it stays in %s", text, folder.where, here.where)


def end_removals(root: OpenFolder, private: OpenFolder, is_ours: IsOurs) -> int:
    """End the removals that a crash interrupted: what is not ours is put back; gives the number of things."""
    taken = [entry.name for entry in private.entries() if entry.name.startswith(_TAKEN)]
    return sum(_end_one(root, private, name, is_ours) for name in taken)


def _end_one(root: OpenFolder, private: OpenFolder, name: str, is_ours: IsOurs) -> int:
    with private.enter(name) as here, _place_before(root, name) as place:
        left = [entry.name for entry in here.entries()]
        for one in left:
            if is_ours(here, one):
                here.remove_any(one)
            else:
                put_back(here, place, one)
                log.info("%s has its name back: its removal was interrupted", place.shown(one))
    private.remove_folder(name)
    return len(left)


@contextmanager
def _place_before(root: OpenFolder, name: str) -> Iterator[OpenFolder]:
    """The folder that things were taken from: see `Removal._open`. The shared folder itself when that one is gone."""
    outer = name.partition(".")[2]
    try:
        place = root.enter(outer) if outer else None
    except (FileNotFoundError, NotRegular):
        place = None
    if place is None:
        yield root
        return
    with place:
        yield place


def _same_content(found: Identity, expected: Identity) -> bool:
    return (found.dev, found.ino, found.size, found.mtime_ns) == (
        expected.dev, expected.ino, expected.size, expected.mtime_ns
    )  # fmt: skip
