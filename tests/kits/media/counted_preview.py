"""The renderer `preview`, which notes in the file TEST_OPENS when it opens a scene and draws it.

Where a file of that name with the suffix `.awaited` has a word, the last quarter of a scene is drawn slowly until it
stands in the notes: on a busy machine a hint may come late.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.framing import RgbImage
from lipsyncd.renderers.preview import Preview

PACE_S = 0.01  # so that progress is reported in the middle of a short job
SLOW_S = 1.0


def note(what: str, scene: Scene) -> None:
    with Path(os.environ["TEST_OPENS"]).open("a") as file:
        file.write(f"{what} {scene.frames} {time.monotonic():.4f}\n")


def awaits_more() -> bool:
    """Does what the test waits for not stand in the notes yet?"""
    notes = Path(os.environ["TEST_OPENS"])
    awaited = notes.with_suffix(".awaited")
    return awaited.exists() and f"{awaited.read_text()} " not in notes.read_text()


class Counted:
    """A shot that notes its first and its last frame."""

    def __init__(self, shot: Shot, scene: Scene) -> None:
        self._shot, self._scene = shot, scene

    def __getattr__(self, name: str) -> object:
        return getattr(self._shot, name)

    def frames(self) -> Iterator[RgbImage]:
        for number, frame in enumerate(self._shot.frames()):
            if not number:
                note("first", self._scene)
            late = number >= self._scene.frames * 3 // 4 and awaits_more()
            time.sleep(SLOW_S if late else PACE_S)
            yield frame
        note("last", self._scene)


class CountedPreview(Preview):
    """See above."""

    def open(self, scene: Scene) -> Shot:
        note("open", scene)
        return Counted(super().open(scene), scene)  # type: ignore[return-value]
