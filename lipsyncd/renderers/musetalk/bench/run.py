"""How fast the networks are on a device: each stage by itself, then a whole job, beside a matrix product.

    python -m lipsyncd.renderers.musetalk.bench.run REQUEST

REQUEST is a JSON object, see `Request`. Started by `lipsyncd bench`, since only this process imports torch. It prints
JSON objects, one a line, as soon as each is known: what is measured, each `stage`, the totals, or an `error`.

The code of a real render is timed: its loading, painter, pipeline, shot and encoder. Without a folder of weights the
networks have their published sizes and random weights, which take as long as trained ones. Finding the face is left
out: its networks are ONNX files that cannot be generated here, and a picture needs them once.

Owns the order of the stages. Leaves the computation to the modules of a render, and the table to `lipsyncd.cli.bench`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipsyncd import __version__
from lipsyncd.errors import DeviceMissing, LipsyncdError, OutOfMemory, UsageError
from lipsyncd.media.ffmpeg import SOUND_RATE, Encoding
from lipsyncd.renderers import SPEECH_RATE, Scene
from lipsyncd.renderers.audio import FULL_SCALE
from lipsyncd.renderers.encoder import Encoder
from lipsyncd.renderers.framing import Box, SquareView, square_around
from lipsyncd.renderers.musetalk import arithmetic, renderer
from lipsyncd.renderers.musetalk.audio_features import (
    BLOCK_STEPS,
    OVERLAP_STEPS,
    STEPS_PER_S,
    AudioEncoder,
    AudioFeatures,
)
from lipsyncd.renderers.musetalk.bench import random_inputs
from lipsyncd.renderers.musetalk.bench.random_inputs import FACE_BOX, FPS, HEIGHT, RESOLUTION, WIDTH
from lipsyncd.renderers.musetalk.bench.timing import ROUNDS_S, TOKENS, Clock, Stage, ceiling_of, work_gflop
from lipsyncd.renderers.musetalk.gpu_memory import GB, BatchSize, is_out_of_memory, limit_memory, peak_gb
from lipsyncd.renderers.musetalk.painting.fused.gate import Gate
from lipsyncd.renderers.musetalk.painting.fused.painter import FusedPainter
from lipsyncd.renderers.musetalk.painting.job_painter import JobPainter
from lipsyncd.renderers.musetalk.painting.latents import crop_face, latents_of
from lipsyncd.renderers.musetalk.painting.networks import PATCH, Painter, to_uint8
from lipsyncd.renderers.musetalk.painting.pipeline import Pipeline, scaled
from lipsyncd.renderers.musetalk.painting.prepared_face import prepare_face
from lipsyncd.renderers.musetalk.still_shot import StillShot, Voice
from lipsyncd.renderers.musetalk.turn import Turn

_SMALL_ROUNDS_S = 0.1
_ENCODED_FRAMES = 250  # at least: with fewer frames the start of ffmpeg would dominate


@dataclass(frozen=True)
class Request:
    """What to measure.

    weights      folder of the weights; empty for random ones
    batch        frames at a time; 0: 16 on a GPU and 1 on a CPU
    seconds      of sound; 0: 30 on a GPU and 0.2 on a CPU
    max_vram_gb  as the setting
    small        tiny networks, for tests: the figures mean nothing
    """

    device: str
    ffmpeg: str
    weights: str = ""
    batch: int = 0
    seconds: float = 0.0
    max_vram_gb: float = 14.0
    small: bool = False


class Networks(renderer.MuseTalk):
    """The renderer without the networks that find faces."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._turn = Turn()
        renderer.make_deterministic(device)

    def load(self, settings: renderer.RendererSettings) -> None:
        """Load what the first job waits for."""
        self._settings = settings
        limit_memory(self.device, settings.max_vram_gb)
        self._batch = BatchSize(self.device, settings.max_vram_gb)
        self._painter, self._audio_encoder = self._load_painter(), self._load_audio_encoder()
        self._gate = self._load_gate()
        self._of_job = JobPainter(self._painter)

    @property
    def painter(self) -> Painter:
        return self._painter

    @property
    def audio_encoder(self) -> AudioEncoder:
        return self._audio_encoder

    @property
    def of_job(self) -> JobPainter:
        """That of the latest job."""
        return self._of_job

    @property
    def gate(self) -> Gate | None:
        return self._gate

    @property
    def fused(self) -> FusedPainter | None:
        """The fused networks, if the comparison has let them pass or was not made yet."""
        gate = self._gate
        return gate.fused if gate and (gate.verdict is None or gate.verdict.passed) else None

    def batch(self, wanted: int) -> int:
        """The batch size that fits."""
        return self._batch.size(wanted)

    def compare(self, latents: Tensor, tokens: Tensor) -> None:
        """Compare the fused networks with the published ones on this batch, unless that is done."""
        JobPainter(self._painter, gate=self._gate).paint(latents, tokens)

    def shot(self, scene: Scene, batch: int, box: Box = FACE_BOX) -> StillShot:
        """As `open` returns it, for a face at a known place. Every frame is painted, since the voice has no pauses."""
        painter = self._of_job = JobPainter(self._painter, gate=self._gate)
        prepared = prepare_face(scene.picture, random_inputs.face_at(box), painter, random_inputs.labels_of, "jaw")
        voice = Voice(AudioFeatures(self._audio_encoder, scene.speech, scene.fps), np.ones(scene.frames, np.float32))
        pipeline = Pipeline(painter, self._batch, batch)
        return StillShot(scene, box, prepared, voice, pipeline, parity=False, notes={}, done=lambda _: None)


# -- the run -----------------------------------------------------------------------------------------------------------


class Bench:
    """One device, its networks and one scene, timed stage by stage."""

    def __init__(self, loaded: Networks, clock: Clock, request: Request, gflop: Mapping[str, float]) -> None:
        self._loaded, self._clock, self._gflop = loaded, clock, gflop
        self._batch, self._ffmpeg = request.batch, Path(request.ffmpeg)
        self.scene = random_inputs.scene_of(request.seconds)
        found = ceiling_of(clock, loaded.device, loaded.painter.dtype)
        self.ceiling, self.ceiling_of = found.tflops, found.of

    def stages(self) -> Iterator[Stage]:
        """Each stage once it is measured, the whole job last."""
        yield from self._encoding_inputs()
        yield from self._painting()
        yield self._encoding_video()
        yield self._job()

    def _encoding_inputs(self) -> Iterator[Stage]:
        sound = self.scene.speech[: 30 * SPEECH_RATE].astype(np.float32) / FULL_SCALE
        yield self._row(
            "whisper", "30 s block", self._clock.mean(lambda: self._loaded.audio_encoder.encode(sound)), "whisper"
        )
        crop = crop_face(self.scene.picture, FACE_BOX)
        with torch.inference_mode():
            took_s = self._clock.mean(lambda: latents_of(self._loaded.painter, crop), most=20)
        yield self._row("VAE encode", "picture", took_s, "encoder")

    def _painting(self) -> Iterator[Stage]:
        painter, size, rounds = self._loaded.painter, self._batch, -(-self.scene.frames // self._batch)
        face = random_inputs.face()
        paste = prepare_face(self.scene.picture, face, JobPainter(painter), random_inputs.labels_of, "jaw").paste
        rng = torch.Generator().manual_seed(0)
        latents = torch.randn(size, 8, PATCH // 8, PATCH // 8, generator=rng).to(painter.device, painter.dtype)
        tokens = torch.randn(size, TOKENS, 384, generator=rng).to(painter.device)
        with torch.inference_mode():
            self._loaded.compare(latents, tokens)
            painted = painter.predict(latents, tokens)
            yield from self._networks(painter, latents, tokens, painted, rounds)
            decoded = painter.decode(painted)
            parts = scaled(to_uint8(decoded), paste)
            pinned = painter.device.type == "cuda"
            targets = [torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned) for part in parts]

            def fetch() -> None:
                for target, part in zip(targets, scaled(to_uint8(decoded), paste), strict=True):
                    target.copy_(part, non_blocking=True)

            yield self._row("uint8, scale, copy", "frame", self._clock.mean(fetch, max(rounds, 10)))
        self._frame = self.scene.picture.copy()
        view = SquareView(WIDTH, HEIGHT, square_around(FACE_BOX, WIDTH, HEIGHT), RESOLUTION)
        patch = targets[0][0].numpy()

        def blend() -> None:
            paste.blend(self.scene.picture, patch, self._frame)
            self._blended = view.of(self._frame)

        yield self._row("blend, cut", "frame", self._clock.mean(blend, 2000), frames=1)

    def _networks(
        self, painter: Painter, latents: Tensor, tokens: Tensor, painted: Tensor, rounds: int
    ) -> Iterator[Stage]:
        """UNet and decoder: what jobs use, and where that is another form, the published one, each in turn."""
        fused, size = self._loaded.fused, len(latents)
        forms: list[tuple[str, str, Callable[[], object], Callable[[], object] | None]] = [
            ("UNet", "unet", partial(painter.predict, latents, tokens), None),
            ("decoder", "decoder", partial(painter.decode, painted), None),
        ]
        if fused:
            forms[1] = (*forms[1][:3], partial(fused.decode, painted))
            if fused.unet:
                forms[0] = (*forms[0][:3], partial(fused.predict, latents, tokens))
        for name, work, published, ours in forms:
            if ours is None:
                yield self._row(name, "frame", self._clock.mean(published, rounds), work, frames=size)
                continue
            times = self._clock.in_turn((ours, published), max(rounds, 2))
            yield self._row(name, "frame", times[0], f"fused {work}", frames=size)
            yield self._row(f"{name}, published", "frame", times[1], work, frames=size)

    def _encoding_video(self) -> Stage:
        count = max(self.scene.frames, _ENCODED_FRAMES)
        turned = [np.ascontiguousarray(np.roll(self._blended, shift, axis=1)) for shift in (0, 1)]

        def encode() -> None:
            with self._encoder(RESOLUTION, RESOLUTION, count / FPS) as encoder:
                for number in range(count):
                    encoder.write(turned[number // 2 % 2])
                encoder.finish()

        return self._row("encode to MP4", "frame", self._clock.once(encode), frames=count)

    def _job(self) -> Stage:
        scene = self.scene

        def render() -> None:
            shot = self._loaded.shot(scene, self._batch)
            with self._encoder(shot.width, shot.height, scene.frames / FPS) as encoder:
                for frame in shot.frames():
                    encoder.write(frame)
                encoder.finish()

        took_s = self._clock.once(render)
        steps = -(-len(scene.speech) * STEPS_PER_S // SPEECH_RATE)
        blocks = 1 + max(-(-(steps - BLOCK_STEPS) // (BLOCK_STEPS - OVERLAP_STEPS)), 0)
        fused = self._loaded.fused
        each = self._gflop["fused unet" if fused and fused.unet else "unet"]
        each += self._gflop["fused decoder" if fused else "decoder"]
        total = each * scene.frames + self._gflop["encoder"] + self._gflop["whisper"] * blocks
        return Stage("whole job", "frame", 1000 * took_s / scene.frames, total / scene.frames, self.ceiling)

    @contextmanager
    def _encoder(self, width: int, height: int, seconds: float) -> Iterator[Encoder]:
        with tempfile.TemporaryDirectory(prefix="lipsyncd-bench-") as folder:
            sound = Path(folder) / "sound.s16"
            sound.write_bytes(bytes(2 * round(seconds * SOUND_RATE)))
            encoding = Encoding(width=width, height=height, fps=Fraction(FPS), sound=sound, channels=1)
            with Encoder(self._ffmpeg, encoding, Path(folder) / "out.mp4") as encoder:
                yield encoder

    def _row(self, name: str, per: str, took_s: float, work: str = "", *, frames: int = 0) -> Stage:
        """A row. The time of a row for each frame was measured for a batch, or for `frames`."""
        count = (frames or self._batch) if per == "frame" else 1
        return Stage(name, per, 1000 * took_s / count, self._gflop[work] if work else None, self.ceiling)


# -- the program -------------------------------------------------------------------------------------------------------


def find_device(name: str) -> torch.device:
    """`renderer.find_device` with remedies for the command line. Raises `DeviceMissing`, `UsageError`."""
    try:
        return renderer.find_device(name)
    except DeviceMissing as error:
        raise DeviceMissing(error.message, remedy="check the driver with `nvidia-smi`, or add --device cpu") from None
    except RuntimeError:
        raise UsageError(f"torch has no device {name!r}", remedy="use auto, cpu or cuda:0") from None


def measure(request: Request) -> Iterator[dict[str, object]]:
    """The lines of one run, each as soon as it is known. Raises `LipsyncdError`."""
    device = find_device(request.device)
    gpu = device.type == "cuda"
    request = replace(
        request, batch=request.batch or (16 if gpu else 1), seconds=request.seconds or (30.0 if gpu else 0.2)
    )
    clock = Clock(device, _SMALL_ROUNDS_S if request.small else ROUNDS_S)
    with _weights(request) as folder:
        gflop = work_gflop(_configs_in(folder))
        loaded = Networks(device)
        load_s = clock.once(lambda: loaded.load(renderer.RendererSettings(folder, request.max_vram_gb)))
        loaded_gb = memory_gb(device)
    bench = Bench(loaded, clock, request, gflop)
    frames = bench.scene.frames
    yield {
        **_about(device),
        "precision": loaded.of_job.precision,
        "weights": request.weights or ("random, small" if request.small else "random"),
        "batch": request.batch,
        "seconds": request.seconds,
        "frames": frames,
        "source": f"{WIDTH}x{HEIGHT}",
        "video": f"{RESOLUTION}x{RESOLUTION}",
        "ceiling_tflops": bench.ceiling,
        "ceiling_of": bench.ceiling_of,
        "load_s": load_s,
        "memory": "VRAM" if gpu else "RSS",
        "loaded_gb": loaded_gb,
    }
    for stage in bench.stages():
        yield {"stage": stage.as_json()}
    yield {
        "job_s": stage.ms * frames / 1000,
        "peak_gb": most_memory_gb(device),
        # At the end of the job: its VAE may have switched to float32, and its batch may be halved.
        "precision": loaded.of_job.precision,
        "kernels": loaded.of_job.kernels,
        "batch": loaded.batch(request.batch),
    }


@contextmanager
def _weights(request: Request) -> Iterator[Path]:
    """The folder of weights of a request, or a temporary one with random weights."""
    if request.weights:
        yield Path(request.weights)
        return
    configs = random_inputs.small_configs() if request.small else random_inputs.published_configs()
    with tempfile.TemporaryDirectory(prefix="lipsyncd-weights-") as folder:
        random_inputs.write_weights(Path(folder), configs)
        yield Path(folder)


def _configs_in(folder: Path) -> random_inputs.Configs:
    files = {"unet": renderer.UNET_CONFIG, "vae": renderer.VAE_CONFIG, "whisper": renderer.WHISPER_CONFIG}
    return {name: json.loads((folder / file).read_text("utf-8")) for name, file in files.items()}


def memory_gb(device: torch.device) -> float:
    """The memory of the networks: of tensors on the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GB
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / GB


def most_memory_gb(device: torch.device) -> float:
    """The peak of `memory_gb` since the start of the process."""
    peak = peak_gb(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB if peak is None else peak


def _about(device: torch.device) -> dict[str, object]:
    gpu = device.type == "cuda"
    name = arithmetic.device_name(device)
    return {
        "device": str(device),
        "device_name": name if gpu else f"{name}, threads: {torch.get_num_threads()}",
        "versions": {
            "lipsyncd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **({"cuda": torch.version.cuda, "cudnn": _cudnn()} if gpu else {}),
            "diffusers": version("diffusers"),
            "transformers": version("transformers"),
        },
    }


def _cudnn() -> int | None:
    return torch.backends.cudnn.version()  # type: ignore[no-untyped-call, unused-ignore]


def main(request: Request) -> int:
    try:
        for line in measure(request):
            print(json.dumps(line), flush=True)
    except LipsyncdError as error:
        print(json.dumps({"error": error.reason()}), flush=True)
        return 1
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failure = OutOfMemory("a stage does not fit into the device's memory", remedy="use a smaller --batch")
        print(json.dumps({"error": failure.reason()}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Request(**json.loads(sys.argv[1]))))
