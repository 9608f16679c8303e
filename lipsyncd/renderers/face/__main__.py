"""The program that looks for the face of a still: `python -m lipsyncd.renderers.face`, jailed by `prepare.find_faces`.

Reads a raw picture that the jail decoded and prints what it found as one line of JSON. The daemon itself loads neither
numpy nor OpenCV.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from lipsyncd.errors import RenderError
from lipsyncd.jobs.faces import Faces, SeenFace
from lipsyncd.jobs.options import read_choice
from lipsyncd.renderers.face.choose import Search
from lipsyncd.renderers.face.face import Face
from lipsyncd.renderers.face.finder import faces_of_group

_MOST = 16  # faces in an answer


def main(request: Mapping[str, Any]) -> dict[str, Any]:
    """Look for the face of one picture.

    request  {"picture": path, "width", "height", "choice", "group"}: height x width x 3 bytes; the option `face`,
             or None; whether to look for the smaller faces of a group, too

    Returns the fields of `Faces`.
    """
    cv2.setNumThreads(1)
    shape = (request["height"], request["width"], 3)
    picture = np.memmap(request["picture"], np.uint8, "r", shape=shape)
    try:
        search = Search(picture, read_choice(request["choice"]))
        chosen = search.run()
    except RenderError as error:  # an option that is none
        return asdict(Faces((), None, error.reason(), request["choice"]))
    if request["group"]:
        search.add(faces_of_group(picture))
    seen = tuple(_seen(face, search) for face in search.faces[:_MOST])
    if isinstance(chosen, Face):
        number = search.faces.index(chosen)
        return asdict(Faces(seen, number if number < _MOST else None, {}, request["choice"]))
    return asdict(Faces(seen, None, chosen.reason(), request["choice"]))


def _seen(face: Face, search: Search) -> SeenFace:
    fault = search.faults.get(face)
    return SeenFace(
        x=face.box.x,
        y=face.box.y,
        width=face.box.width,
        height=face.box.height,
        mouth=(round(face.mouth[0], 1), round(face.mouth[1], 1)),
        confidence=round(face.presence * face.score, 3),
        yaw_deg=round(face.yaw_deg, 1),
        roll_deg=round(face.roll_deg, 1),
        fault=fault.what if fault else "",
    )


def run(arguments: Sequence[str]) -> None:
    print(json.dumps(main(json.loads(arguments[0]))))


if __name__ == "__main__":
    run(sys.argv[1:])
