"""The renderer `musetalk`: its networks on one device, used for many scenes.

Owns loading the networks and the steps from a scene to a shot. Leaves each step to the module named for it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import cv2
import torch

from lipsyncd.errors import DeviceMissing, OutOfMemory, WeightsMissing
from lipsyncd.processes import usable_cores
from lipsyncd.renderers import Scene, Shot, Source
from lipsyncd.renderers.musetalk import arithmetic, options
from lipsyncd.renderers.musetalk.audio_features import AudioEncoder, AudioFeatures
from lipsyncd.renderers.musetalk.face.find_face import FaceFound, find_face
from lipsyncd.renderers.musetalk.face.landmarks import LandmarkNet
from lipsyncd.renderers.musetalk.face.track import FaceTrack, track_face
from lipsyncd.renderers.musetalk.gpu_memory import (
    BatchSize,
    UnusedMemory,
    free_and_total,
    is_out_of_memory,
    limit_memory,
    peak_gb,
    release_memory,
)
from lipsyncd.renderers.musetalk.painting import networks
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet
from lipsyncd.renderers.musetalk.painting.face_encoder import FaceEncoder
from lipsyncd.renderers.musetalk.painting.fused.gate import Gate, weights_identity
from lipsyncd.renderers.musetalk.painting.fused.layers import NotFusable
from lipsyncd.renderers.musetalk.painting.fused.painter import FusedPainter
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.masks import Labels
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painter, load_weights
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline
from lipsyncd.renderers.musetalk.painting.prepared_face import (
    Labeller,
    landmark_labels,
    parsed_labels,
    place_face,
    prepare_face,
)
from lipsyncd.renderers.musetalk.silence import NONE, pauses
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice
from lipsyncd.renderers.musetalk.turn import Turn
from lipsyncd.renderers.musetalk.video_shot import VideoShot

log = logging.getLogger(__name__)

# Files in the folder of weights: the layout of the original's `models/`.
UNET, UNET_CONFIG = "musetalkV15/unet.safetensors", "musetalkV15/musetalk.json"
UNET_FLOAT32 = "musetalkV15/unet-float32.safetensors"  # optional
VAE, VAE_CONFIG = "sd-vae/diffusion_pytorch_model.safetensors", "sd-vae/config.json"
WHISPER, WHISPER_CONFIG = "whisper/model.safetensors", "whisper/config.json"
LANDMARKS = "dwpose/dw-ll_ucoco_384.onnx"
PARSER = "face-parse-bisent/79999_iter.safetensors"

_SOFT_FROM = 1.3  # a face box this many times larger than the painted patch looks soft around the mouth


@dataclass(frozen=True)
class RendererSettings:
    """The settings that the daemon passes on to a render child, in the environment variables of the same settings.

    weights      folder of the weights
    max_vram_gb  of the device, for everything that this process does
    clear_cache  return unused memory to the device after each job, see `UnusedMemory`
    kernels      "fused", or "published" for the networks as they were published
    precision    "float32" or "bfloat16", of the decoder on a CPU
    threads      of the networks on a CPU; 0: one for each core that this process may use
    cache        folder for what was found about this machine; None: nothing is kept
    """

    weights: Path
    max_vram_gb: float = 14.0
    clear_cache: bool = True
    kernels: str = "fused"
    precision: str = "float32"
    threads: int = 0
    cache: Path | None = None

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
            environ.get("LIPSYNCD_RENDER_KERNELS") or cls.kernels,
            environ.get("LIPSYNCD_RENDER_CPU_PRECISION") or cls.precision,
            int(environ.get("LIPSYNCD_RENDER_THREADS") or cls.threads),
            Path(cache) if (cache := environ.get("LIPSYNCD_RENDER_CACHE_DIR")) else None,
        )


class MuseTalk:
    """See `lipsyncd.renderers.Renderer`."""

    opens_aside = True

    def __init__(self, device: str = "auto", settings: RendererSettings | None = None) -> None:
        """Load the networks that every scene needs, in half precision on a GPU.

        Raises `DeviceMissing`, `WeightsMissing`, `OutOfMemory`.
        """
        self._settings = settings or RendererSettings.from_environment()
        self.device = find_device(device)
        make_deterministic(self.device, self._settings.threads)
        limit_memory(self.device, self._settings.max_vram_gb)
        self._batch = BatchSize(self.device, self._settings.max_vram_gb)
        self._turn = Turn()
        self._unused = UnusedMemory(
            self._settings.clear_cache,
            release=self._release_memory,
            room=partial(free_and_total, self.device),
        )
        with self._no_room_is_named():
            self._painter = self._load_painter()
            self._gate = self._load_gate()
            self._audio_encoder = self._load_audio_encoder()
        self._landmarks = LandmarkNet(self._file(LANDMARKS), gpu=self.device.index)  # None for a CPU
        self._parser: BiSeNet | None = None

    def open(self, scene: Scene) -> Shot:
        """Find and prepare the face; see `Renderer.open`.

        Also raises `WeightsMissing`, for a mask whose weights are missing.
        """
        chosen = options.read(scene.options)
        labels = self._labeller(chosen.mask)
        events: list[str] = []
        notes: dict[str, object] = {}

        def report_event(event: str) -> None:
            events.append(event)
            notes["events"] = events

        def report_batch(size: int, too_many: int) -> None:
            notes["batch"] = size
            scene.report_batch(size, too_many)

        gate = None if chosen.parity else self._gate  # parity computes as the original does
        painter = JobPainter(self._painter_of(chosen, notes), gate=gate, report=report_event)
        pipeline = Pipeline(
            painter, self._batch, chosen.batch or None, most=scene.max_batch, turn=self._turn, report=report_batch
        )
        common: dict[str, Any] = {"parity": chosen.parity, "done": partial(self._finish_notes, painter)}
        # The original gives no texture back.
        how: dict[str, Any] = {"mode": chosen.mode, "detail": 0.0 if chosen.parity else chosen.detail}
        if scene.video is not None:
            track = self._track_face(scene.video, chosen)
            voice = self._voice(scene, chosen)
            notes |= face_notes(track.found[0], chosen)
            encoder = FaceEncoder(painter, at_once=lambda: pipeline.size // 2, turn=self._turn)  # two pictures each
            parsed = chosen.mask != "landmarks"
            place = partial(place_face, labels=self._in_turn(labels) if parsed else labels, **how)
            common["place_on_device"] = parsed
            return VideoShot(scene, scene.video, track, place, encoder, voice, pipeline, notes=notes, **common)
        face = find_face(
            scene.picture,
            self._landmarks,
            choose=chosen.face,
            margin_px=chosen.extra_margin,
            parity=chosen.parity,
        )
        with self._turn:
            prepared = prepare_face(scene.picture, face, painter, labels, **how)
        voice = self._voice(scene, chosen)
        notes |= face_notes(face, chosen)
        return StillShot(scene, face.box, prepared, voice, pipeline, notes=notes, **common)

    def _painter_of(self, chosen: options.Options, notes: dict[str, object]) -> Painter:
        """The painter of a job. For parity on a CPU its UNet is the one that was never rounded, where it is there.

        It is loaded for each such job, which takes seconds of the minutes that the job takes, and leaves with it.
        """
        if not chosen.parity or self.device.type != "cpu":
            return self._painter
        file = self._settings.weights / UNET_FLOAT32
        if file.is_file():
            notes["unet"] = "float32"
            place: dict[str, Any] = {"device": self.device, "dtype": torch.float32}
            with self._no_room_is_named():
                return Painter(load_weights(networks.unet(self._config(UNET_CONFIG)), file, **place), self._painter.vae)
        if networks.is_rounded(self._file(UNET)):
            notes["unet"] = "rounded to float16; `lipsyncd models pull --parity` keeps it in float32, too"
        return self._painter

    def _track_face(self, video: Source, chosen: options.Options) -> FaceTrack:
        """The chosen face in every frame of a video."""
        return track_face(
            video.read(),
            self._landmarks,
            choose=chosen.face,
            margin_px=chosen.extra_margin,
            parity=chosen.parity,
        )

    def _voice(self, scene: Scene, chosen: options.Options) -> Voice:
        # The original has no pauses: its mouth in silence is part of parity.
        silent = pauses(scene.speech) if chosen.silence == "source" and not chosen.parity else NONE
        features = AudioFeatures(
            self._audio_encoder, scene.speech, scene.fps, silent=silent.stretches, parity=chosen.parity
        )
        voice = Voice(features, silent.weights(scene.fps, scene.frames))
        voice.begin()
        return voice

    def rest(self) -> None:
        """See `Renderer`."""
        self._unused.rest()

    def _release_memory(self) -> None:
        if self._gate is not None:
            self._gate.fused.forget()  # recordings hold the memory of a batch
        release_memory(self.device)

    def close(self) -> None:
        """Drop the networks and return their memory."""
        del self._painter, self._gate, self._audio_encoder, self._landmarks, self._parser
        release_memory(self.device)

    def _finish_notes(self, painter: JobPainter, notes: dict[str, object]) -> None:
        notes["precision"] = painter.precision
        notes["kernels"] = painter.kernels
        if self.device.type == "cpu":
            notes["threads"] = torch.get_num_threads()
        notes["landmarks"] = self._landmarks.place
        notes["device"] = str(self.device)
        if (peak := peak_gb(self.device)) is not None:
            notes["peak_vram_gb"] = round(peak, 2)
        self._unused.end_job()

    @contextmanager
    def _no_room_is_named(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"the networks do not fit into {self._settings.max_vram_gb:g} GB",
                    remedy="free memory on the device, or raise render.max_vram_gb",
                ) from None
            raise

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

    def _load_gate(self) -> Gate | None:
        """The fused networks; None where the published ones are wanted, or are built differently from what is known."""
        if self._settings.kernels != "fused":
            return None
        lower = self._settings.precision == "bfloat16" and self.device.type == "cpu" and arithmetic.has_bfloat16()
        try:
            fused = FusedPainter.of(self._painter, decoder_type=torch.bfloat16 if lower else None)
        except NotFusable as error:
            log.warning("the networks are computed as published: %s", error)
            return None
        facts = {
            "weights": weights_identity(self._file(UNET), self._file(VAE)),
            "torch": torch.__version__,
            "device": arithmetic.device_name(self.device),
        }
        return Gate(fused, facts, self._settings.cache)

    def _load_audio_encoder(self) -> AudioEncoder:
        encoder = networks.whisper(self._config(WHISPER_CONFIG))
        file = self._file(WHISPER)
        return AudioEncoder(
            load_weights(encoder, file, device=self.device, dtype=torch.float32, rename=networks.whisper_name),
            self._turn if self.device.type == "cuda" else None,  # on a CPU painting goes on meanwhile
        )

    def _labeller(self, mask: str) -> Labeller:
        if mask == "landmarks":
            return landmark_labels
        if self._parser is None:
            self._parser = load_weights(networks.bisenet(), self._file(PARSER), device=self.device, dtype=torch.float32)
        return parsed_labels(self._parser)

    def _in_turn(self, labels: Labeller) -> Labeller:
        def label(*given: Any) -> Labels:
            with self._turn:
                return labels(*given)

        return label

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
    device = torch.device("cuda:0" if name in ("auto", "cuda") else name)  # torch sets no GPU without a number
    if device == torch.device("cpu", 0):
        return torch.device("cpu")
    there = torch.cuda.device_count()
    if device.type != "cuda" or device.index >= there:
        raise DeviceMissing(f"torch {torch.__version__} finds no device {name!r}: it has {there} GPUs")
    return device


def face_notes(face: FaceFound, chosen: options.Options) -> dict[str, object]:
    """Facts for the sidecar about the face and how it is painted."""
    box = face.box
    notes: dict[str, object] = {
        "face": [box.x, box.y, box.width, box.height],
        "face_score": round(face.presence, 2),
        "landmark_score": round(face.score, 2),
        "yaw_deg": round(face.yaw_deg, 1),
        "mask": chosen.mask,
    }
    if max(box.width, box.height) > _SOFT_FROM * PATCH:
        notes["warning"] = (
            f"the face has {box.width}x{box.height} pixels but is painted with {PATCH}x{PATCH}: its mouth looks soft"
        )
    return notes


def make_deterministic(device: torch.device, threads: int = 0) -> None:
    """Make equal scenes give equal videos; on a GPU, leave the processor's other cores alone.

    threads  for a CPU; 0: one for each core that this process may use, but no more than torch would take
    """
    arithmetic.use_defaults()
    cv2.setNumThreads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
