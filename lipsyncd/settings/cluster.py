"""The settings of rendering on several machines."""

from __future__ import annotations

import re
from pathlib import Path

from lipsyncd.settings.rules import UNSET, setting
from lipsyncd.settings.section import Section


class Executor(Section):
    """Where renders run: on the devices of this machine, or on all machines of a Ray cluster (docs/scale.md)."""

    kind: str = setting("local", "Where renders run.", choices=("local", "ray"))


class Split(Section):
    """Long videos whose frames are drawn on several devices at the same time (docs/scale.md)."""

    mode: str = setting(
        "off", "Draw a long video on all devices that are alike and have no other work.", choices=("off", "auto")
    )
    min_frames: int = setting(3000, "Only a video of at least this many frames is drawn in parts.", low=2)
    segment_frames: int = setting(1500, "About how many frames a part has.", low=1)


class Ray(Section):
    """The Ray cluster, if executor.kind is ray; needs the extra `ray`."""

    address: str = setting(
        "auto",
        "Address of Ray's control store; auto is the one that runs on this machine.",
        check=lambda text: text == "auto" or re.fullmatch(r"[\w.:\[\]-]+:[0-9]{1,5}", text, re.ASCII) is not None,
        allowed="auto, or host:port",
    )
    namespace: str = setting(
        "lipsyncd",
        "Namespace of the daemon in the cluster.",
        check=lambda text: re.fullmatch(r"[\w.-]{1,64}", text, re.ASCII) is not None,
        allowed="1 to 64 letters, digits, dots, _ and -",
    )
    workers: int = setting(0, "Render at most this many jobs at a time; 0 means one on each GPU.", low=0)
    gpus_per_worker: float = setting(
        1.0,
        "GPUs of each render; with 0.5 two renders share one GPU, whose memory nothing divides.",
        low=0.05,
        high=1,
    )
    resource: str = setting("", "Use only the machines that offer this resource of Ray; empty means all with a GPU.")
    release_idle_s: float = setting(
        600.0, "Give the GPU back to Ray this long after the render process has ended (render.unload_idle_s).", low=0
    )
    lost_grace_s: float = setting(900.0, "Remove what a lost machine may still be writing after this long.", low=1)
    allow_no_token: bool = setting(
        False, "Use a cluster without a token: anyone who reaches its ports then runs programs as the daemon's user."
    )


class Roots(Section):
    """Folders that all machines of a cluster share. Each machine may have them elsewhere."""

    share: Path = setting(UNSET, "Shared folder in which renders of a Ray cluster read their inputs and leave results.")
