"""The weights that a renderer needs: which files, from where, with which hash, and the folder that holds them.

`lock.json` lists every file with its repository, revision, size, SHA-256 and licence. A file may come from the hub, a
mirror, another folder, or the operator: only our own hash of it counts, and no render opens a file without one. The two
pickles in the list are converted to safetensors once, in the jail (`renderers/musetalk/convert.py`).

    lock_list  reads the list
    store      the folder, its files and their proofs
    pull       fills the folder
    download   the process that downloads, the only one that loads huggingface_hub
    convert    runs the conversion in the jail
    auto_pull  pulls in the background of a daemon
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
