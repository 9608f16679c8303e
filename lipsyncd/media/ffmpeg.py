"""Which ffmpeg runs, and the argument list that turns raw frames and raw sound into an MP4.

Owns the choice of the program and the meaning of each encoding option. Leaves running it to the jail, decoding what
people drop to `lipsyncd.sandbox.jail`, and judging the result to `lipsyncd.mp4`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lipsyncd.errors import ConfigError
from lipsyncd.processes import exit_text

log = logging.getLogger(__name__)

SOUND_RATE = 48_000  # samples per second of the raw sound and of the AAC track
ENCODERS = ("libx264", "aac")  # what `encode_arguments` needs
# Older ones let a playlist in a file escape the protocols and extensions that are allowed (CVE-2026-107697). Forced
# demuxers and the jail stand before that, too.
FLOOR = (8, 1, 3)

_ASK_TIMEOUT_S = 30
_LARGEST_RATE_TERM = 1_001_000  # ffmpeg rounds a rate whose reduced terms are larger
_KEYFRAME_INTERVAL_S = 2  # how far a player has to decode after a jump, at most
# Without these the scaler takes shortcuts that are visible as a colour shift of one or two steps, and that differ
# between processors.
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def find(setting: str = "") -> Path:
    """The ffmpeg to use: `setting` (render.ffmpeg), else one on PATH, else the binary that imageio-ffmpeg carries.

    A setting is never overruled. An ffmpeg on PATH that cannot encode H.264 and AAC is passed over with a warning.

    Raises `ConfigError` when the setting names none that works, or when there is none at all.
    """
    if setting:
        return _as_set(setting)
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        path = Path(on_path).absolute()
        fault = _fault(path)
        if not fault:
            return path
        log.warning("ffmpeg on PATH passed over: %s %s", path, fault)
    carried, fault = _carried()
    if carried is None or fault:
        raise ConfigError(
            f"no ffmpeg with {' and '.join(ENCODERS)} found: {fault}",
            remedy="install ffmpeg or the package imageio-ffmpeg, or name one with render.ffmpeg",
        )
    return carried


def _as_set(setting: str) -> Path:
    found = shutil.which(Path(setting).expanduser())
    fault = "is no program that can be run" if found is None else _fault(Path(found))
    if found is None or fault:
        raise ConfigError(
            f"render.ffmpeg = {setting!r} {fault}", remedy="name an ffmpeg with libx264 and aac, or leave it empty"
        )
    return Path(found).absolute()


def _carried() -> tuple[Path | None, str]:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None, "there is none on PATH and imageio-ffmpeg is not installed"
    try:
        path = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        return None, f"imageio-ffmpeg carries none for this machine ({error})"
    return path, _fault(path)


def _fault(path: Path) -> str:
    """Why the program at `path` cannot encode for us; an empty text when it can."""
    try:
        listing = _ask(path, "-encoders")
    except OSError as error:
        return f"does not run: {error.strerror or error}"
    except subprocess.SubprocessError as error:
        return f"does not run: {error}"
    offered = {words[1] for line in listing.splitlines() if len(words := line.split()) > 1}
    missing = [name for name in ENCODERS if name not in offered]
    return f"has no encoder {' and no '.join(missing)}" if missing else ""


def version(path: Path) -> str:
    """What the program calls its own version, for example `9.0.2` or `n9.0.2-17-g2a571b6068`.

    Raises `ConfigError` when it does not run, or when it is something other than ffmpeg.
    """
    try:
        words = _ask(path, "-version").split(maxsplit=3)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    if words[:2] != ["ffmpeg", "version"] or len(words) < 3:
        raise ConfigError(f"{path} does not answer as ffmpeg does; it begins with {' '.join(words)[:60]!r}")
    return words[2]


def below_floor(version: str) -> bool | None:
    """Is a version, as `version` gives it, older than `FLOOR`? None for one that does not begin with numbers."""
    found = re.match(r"n?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return None if found is None else tuple(int(part or 0) for part in found.groups()) < FLOOR


def nvenc_fault(path: Path) -> str:
    """Why the GPU does not encode H.264 for this ffmpeg; "" when it made a frame. No jail: the input is ours."""
    source = ["-f", "lavfi", "-i", "color=size=256x256:rate=25"]
    command = [os.fspath(path), "-v", "error", "-nostdin", *source, "-frames:v", "1", "-c:v", "h264_nvenc"]
    try:
        done = subprocess.run(
            [*command, "-f", "null", "-"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_ASK_TIMEOUT_S,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    words = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else words[0] if words else f"it {exit_text(done.returncode)}"


def _ask(path: Path, question: str) -> str:
    command = [os.fspath(path), "-hide_banner", question]
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ASK_TIMEOUT_S, check=True, errors="replace"
    )
    return answer.stdout


@dataclass(frozen=True)
class Encoding:
    """One MP4 to make out of raw frames and raw sound.

    width, height  of the frames, even
    fps            exact frame rate
    sound          file of raw s16le samples at `SOUND_RATE`
    channels       1 or 2
    crf            x264's quality: 0 is lossless, 18 looks like the source, 51 is worst
    preset         x264's speed, `ultrafast` to `placebo`
    threads        part of the result: the same input gives the same bytes only with the same number
    """

    width: int
    height: int
    fps: Fraction
    sound: Path
    channels: int
    crf: int = 18
    preset: str = "veryfast"
    audio_kbps: int = 160
    threads: int = 2

    def __post_init__(self) -> None:
        if self.width < 2 or self.height < 2 or self.width % 2 or self.height % 2:
            raise ValueError(f"a frame of {self.width}x{self.height} cannot be yuv420p; make both sides even")
        if self.channels not in (1, 2):
            raise ValueError(f"{self.channels} channels; the sound of a video is mono or stereo")
        if not 0 < self.fps.numerator <= _LARGEST_RATE_TERM or self.fps.denominator > _LARGEST_RATE_TERM:
            raise ValueError(f"a frame rate of {self.fps}; ffmpeg keeps terms up to {_LARGEST_RATE_TERM} exactly")


def encode_arguments(ffmpeg: Path, encoding: Encoding, target: Path) -> list[str]:
    """The command that reads rgb24 frames from stdin and writes `target`: H.264 High yuv420p and AAC, `moov` first.

    The matrix is bt709 in the limited range, and all four colour fields say so in the stream and in the container:
    ffmpeg's own choice for RGB would be an untagged BT.601, which players show with a shifted skin. Sound and video
    both end where their input ends; nothing is cut to the shorter one.

    The `bitexact` flags keep dates and versions of libraries out of the file.
    """
    import ffmpeg as graph

    video = (
        graph.input(
            "pipe:0",
            format="rawvideo",
            pixel_format="rgb24",
            video_size=(encoding.width, encoding.height),
            framerate=str(encoding.fps),
        )
        .video.filter("scale", out_color_matrix="bt709", out_range="tv", flags=_SCALE_FLAGS)
        .filter("format", "yuv420p")
        .filter("setparams", range="tv", color_primaries="bt709", color_trc="bt709", colorspace="bt709")
    )
    sound = graph.input(_file_url(encoding.sound), format="s16le", ar=SOUND_RATE, ac=encoding.channels).audio
    options = {
        "c:v": "libx264",
        "profile:v": "high",
        "preset": encoding.preset,
        "crf": encoding.crf,
        "g": max(1, round(_KEYFRAME_INTERVAL_S * encoding.fps)),
        "threads": encoding.threads,
        "c:a": "aac",
        "b:a": f"{encoding.audio_kbps}k",
        "map_metadata": -1,
        "movflags": "+faststart",
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
        "flags:a": "+bitexact",
    }
    output = graph.output(video, sound, _file_url(target), format="mp4", **options).overwrite_output()
    command = output.global_args("-hide_banner", "-nostdin", "-xerror", "-loglevel", "error").compile(
        cmd=os.fspath(ffmpeg)
    )
    return [str(argument) for argument in command]


def _file_url(path: Path) -> str:
    # The prefix keeps a colon in a folder's name from being read as a protocol.
    return f"file:{path.absolute()}"
