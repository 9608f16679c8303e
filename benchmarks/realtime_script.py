"""Print how long a warm job takes without its networks, beside what the original's realtime script does around them.

    python -m benchmarks.realtime_script [512x512] [1024x1024] [1920x1080]

The reference is a re-creation: the steps of MuseTalk 1.5's script for prepared faces, written anew. It copies the
frame, scales the painted face to its box, pastes it through the mask with Pillow and writes a PNG; then one ffmpeg
makes a video of the PNGs, and a second one adds the sound and encodes everything again. It always makes the whole
picture. Ours is the renderer `musetalk` with its own preparation, pauses, pipeline, blending, texture and encoder. In
both a copy of one painted face stands in for each result of the networks, for the same still, voice, face and mask,
and the same ffmpeg runs. Both take turns in the same run; the least time of each counts.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.frames_to_video import say, scene_of, sound_of
from benchmarks.motion import wide
from lipsyncd.media.ffmpeg import SOUND_RATE, Encoding, find
from lipsyncd.renderers import Scene
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.face.finder import find_faces
from lipsyncd.renderers.face.points import OUTER_LOWER_LIP, OUTER_UPPER_LIP
from lipsyncd.renderers.framing import Box, RgbImage
from lipsyncd.renderers.musetalk import options
from lipsyncd.renderers.musetalk.audio_features import BLOCK_STEPS, AudioEncoder, AudioFeatures
from lipsyncd.renderers.musetalk.bench.random_inputs import labels_of
from lipsyncd.renderers.musetalk.face.find_face import FaceFound
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize
from lipsyncd.renderers.musetalk.painting.blend import PasteBack
from lipsyncd.renderers.musetalk.painting.detail import Detail
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.latents import crop_face
from lipsyncd.renderers.musetalk.painting.masks import Mask, blend_square, mask_of, place
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painted
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import PreparedFace
from lipsyncd.renderers.musetalk.renderer import make_deterministic
from lipsyncd.renderers.musetalk.silence import pauses
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice
from tests.kits.media.portraits import picture

SECONDS, FPS = 10.0, 25
ROUNDS, RUNS = 2, 3  # of the script; of ours after each of them
RESOLUTION = 256  # of the square: the default
REFERENCE_BATCH = 20  # frames of one pass of the networks in that script
STATES = (BLOCK_STEPS, 5, 384)  # of Whisper's encoder for a block
CPU = torch.device("cpu")


# -- the same inputs for both ------------------------------------------------------------------------------------------


def face_of(image: RgbImage) -> FaceFound:
    """The largest face. Of its landmarks only the outer lips are known, which is all that is used without networks."""
    found = max(find_faces(image), key=lambda face: face.box.width)
    landmarks = np.zeros((68, 2), np.float32)
    landmarks[48:60] = found.mesh[[*OUTER_UPPER_LIP[::2], *OUTER_LOWER_LIP[::-2]], :2]
    box = found.box.within(Box(0, 0, image.shape[1], image.shape[0]))
    return FaceFound(box, landmarks, 1.0, 0.0, box, 1.0)


def mask_around(image: RgbImage, face: FaceFound) -> tuple[Mask, Box]:
    """The mask of the face in the mode `jaw`, and the square that it covers."""
    square = blend_square(face.box)
    return place(mask_of(labels_of(image, square, face), "jaw"), face.box, square), square


# -- what the original's script does -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What the script has prepared for a face, in BGR."""

    frame: RgbImage
    face: Box
    mask: Mask
    square: Box


class Script:
    """One sound for a prepared face: a thread pastes and writes while the networks paint."""

    def __init__(self, prepared: Prepared, patch: RgbImage, frames: int, folder: Path) -> None:
        self._prepared, self._patch, self._frames, self._folder = prepared, patch, frames, folder
        self._painted: queue.Queue[RgbImage] = queue.Queue()  # without a bound, as there

    def run(self, sound: Path) -> Path:
        writing = threading.Thread(target=self._write)
        writing.start()
        for first in range(0, self._frames, REFERENCE_BATCH):
            count = min(REFERENCE_BATCH, self._frames - first)
            for painted in np.repeat(self._patch[None], count, axis=0):
                self._painted.put(painted)
        writing.join()
        silent, result = self._folder / "silent.mp4", self._folder / "reference.mp4"
        pictures = ["-r", str(FPS), "-f", "image2", "-i", str(self._folder / "%08d.png")]
        self._ffmpeg(*pictures, "-vcodec", "libx264", "-vf", "format=yuv420p", "-crf", "18", str(silent))
        self._ffmpeg("-i", str(sound), "-i", str(silent), str(result))
        for png in self._folder.glob("*.png"):
            png.unlink()
        return result

    def _write(self) -> None:
        for number in range(self._frames):
            painted = self._painted.get()
            frame = self._prepared.frame.copy()
            face = self._prepared.face
            painted = cast(RgbImage, cv2.resize(painted, (face.width, face.height)))
            cv2.imwrite(str(self._folder / f"{number:08d}.png"), self._pasted(frame, painted))

    def _pasted(self, frame: RgbImage, painted: RgbImage) -> RgbImage:
        face, square = self._prepared.face, self._prepared.square
        whole, patch = (Image.fromarray(pixels[..., ::-1]) for pixels in (frame, painted))
        around = whole.crop((square.x, square.y, square.right, square.bottom))
        around.paste(patch, (face.x - square.x, face.y - square.y))
        whole.paste(around, (square.x, square.y), Image.fromarray(self._prepared.mask).convert("L"))
        return cast(RgbImage, np.array(whole)[..., ::-1])

    def _ffmpeg(self, *arguments: str) -> None:
        subprocess.run([str(find()), "-y", "-v", "error", "-nostdin", *arguments], check=True)


# -- ours --------------------------------------------------------------------------------------------------------------


class CopiedFaces:
    """Stands in for UNet and VAE: each frame of a batch is a copy of one face."""

    device, has_full_vae = CPU, True

    def __init__(self, patch: RgbImage) -> None:
        self._pixels = torch.from_numpy(patch).permute(2, 0, 1).contiguous()

    @property
    def now(self) -> CopiedFaces:
        return self

    def paint(self, latents: Tensor, tokens: Tensor) -> Painted:
        count = len(latents)
        return Painted(latents, self._pixels.repeat(count, 1, 1, 1), torch.ones(2, dtype=torch.bool))


class SilentEncoder:
    """Stands in for Whisper's encoder."""

    def encode(self, samples: np.ndarray) -> Tensor:
        return torch.zeros(STATES)


def shot_of(scene: Scene, face: FaceFound, patch: RgbImage) -> StillShot:
    """As `MuseTalk.open` makes it, with the default options."""
    mask, square = mask_around(scene.picture, face)
    paste = PasteBack.from_mask(mask, square, face.box, scene.picture)
    crop_face(scene.picture, face.box)  # what the VAE would encode
    detail = Detail.of(scene.picture, paste, face.landmarks, options.Options.detail)
    prepared = PreparedFace(torch.zeros(1, 8, PATCH // 8, PATCH // 8), paste, detail)
    silent = pauses(scene.speech)
    encoder = cast(AudioEncoder, SilentEncoder())
    features = AudioFeatures(encoder, scene.speech, scene.fps, silent=silent.stretches)
    voice = Voice(features, silent.weights(scene.fps, scene.frames))
    pipeline = Pipeline(cast(JobPainter, CopiedFaces(patch)), BatchSize(CPU, 14.0))
    return StillShot(scene, face.box, prepared, voice, pipeline, parity=False, notes={}, done=lambda _: None)


def ours(scene: Scene, face: FaceFound, patch: RgbImage, sound: Path, folder: Path) -> Path:
    shot = shot_of(scene, face, patch)
    target = folder / "ours.mp4"
    encoding = Encoding(shot.width, shot.height, Fraction(FPS), sound, 1)
    with Encoder(find(), encoding, target, still=shot.still) as encoder:
        for frame in shot.frames():
            encoder.write(frame)
        encoder.finish()
    return target


# -- the comparison ----------------------------------------------------------------------------------------------------


def as_wav(raw: Path) -> Path:
    """The raw sound as the WAV file that the script is given."""
    wav = raw.with_suffix(".wav")
    source = ["-f", "s16le", "-ar", str(SOUND_RATE), "-ac", "1", "-i", str(raw)]
    subprocess.run([str(find()), "-y", "-v", "error", "-nostdin", *source, str(wav)], check=True)
    return wav


def timed_s(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def compare(name: str, image: RgbImage, folder: Path) -> None:
    scene = replace(scene_of(image, SECONDS, stitch=True, motion="none"), resolution=RESOLUTION)
    face = face_of(image)
    shrunk = cv2.resize(image[face.box.place], (PATCH, PATCH), interpolation=cv2.INTER_AREA)
    patch = cast(RgbImage, 255 - (255 - shrunk) // 2)  # lighter, so that the pasted part differs from the still
    raw = sound_of(scene, folder)
    wav = as_wav(raw)
    prepared = Prepared(np.ascontiguousarray(image[..., ::-1]), face.box, *mask_around(image, face))
    script = Script(prepared, np.ascontiguousarray(patch[..., ::-1]), scene.frames, folder)
    framed = {"square": replace(scene, stitch=False), "whole picture": scene}
    for each in framed.values():
        ours(each, face, patch, raw, folder)  # warm
    reference_s: list[float] = []
    ours_s: dict[str, list[float]] = {framing: [] for framing in framed}
    for _ in range(ROUNDS):
        reference_s.append(timed_s(partial(script.run, wav)))
        for framing, each in framed.items():
            ours_s[framing] += [timed_s(partial(ours, each, face, patch, raw, folder)) for _ in range(RUNS)]
    for framing, seconds in ours_s.items():
        least = min(seconds), min(reference_s)
        ours_ms, reference_ms = (1000 * each / scene.frames for each in least)
        say(f"{name}, {framing}", f"{least[0] / least[1]:.3f}; {ours_ms:.2f} / {reference_ms:.1f} ms a frame")


def stills() -> dict[str, RgbImage]:
    photo = picture("astronaut")
    return {
        "512x512": photo,
        "1024x1024": cast(RgbImage, cv2.resize(photo, (1024, 1024), interpolation=cv2.INTER_CUBIC)),
        "1920x1080": wide(0.33),
    }


def main(wanted: Sequence[str]) -> None:
    make_deterministic(CPU)
    with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
        for name, image in stills().items():
            if wanted and name not in wanted:
                continue
            compare(name, image, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
