"""The weights that a renderer needs: which files, from where, with which hash, and the folder that holds them.

`lock.json` names every file with its repository, revision, size, SHA-256 and licence. Whoever brings a file, the hub, a
mirror, another folder or the person at the keyboard: our own hash of it decides, and no render runs on a file without
one. The two pickles among them become safetensors once (`renderers/musetalk/convert.py`, in the jail) and are never
opened again.

`lock` reads the list, `store` knows the folder, `pulling` fills it, `hub` is the process that downloads, `automatic`
pulls in the background of a daemon. Standard library only; huggingface_hub lives in `hub`'s process.
"""

from lipsyncd.weights.auto_pull import AutoPull
from lipsyncd.weights.lock_list import Weight, read_lock
from lipsyncd.weights.pull import PullStopped, Step, offline, pull
from lipsyncd.weights.store import Present, Store, store_of

RENDERER = "musetalk"  # whose jobs open these files

__all__ = [
    "RENDERER",
    "AutoPull",
    "Present",
    "PullStopped",
    "Step",
    "Store",
    "Weight",
    "offline",
    "pull",
    "read_lock",
    "store_of",
]
