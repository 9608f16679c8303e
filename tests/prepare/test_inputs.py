"""Picture and sound of a job are decoded at the same time, and the search for the face is short."""

from __future__ import annotations

import resource
import subprocess
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from lipsyncd.errors import AudioTooShort, ImageUndecodable
from lipsyncd.jobs.job import JobSpec
from lipsyncd.jobs.prepared import Picture
from lipsyncd.prepare import find_faces, inputs
from lipsyncd.prepare.decoder_process import interpreter
from lipsyncd.settings import Intake
from tests.kits.installation import picture, sound
from tests.kits.media import portraits
from tests.kits.media.media_kit import encoded, ffmpeg

SPEC = JobSpec("id", "anna", "anna", "preview", False, 256, Fraction(25), 0)


def job(folder: Path, image: bytes, audio: bytes) -> Path:
    (folder / "image").write_bytes(image)
    (folder / "audio").write_bytes(audio)
    return folder


def portrait() -> bytes:
    return encoded(Image.fromarray(portraits.picture("ada")), "PNG")


def test_the_picture_is_decoded_beside_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sound waits here until the picture is under way; both real decoders run."""
    under_way = threading.Event()
    decode_picture, decode_sound = inputs.decode_picture, inputs.decode_sound

    def watched_picture(*args: object, **options: object) -> Picture:
        under_way.set()
        return decode_picture(*args, **options)  # type: ignore[arg-type]

    def late_sound(*args: object, **options: object) -> object:
        assert under_way.wait(60)
        return decode_sound(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(inputs, "decode_picture", watched_picture)
    monkeypatch.setattr(inputs, "decode_sound", late_sound)
    prepared = inputs.decode_inputs(SPEC, job(tmp_path, portrait(), sound()), limits=Intake(), ffmpeg=ffmpeg())

    assert (prepared.picture.width, prepared.picture.height) == (512, 512)
    assert prepared.faces is not None and prepared.faces.chosen == 0


def test_the_fault_of_a_sound_comes_first_and_nothing_runs_on(tmp_path: Path) -> None:
    broken = picture()[:-40] + bytes(28) + picture()[-12:]  # its end is there, its data are not
    limits = Intake(min_audio_s=5.0)
    with pytest.raises(AudioTooShort):
        inputs.decode_inputs(SPEC, job(tmp_path, broken, sound()), limits=limits, ffmpeg=ffmpeg())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("picture")]
    with pytest.raises(ImageUndecodable):
        inputs.decode_inputs(SPEC, tmp_path, limits=Intake(), ffmpeg=ffmpeg())


def test_a_face_is_found_in_little_more_time_than_opencv_takes_to_load(tmp_path: Path) -> None:
    """Processor time: the jail's start, the import of numpy and OpenCV, both networks, four to ten calls of them."""
    image = portraits.picture("astronaut")
    image.tofile(tmp_path / "picture.rgb")
    shown = Picture("picture.rgb", image.shape[1], image.shape[0])
    loading = [interpreter(), "-c", "import cv2"]
    environment = {"PYTHONPATH": ":".join(map(str, find_faces._libraries()[0])), "OPENBLAS_NUM_THREADS": "1"}

    def load() -> None:
        subprocess.run(loading, env=environment, check=True)

    def find() -> None:
        assert find_faces.find_faces(tmp_path, shown).chosen == 0

    assert least_cpu_s(find) < 2.6 * least_cpu_s(load)


def least_cpu_s(work: Callable[[], None]) -> float:
    """The least processor time of the processes that this starts, in four runs."""

    def used_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(4):
        before = used_s()
        work()
        times.append(used_s() - before)
    return min(times)
