"""Look for the face of a still before its job is in the queue, in the jail.

So a picture that cannot be animated fails seconds after its drop and not behind fifty other jobs. The jailed process
reads one raw picture, writes nothing but its answer, and is the only one that loads OpenCV.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lipsyncd.errors import BadOption, FaceTooSmall, JailFailed, NoFaceFound, RenderError, from_reason
from lipsyncd.jobs.faces import Faces
from lipsyncd.jobs.job import JobSpec
from lipsyncd.jobs.prepared import Picture
from lipsyncd.prepare.decoder_process import as_message, installed, interpreter
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import ResourceLimits, run_jailed

_PACKAGE = Path(__file__).resolve().parents[1]
_REFUSALS = (NoFaceFound, FaceTooSmall, BadOption)
_TIMEOUT_S = 60.0
_MOST_FACES = 16


def find_faces(folder: Path, picture: Picture, choice: object = None, *, group: bool = False) -> Faces:
    """The faces of a picture that `decode_picture` wrote into `folder`.

    choice     the option `face` of the job: a number, "x,y", or None for the largest
    group  look for the smaller faces of a group, too, which takes a little longer

    Raises `JailFailed` when the machine failed.
    """
    file = folder / picture.file
    size = {"width": picture.width, "height": picture.height}
    request = {"picture": os.fspath(file), **size, "choice": choice, "group": group}
    sites, libraries = _libraries()
    ended = run_jailed(
        [interpreter(), "-P", "-S", "-m", "lipsyncd.renderers.face", json.dumps(request)],
        readable=[file, _PACKAGE, *libraries],
        python_path=list(dict.fromkeys((_PACKAGE.parent, *sites))),
        limits=ResourceLimits(cpu_s=int(_TIMEOUT_S), file_bytes=1),
        timeout_s=_TIMEOUT_S,
    )
    if ended.timed_out:
        raise JailFailed(f"the search for a face was not over within {_TIMEOUT_S:g} s")
    if ended.returncode:
        text = as_message(last_line(ended.stderr_tail)) or exit_text(ended.returncode)
        raise JailFailed(f"the search for a face ended early: {text}")
    return _answer(ended.stdout, choice)


def decides(spec: JobSpec) -> bool:
    """Does this search decide about the still of a job, since its renderer would find the same?

    Renderers of others may see more than we do, and with `parity` MuseTalk looks as the original does.
    """
    return spec.renderer == "preview" or (spec.renderer == "musetalk" and not spec.options.get("parity"))


def choice_of(spec: JobSpec) -> object:
    """Which face a job wants, as its manifest says it."""
    return spec.options.get("face")


def _libraries() -> tuple[list[Path], list[Path]]:
    numpy_site, numpy = installed("numpy", "numpy.libs", package="numpy")
    cv2_site, cv2 = installed("cv2", "opencv_python_headless.libs", package="opencv-python-headless")
    return [numpy_site, cv2_site], [*numpy, *cv2]


def _answer(stdout: bytes, choice: object) -> Faces:
    """The answer of the jailed process. It read pixels that a stranger made, so it is checked like the decoders'."""
    try:
        faces = Faces.from_json(json.loads(stdout))
        refusal = from_reason(_clean(faces.refusal)) if faces.refusal else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise JailFailed("the search for a face gave no answer") from None
    numbers = range(len(faces.seen))
    if (refusal is None) == (faces.chosen is None) or (faces.chosen is not None and faces.chosen not in numbers):
        raise JailFailed("the search for a face gave an answer that contradicts itself")
    if len(faces.seen) > _MOST_FACES or not (refusal is None or isinstance(refusal, _REFUSALS)):
        raise JailFailed("the search for a face gave no answer")
    return Faces(faces.seen, faces.chosen, refusal.reason() if isinstance(refusal, RenderError) else {}, choice)


def _clean(refusal: Any) -> dict[str, str]:
    return {name: as_message(str(text)) for name, text in refusal.items()}
