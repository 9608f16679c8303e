"""The renderer `musetalk`: its networks on one device, used for many scenes.

Owns loading the networks and the steps from a scene to a shot. Leaves each step to the module named for it.
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
from lipsyncd.renderers.musetalk.audio_features import AudioEncoder, AudioFeatures
from lipsyncd.renderers.musetalk.face.detector import Detector
from lipsyncd.renderers.musetalk.face.find_face import FaceFound, find_face
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.musetalk.face.track import FaceTrack, track_face
from lipsyncd.renderers.musetalk.gpu_memory import BatchSize, is_out_of_memory, limit_memory, peak_gb, release_memory
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painter, load_weights
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import Labeller, landmark_labels, parsed_labels, prepare_face
from lipsyncd.renderers.musetalk.silence import NONE, pauses
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice
from lipsyncd.renderers.musetalk.video_shot import FRAMES_AT_ONCE, VideoShot

# Files in the folder of weights: the layout of the original's `models/`, and `yunet/`.
UNET, UNET_CONFIG = "musetalkV15/unet.safetensors", "musetalkV15/musetalk.json"
VAE, VAE_CONFIG = "sd-vae/diffusion_pytorch_model.safetensors", "sd-vae/config.json"
WHISPER, WHISPER_CONFIG = "whisper/model.safetensors", "whisper/config.json"
LANDMARKS, DETECTOR = "dwpose/dw-ll_ucoco_384.onnx", "yunet/face_detection_yunet_2023mar.onnx"
PARSER = "face-parse-bisent/79999_iter.safetensors"

_SOFT_FROM = 1.3  # a face box this many times larger than the painted patch looks soft around the mouth


@dataclass(frozen=True)
class RendererSettings:
    """The settings that the daemon passes on to a render child, in the environment variables of the same settings.

    weights      folder of the weights
    max_vram_gb  of the device, for everything that this process does
    clear_cache  return unused memory to the device after each job
    """

    weights: Path
    max_vram_gb: float = 14.0
    clear_cache: bool = True

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Raises `WeightsMissing` when no folder is set."""
        folder = environ.get("LIPSYNCD_WEIGHTS_DIR", "")
        if not folder:
            raise WeightsMissing("LIPSYNCD_WEIGHTS_DIR is not set in the render process")
        return cls(
            Path(folder),
            float(environ.get("LIPSYNCD_RENDER_MAX_VRAM_GB") or cls.max_vram_gb),
            environ.get("LIPSYNCD_RENDER_CLEAR_CACHE", "true").lower() in ("1", "true", "yes", "on"),
        )


class MuseTalk:
    """See `lipsyncd.renderers.Renderer`."""

    def __init__(self, device: str = "auto", settings: RendererSettings | None = None) -> None:
        """Load the networks that every scene needs, in half precision on a GPU.

        Raises `DeviceMissing`, `WeightsMissing`, `OutOfMemory`.
        """
        self._settings = settings or RendererSettings.from_environment()
        self.device = find_device(device)
        make_deterministic(self.device)
        limit_memory(self.device, self._settings.max_vram_gb)
        self._batch = BatchSize(self.device, self._settings.max_vram_gb)
        try:
            self._painter = self._load_painter()
            self._audio_encoder = self._load_audio_encoder()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"the networks do not fit into {self._settings.max_vram_gb:g} GB",
                    remedy="free memory on the device, or raise render.max_vram_gb",
                ) from None
            raise
        self._detector = Detector(self._file(DETECTOR))
        # onnxruntime uses the first GPU only.
        first = self.device.type == "cuda" and not self.device.index
        self._landmarks = LandmarkNet(self._file(LANDMARKS), device="cuda" if first else "cpu")
        self._parser: BiSeNet | None = None

    def open(self, scene: Scene) -> Shot:
        """Find and prepare the face; see `Renderer.open`.

        Also raises `WeightsMissing`, for a mask whose weights are missing.
        """
        chosen = options.read(scene.options)
        labels = self._labeller(chosen.mask)
        notes: dict[str, object] = {}

        def report_batch(size: int, too_many: int) -> None:
            notes["batch"] = size
            scene.report_batch(size, too_many)

        self._batch.start_job(scene.max_batch)
        pipeline = Pipeline(self._painter, self._batch, chosen.batch or None, report=report_batch)
        common: dict[str, Any] = {"parity": chosen.parity, "done": self._finish_notes}
        if scene.video is not None:
            track = self._track_face(scene.video, chosen)
            prepare = partial(prepare_face, painter=self._painter, labels=labels, mode=chosen.mode)
            voice = self._voice(scene, chosen)
            notes |= face_notes(track.found[0], chosen)
            common["frames_at_once"] = max(FRAMES_AT_ONCE, chosen.batch)
            return VideoShot(scene, scene.video, track, prepare, voice, pipeline, notes=notes, **common)
        face = find_face(
            scene.picture, self._detector, self._landmarks, choose=chosen.face, margin_px=chosen.extra_margin
        )
        prepared = prepare_face(scene.picture, face, self._painter, labels, chosen.mode)
        voice = self._voice(scene, chosen)
        notes |= face_notes(face, chosen)
        return StillShot(scene, face.box, prepared, voice, pipeline, notes=notes, **common)

    def _track_face(self, video: Source, chosen: options.Options) -> FaceTrack:
        """The chosen face in every frame of a video. The original's flip test is part of parity."""
        return track_face(
            video.read(),
            self._detector,
            self._landmarks,
            choose=chosen.face,
            margin_px=chosen.extra_margin,
            flip_test=chosen.parity,
        )

    def _voice(self, scene: Scene, chosen: options.Options) -> Voice:
        # The original has no pauses: its mouth in silence is part of parity.
        silent = pauses(scene.speech) if chosen.silence == "source" and not chosen.parity else NONE
        features = AudioFeatures(
            self._audio_encoder, scene.speech, scene.fps, silent=silent.stretches, parity=chosen.parity
        )
        return Voice(features, silent.weights(scene.fps, scene.frames))

    def close(self) -> None:
        """Drop the networks and return their memory."""
        del self._painter, self._audio_encoder, self._detector, self._landmarks, self._parser
        release_memory(self.device)

    def _finish_notes(self, notes: dict[str, object]) -> None:
        notes["precision"] = str(self._painter.dtype).removeprefix("torch.")
        notes["device"] = str(self.device)
        if (peak := peak_gb(self.device)) is not None:
            notes["peak_vram_gb"] = round(peak, 2)
        if self._settings.clear_cache:
            release_memory(self.device)

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load_painter(self) -> Painter:
        place: dict[str, Any] = {
            "device": self.device,
            "dtype": torch.float16 if self.device.type == "cuda" else torch.float32,
        }
        unet = load_weights(networks.unet(self._config(UNET_CONFIG)), self._file(UNET), **place)
        vae = load_weights(networks.vae(self._config(VAE_CONFIG)), self._file(VAE), rename=networks.vae_name, **place)
        if self.device.type == "cuda":
            # Tensor cores run convolutions in this memory layout.
            unet, vae = (network.to(memory_format=torch.channels_last) for network in (unet, vae))
        return Painter(unet, vae)

    def _load_audio_encoder(self) -> AudioEncoder:
        encoder = networks.whisper(self._config(WHISPER_CONFIG))
        file = self._file(WHISPER)
        return AudioEncoder(
            load_weights(encoder, file, device=self.device, dtype=torch.float32, rename=networks.whisper_name)
        )

    def _labeller(self, mask: str) -> Labeller:
        if mask == "landmarks":
            return landmark_labels
        if self._parser is None:
            self._parser = load_weights(networks.bisenet(), self._file(PARSER), device=self.device, dtype=torch.float32)
        return parsed_labels(self._parser)

    def _file(self, name: str) -> Path:
        file = self._settings.weights / name
        if not file.is_file():
            raise WeightsMissing(f"the weights {name} are not in {self._settings.weights}")
        return file

    def _config(self, name: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self._file(name).read_text("utf-8")))


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU.

    Raises `DeviceMissing`. A frame takes 800 GFLOP, so a CPU is used only when it is requested.
    """
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count()
    device = torch.device("cuda:0" if name == "auto" else name)
    if device.type != "cuda" or (device.index or 0) >= there:
        raise DeviceMissing(f"torch {torch.__version__} finds no device {name!r}: it has {there} GPUs")
    return device


def face_notes(face: FaceFound, chosen: options.Options) -> dict[str, object]:
    """Facts for the sidecar about the face and how it is painted."""
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
            f"the face has {box.width}x{box.height} pixels but is painted with {PATCH}x{PATCH}: its mouth looks soft"
        )
    return notes


def make_deterministic(device: torch.device) -> None:
    """Make equal scenes give equal videos; on a GPU, leave the processor's other cores alone."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    cv2.setNumThreads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)
