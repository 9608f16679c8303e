"""A shared folder with its marker, as an installation has it."""

from __future__ import annotations

import os
from pathlib import Path

from lipsyncd.jobs.job import new_id
from lipsyncd.storage.open_folder import OpenFolder
from lipsyncd.storage.private_folder import make_private, marker_in
from lipsyncd.storage.shared_folders import SharedFolder


def shared_folder(path: Path, kind: str = "inbox") -> SharedFolder:
    """The folder under that path, made and marked where it is not yet."""
    path.mkdir(exist_ok=True)
    owners = frozenset([os.geteuid()])
    marker = f"{kind.partition('/')[0]}-id"
    with OpenFolder.at(path) as root:
        if not marker_in(root, marker):
            make_private(root, marker, new_id(), owners)
        recorded = marker_in(root, marker)
    return SharedFolder(kind, path, lambda: recorded, lambda: owners)
