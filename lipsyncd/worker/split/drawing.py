"""Draw one video on several slots: the worker that claimed its job, and any that has no job of its own meanwhile.

A video is drawn in parts only where that cannot delay another job: other slots are free, and no job waits. A helper
looks into the ledger after each part, so a job that comes later waits for one part at most.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

from lipsyncd.errors import BadResult, Blocked, LedgerUnavailable
from lipsyncd.media.ffmpeg import Encoding
from lipsyncd.results.stores import Stores
from lipsyncd.worker.child_process import RenderCancelled
from lipsyncd.worker.device import Device, OneRender
from lipsyncd.worker.protocol import Progress, Render, Result
from lipsyncd.worker.split.join import Part, join
from lipsyncd.worker.split.shared_video import Range, SharedVideo, ranges_of

log = logging.getLogger(__name__)

# Facts of a part, for the sidecar, that decide how its frames look: where they differ, so may frames at a joint.
_DRAWN_ALIKE = ("batch", "kernels", "precision", "threads", "encoder")
_JOINING = "encoding"  # the stage meanwhile
_FINEST_TICKS = 120_000  # a second: the joiner counts in microseconds, and finer ones could be rounded to the next


def split_of(
    request: Render,
    device: Device,
    stores: Stores,
    *,
    attempt: int,
    stop: Callable[[], bool],
    on_fraction: Callable[[float], None],
) -> SharedVideo | None:
    """The video to draw in parts; None where the settings, the job or the other slots are against it.

    A video source is drawn whole, since its frames follow each other's faces; so is everything after a failed attempt.
    """
    wanted, fps = stores.settings.now.executor_split, Fraction(request.fps)
    if wanted.mode == "off" or request.frames < wanted.min_frames or attempt > 1:
        return None
    if request.video is not None or fps.numerator > _FINEST_TICKS:
        return None
    ranges = ranges_of(request.frames, wanted.segment_frames, fps)
    needed = device.fingerprint(request.renderer)
    others = device.shared.free(device.name, request.renderer, needed)
    if len(ranges) < 2 or not others or _has_waiting_job(stores):
        return None
    return SharedVideo(
        request,
        ranges,
        needed,
        others=others,
        stop=stop,
        deadline_s=lambda: stores.settings.now.render.job_timeout_s,
        on_fraction=on_fraction,
    )


def _has_waiting_job(stores: Stores) -> bool:
    try:
        return stores.ledger.next_job() is not None
    except LedgerUnavailable:
        return True


def draw_in_parts(
    video: SharedVideo, device: Device, stores: Stores, *, stage: Callable[[str], None], waits: Callable[[str], None]
) -> Result:
    """Draw what no other slot draws, wait for the rest, and join the parts into the file of the whole request.

    stage  gets the name of each stage

    Raises the first error of any slot, `RenderCancelled` after a stop.
    """
    began_s = time.monotonic()
    try:
        with device.shared.offered(video):
            while video.wait() and not video.over():
                part = video.take(device.name)
                if part is not None:
                    device.shared.wake()  # a slot may have had work when the video was offered
                    _draw(video, part, device, stores, waits=waits, heard=partial(_report, video, stage), helps=False)
        if video.over():
            raise video.error or RenderCancelled(video.request.job_id)
        stage(_JOINING)
        return _joined(video, took_from_s=began_s)
    finally:
        video.close()


def _report(video: SharedVideo, stage: Callable[[str], None], message: Progress) -> None:
    stage("rendering" if video.has_frames else message.stage)


def help_with_a_part(device: Device, stores: Stores) -> bool:
    """Draw one part of another worker's video, if there is one for this slot."""
    found = device.shared.find(device.name, device.fingerprint)
    if found is None:
        return False
    video, part = found
    if stores.obstacles.still_blocking(device.place(video.request.renderer)) is not None:
        video.give_back(part, device.name, refused=True)
        return False
    log.info("job %s: frames %d to %d on %s", video.request.job_id, part.start, part.stop - 1, device.name)
    with device.shared.busy(device.name):
        _draw(video, part, device, stores, waits=lambda _: None, heard=lambda _: None, helps=True)
    return True


def _draw(
    video: SharedVideo,
    part: Range,
    device: Device,
    stores: Stores,
    *,
    waits: Callable[[str], None],
    heard: Callable[[Progress], None],
    helps: bool,
) -> None:
    """Draw one part; what comes of it is recorded in the video.

    What keeps a helper from drawing does not concern the job; what keeps its claimer from that makes the job wait.
    """

    def progress(message: Progress) -> None:
        video.progress(part, message)
        heard(message)

    try:
        one = OneRender(device, stores, video.request_for(part))
        video.finish(part, one.run(stop=video.over, progress=progress, waits=waits))
    except RenderCancelled:
        video.give_back(part, device.name, refused=False)
    except Exception as error:
        if helps and isinstance(error, Blocked):
            log.info("job %s: %s draws no part of it: %s", video.request.job_id, device.name, error)
            video.give_back(part, device.name, refused=True)
        else:
            video.fail(error, part)


def _joined(video: SharedVideo, *, took_from_s: float) -> Result:
    """Join the parts of a video that is drawn. Raises `BadResult` when they were not drawn alike."""
    request, results = video.request, video.results()
    notes = _notes(results)
    folder, first = Path(request.folder), results[0]
    parts = [Part(folder / video.request_for(part).out_file, part.stop - part.start) for part in video.ranges]
    encoding = Encoding(
        width=first.width,
        height=first.height,
        fps=Fraction(request.fps),
        sound=folder / request.sound.file,
        channels=request.sound.channels,
        audio_kbps=int(request.encode["audio_kbps"]),
    )
    join(parts, encoding, folder / request.out_file, ffmpeg=Path(request.encode["ffmpeg"]), stop=video.over)
    for part in parts:
        with contextlib.suppress(OSError):  # the job's folder goes as a whole
            part.path.unlink()
    return replace(first, frames=request.frames, took_s=time.monotonic() - took_from_s, notes=notes)


def _notes(results: Sequence[Result]) -> Mapping[str, object]:
    """The notes of the whole video: those of its first part, the events of all, and the number of parts."""
    first = results[0].notes
    for number, result in enumerate(results[1:], 2):
        for fact in _DRAWN_ALIKE:
            if result.notes.get(fact) != first.get(fact):
                raise BadResult(
                    f"part {number} of the video was drawn with {fact} {result.notes.get(fact)!r}, the first one with "
                    f"{first.get(fact)!r}"
                )
    found = [result.notes.get("events") for result in results]
    events = list(dict.fromkeys(str(event) for some in found if isinstance(some, list) for event in some))
    return {**first, **({"events": events} if events else {}), "segments": len(results)}
