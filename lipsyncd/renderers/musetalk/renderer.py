"""The renderer `musetalk`: its networks on one device, used for many scenes.

Owns loading and the way from a scene to a shot. Leaves each step to the module named for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import cv2
import torch

from lipsyncd.errors import DeviceMissing, OutOfMemory, WeightsMissing
from lipsyncd.renderers import Scene, Shot, Source
from lipsyncd.renderers.musetalk import options
from lipsyncd.renderers.musetalk.audio_features import Ear, Track
from lipsyncd.renderers.musetalk.face.detector import Detector
from lipsyncd.renderers.musetalk.face.find_face import FaceFound, find_face
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.musetalk.face.track import FaceTrack, follow_face
from lipsyncd.renderers.musetalk.gpu_memory import Batch, cap, exhausted, give_back, peak_gb
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painter, filled
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import Labeller, by_parsing, by_points, look_at
from lipsyncd.renderers.musetalk.silence import NONE, pauses
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice
from lipsyncd.renderers.musetalk.video_shot import TOGETHER, MovingShot

# Where the files lie in the folder of weights: the original's `models/`, and `yunet/`.
UNET, UNET_CONFIG = "musetalkV15/unet.safetensors", "musetalkV15/musetalk.json"
VAE, VAE_CONFIG = "sd-vae/diffusion_pytorch_model.safetensors", "sd-vae/config.json"
WHISPER, WHISPER_CONFIG = "whisper/model.safetensors", "whisper/config.json"
LANDMARKS, DETECTOR = "dwpose/dw-ll_ucoco_384.onnx", "yunet/face_detection_yunet_2023mar.onnx"
PARSER = "face-parse-bisent/79999_iter.safetensors"

_SOFT_FROM = 1.3  # a face box this many times the painted patch looks soft around the mouth


@dataclass(frozen=True)
class Grant:
    """What the daemon gives a render child to work with, in the variables that also set these settings.

    weights      folder of the weights
    max_vram_gb  of the device, for everything that this process does
    clear_cache  give reserved memory back after each job
    """

    weights: Path
    max_vram_gb: float = 14.0
    clear_cache: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Raises `WeightsMissing` where no folder is named."""
        folder = environ.get("LIPSYNCD_WEIGHTS_DIR", "")
        if not folder:
            raise WeightsMissing("the render process was not told where the weights are")
        return cls(
            Path(folder),
            float(environ.get("LIPSYNCD_RENDER_MAX_VRAM_GB") or cls.max_vram_gb),
            environ.get("LIPSYNCD_RENDER_CLEAR_CACHE", "true").lower() in ("1", "true", "yes", "on"),
        )


class MuseTalk:
    """See `lipsyncd.renderers.Renderer`."""

    def __init__(self, device: str = "auto", grant: Grant | None = None) -> None:
        """Load every network that each scene needs, in half precision on a GPU.

        Raises `DeviceMissing`, `WeightsMissing`, `OutOfMemory`.
        """
        self._grant = grant or Grant.from_environment()
        self.device = find_device(device)
        _settle(self.device)
        cap(self.device, self._grant.max_vram_gb)
        self._batch = Batch(self.device, self._grant.max_vram_gb)
        try:
            self._painter = self._load_painter()
            self._ear = self._load_ear()
        except (RuntimeError, MemoryError) as error:
            if exhausted(error):
                raise OutOfMemory(
                    f"the networks do not fit into {self._grant.max_vram_gb:g} GB",
                    remedy="free memory of the device, or raise render.max_vram_gb",
                ) from None
            raise
        self._detector = Detector(self._file(DETECTOR))
        # onnxruntime has only its first GPU in mind.
        first = self.device.type == "cuda" and not self.device.index
        self._landmarks = LandmarkNet(self._file(LANDMARKS), device="cuda" if first else "cpu")
        self._parser: BiSeNet | None = None

    def open(self, scene: Scene) -> Shot:
        """Find and prepare the face; see `Renderer.open`.

        Raises `WeightsMissing` too, for a mask whose weights are not there.
        """
        chosen = options.read(scene.options)
        labels = self._labeller(chosen.mask)
        notes: dict[str, object] = {}

        def tell(size: int, too_many: int) -> None:
            notes["batch"] = size
            scene.report_batch(size, too_many)

        self._batch.allow(scene.max_batch)
        pipeline = Pipeline(self._painter, self._batch, chosen.batch or None, tell=tell)
        common: dict[str, Any] = {"exact": chosen.parity, "done": self._done}
        if scene.video is not None:
            track = self._follow(scene.video, chosen)
            prepare = partial(look_at, painter=self._painter, labels=labels, mode=chosen.mode)
            voice = self._voice(scene, chosen)
            notes |= notes_on(track.found[0], chosen)
            common["together"] = max(TOGETHER, chosen.batch)
            return MovingShot(scene, scene.video, track, prepare, voice, pipeline, notes=notes, **common)
        face = find_face(
            scene.picture, self._detector, self._landmarks, choose=chosen.face, margin_px=chosen.extra_margin
        )
        look = look_at(scene.picture, face, self._painter, labels, chosen.mode)
        voice = self._voice(scene, chosen)
        notes |= notes_on(face, chosen)
        return StillShot(scene, face.box, look, voice, pipeline, notes=notes, **common)

    def _follow(self, video: Source, chosen: options.Options) -> FaceTrack:
        """The chosen face in every frame of a video. The original's flip test is a part of parity."""
        return follow_face(
            video.read(),
            self._detector,
            self._landmarks,
            choose=chosen.face,
            margin_px=chosen.extra_margin,
            flip_test=chosen.parity,
        )

    def _voice(self, scene: Scene, chosen: options.Options) -> Voice:
        # The original knows no pauses: what it does in silence is a part of parity.
        gate = pauses(scene.speech) if chosen.silence == "source" and not chosen.parity else NONE
        track = Track(self._ear, scene.speech, scene.fps, silent=gate.stretches, parity=chosen.parity)
        return Voice(track, gate.weights(scene.fps, scene.frames))

    def close(self) -> None:
        """Forget the networks and give their memory back."""
        del self._painter, self._ear, self._detector, self._landmarks, self._parser
        give_back(self.device)

    def _done(self, notes: dict[str, object]) -> None:
        notes["precision"] = str(self._painter.dtype).removeprefix("torch.")
        notes["device"] = str(self.device)
        if (peak := peak_gb(self.device)) is not None:
            notes["peak_vram_gb"] = round(peak, 2)
        if self._grant.clear_cache:
            give_back(self.device)

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load_painter(self) -> Painter:
        place: dict[str, Any] = {
            "device": self.device,
            "dtype": torch.float16 if self.device.type == "cuda" else torch.float32,
        }
        unet = filled(networks.unet(self._config(UNET_CONFIG)), self._file(UNET), **place)
        vae = filled(networks.vae(self._config(VAE_CONFIG)), self._file(VAE), rename=networks.vae_name, **place)
        if self.device.type == "cuda":
            # Tensor cores read convolutions this way round.
            unet, vae = (network.to(memory_format=torch.channels_last) for network in (unet, vae))
        return Painter(unet, vae)

    def _load_ear(self) -> Ear:
        encoder = networks.whisper(self._config(WHISPER_CONFIG))
        file = self._file(WHISPER)
        return Ear(filled(encoder, file, device=self.device, dtype=torch.float32, rename=networks.whisper_name))

    def _labeller(self, mask: str) -> Labeller:
        if mask == "landmarks":
            return by_points
        if self._parser is None:
            self._parser = filled(networks.bisenet(), self._file(PARSER), device=self.device, dtype=torch.float32)
        return by_parsing(self._parser)

    def _file(self, name: str) -> Path:
        file = self._grant.weights / name
        if not file.is_file():
            raise WeightsMissing(f"the weights {name} are not in {self._grant.weights}")
        return file

    def _config(self, name: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self._file(name).read_text("utf-8")))


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU.

    Raises `DeviceMissing`: a frame is 800 GFLOP, so a CPU is used when it is asked for and never instead.
    """
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count()
    device = torch.device("cuda:0" if name == "auto" else name)
    if device.type != "cuda" or (device.index or 0) >= there:
        raise DeviceMissing(f"torch {torch.__version__} sees no device {name!r}: there are {there} GPUs")
    return device


def notes_on(face: FaceFound, chosen: options.Options) -> dict[str, object]:
    """What the sidecar says about the face and how it was made."""
    box = face.box
    notes: dict[str, object] = {
        "face": [box.x, box.y, box.width, box.height],
        "face_score": round(face.detector_score, 2),
        "landmark_score": round(face.score, 2),
        "yaw_deg": round(face.yaw_deg, 1),
        "mask": chosen.mask,
    }
    if max(box.width, box.height) > _SOFT_FROM * PATCH:
        notes["warning"] = (
            f"the face has {box.width}x{box.height} pixels and its mouth is painted at {PATCH}x{PATCH}: it looks soft"
        )
    return notes


def _settle(device: torch.device) -> None:
    """The same scene gives the same video, and small pictures do not keep every core busy."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    cv2.setNumThreads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)
