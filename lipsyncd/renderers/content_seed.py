"""A number that depends on a scene's content alone: equal inputs give equal videos, on every machine."""

from __future__ import annotations

import hashlib

import numpy as np

from lipsyncd.renderers import Scene


def content_seed(scene: Scene) -> int:
    """The seed of all that is chosen by chance: the head's turns, blinks, grain. 64 bits of picture and voice."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (scene.picture, scene.speech):
        digest.update(np.ascontiguousarray(part).data)
    return int.from_bytes(digest.digest(), "big")
