"""The renderer `musetalk`, which notes when it opens a scene and draws it; see `counted_preview`."""

from __future__ import annotations

from lipsyncd.renderers import Scene, Shot
from lipsyncd.renderers.musetalk.renderer import MuseTalk
from tests.kits.media.counted_preview import Counted, note


class CountedMuseTalk(MuseTalk):
    """See above."""

    def open(self, scene: Scene) -> Shot:
        note("open", scene)
        return Counted(super().open(scene), scene)  # type: ignore[return-value]
