"""A writer renames and replaces a file during a copy: the copy is one of the contents, and whole."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from lipsyncd.storage.files import SourceChanged, copy_unchanged, identity
from lipsyncd.storage.open_folder import OpenFolder
from tests.kits.installation import put
from tests.kits.machine.machine_kit import LONG

TRIES = 10_000 if LONG else 1000


def test_a_copy_is_one_whole_content_whatever_is_renamed_and_replaced_meanwhile(tmp_path: Path) -> None:
    contents = [bytes([number]) * (20_000 + number) for number in range(16)]
    whole = {hashlib.sha256(content).hexdigest() for content in contents}
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    name, aside, end = inbox / "a.wav", inbox / "b.wav", threading.Event()

    def write() -> None:
        number = 0
        while not end.is_set():
            number += 1
            content = contents[number % len(contents)]
            put(inbox, "a.wav", content)  # replaced in one step
            name.rename(aside)  # away and back again
            aside.rename(name)

    put(inbox, "a.wav", contents[0])
    writer = threading.Thread(target=write)
    writer.start()
    copied = missed = 0
    folder = OpenFolder.at(inbox)
    try:
        for number in range(TRIES):
            target = tmp_path / f"copy-{number % 8}"
            target.unlink(missing_ok=True)
            seen = identity(name)
            if seen is None:
                missed += 1
                continue
            try:
                digest = copy_unchanged(b"a.wav", seen, target, folder=folder.fileno())
            except (SourceChanged, FileNotFoundError):
                missed += 1
                continue
            assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
            assert digest in whole
            assert target.stat().st_size == seen.size
            copied += 1
    finally:
        end.set()
        writer.join()
        folder.close()
    assert copied + missed == TRIES
    assert missed > 0, "the writer changed nothing during a copy"
    assert copied > 0, "no copy succeeded"
