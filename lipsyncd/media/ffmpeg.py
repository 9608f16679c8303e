"""Which ffmpeg is used, and the arguments that make an MP4 of raw frames and raw sound.

Owns the choice of the program and the encoding options. Leaves running it to `lipsyncd.sandbox.jail`, decoding to
`lipsyncd.prepare`, and checking the result to `lipsyncd.worker.check_result`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from lipsyncd.errors import ConfigError
from lipsyncd.processes import exit_text, usable_cores

log = logging.getLogger(__name__)

SOUND_RATE = 48_000  # samples per second of the raw sound and of the AAC track
ENCODERS = ("libx264", "aac")  # what `encode_arguments` needs
# In older versions a playlist can get around the allowed protocols and extensions (CVE-2026-107697). Forced demuxers
# and the jail protect against that, too.
MIN_VERSION = (8, 1, 3)

X264, NVENC = "x264", "nvenc"

_TIMEOUT_S = 30
_MOST_THREADS = 8
_LARGEST_RATE_TERM = 1_001_000  # ffmpeg rounds a rate whose reduced terms are larger
_KEYFRAME_INTERVAL_S = 2  # after a jump a player decodes at most this much
# From here on ffmpeg's fast coder is the better one, too: 8 dB less noise at 160 kbit/s, in a third of the time.
_FAST_CODER_KBPS = 64
_MOST_CHANGING = 0.8  # of the frame


def find(setting: str = "") -> Path:
    """The ffmpeg to use: `setting` (render.ffmpeg), else the one on PATH, else the binary bundled with imageio-ffmpeg.

    A setting is never replaced. An ffmpeg on PATH that cannot encode H.264 and AAC is skipped with a warning.

    Raises `ConfigError` when the configured one does not work, or when there is none at all.
    """
    if setting:
        return _configured(setting)
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        path = Path(on_path).absolute()
        fault = _fault(path)
        if not fault:
            return path
        log.warning("ffmpeg on PATH is not used: %s %s", path, fault)
    bundled, fault = _bundled()
    if bundled is None or fault:
        raise ConfigError(
            f"no ffmpeg with {' and '.join(ENCODERS)} found: {fault}",
            remedy="install ffmpeg or the package imageio-ffmpeg, or name one with render.ffmpeg",
        )
    return bundled


def _configured(setting: str) -> Path:
    found = shutil.which(Path(setting).expanduser())
    fault = "is not an executable program" if found is None else _fault(Path(found))
    if found is None or fault:
        raise ConfigError(
            f"render.ffmpeg = {setting!r} {fault}", remedy="name an ffmpeg with libx264 and aac, or leave it empty"
        )
    return Path(found).absolute()


def _bundled() -> tuple[Path | None, str]:
    try:
        import imageio_ffmpeg
    except ImportError:
        return None, "there is none on PATH and imageio-ffmpeg is not installed"
    try:
        path = Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        return None, f"imageio-ffmpeg has none for this machine ({error})"
    return path, _fault(path)


def _fault(path: Path) -> str:
    """Why the program at `path` cannot be used for encoding; "" when it can."""
    try:
        listing = _output_of(path, "-encoders")
    except OSError as error:
        return f"does not run: {error.strerror or error}"
    except subprocess.SubprocessError as error:
        return f"does not run: {error}"
    offered = {words[1] for line in listing.splitlines() if len(words := line.split()) > 1}
    missing = [name for name in ENCODERS if name not in offered]
    return f"has no encoder {' and no '.join(missing)}" if missing else ""


def version(path: Path) -> str:
    """The version that the program reports, for example `9.0.2` or `n9.0.2-17-g2a571b6068`.

    Raises `ConfigError` when it does not run or is not ffmpeg.
    """
    try:
        words = _output_of(path, "-version").split(maxsplit=3)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{path} does not run: {error}") from error
    if words[:2] != ["ffmpeg", "version"] or len(words) < 3:
        raise ConfigError(f"{path} is not ffmpeg: its output begins with {' '.join(words)[:60]!r}")
    return words[2]


def is_outdated(version: str) -> bool | None:
    """Is a version, as `version` returns it, older than `MIN_VERSION`? None when it does not begin with numbers."""
    found = re.match(r"n?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return None if found is None else tuple(int(part or 0) for part in found.groups()) < MIN_VERSION


def nvenc_fault(path: Path) -> str:
    """Why this ffmpeg cannot encode H.264 on the GPU; "" when it encoded a frame. Not jailed: the input is ours."""
    source = ["-f", "lavfi", "-i", "color=size=256x256:rate=25"]
    command = [os.fspath(path), "-v", "error", "-nostdin", *source, "-frames:v", "1", "-c:v", "h264_nvenc"]
    try:
        done = subprocess.run(
            [*command, "-f", "null", "-"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    words = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else words[0] if words else f"it {exit_text(done.returncode)}"


def _output_of(path: Path, option: str) -> str:
    command = [os.fspath(path), "-hide_banner", option]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=True, errors="replace"
    )
    return done.stdout


@dataclass(frozen=True)
class ChangingPart:
    """The part of the frames that changes in a video, which is sent alone and laid over the still frame.

    Its edges are even pixels of the frame, so that it has chroma samples of its own.
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, changes: tuple[int, int, int, int], width: int, height: int) -> ChangingPart | None:
        """The part for frames of this size in which only `changes` (left, top, right, bottom) differ.

        None when it is most of the frame: then whole frames cost less.
        """
        left, top = (max(edge // 2 * 2, 0) for edge in changes[:2])
        right, bottom = (
            min(-(-edge // 2) * 2, length) for edge, length in zip(changes[2:], (width, height), strict=True)
        )
        # A part without pixels cannot be sent.
        left, top = min(left, width - 2), min(top, height - 2)
        part = cls(left, top, max(right, left + 2), max(bottom, top + 2))
        return None if part.width * part.height > _MOST_CHANGING * width * height else part

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


@dataclass(frozen=True)
class Encoding:
    """One MP4 to encode from raw frames and raw sound.

    width, height  of the frames, even
    fps            exact frame rate
    sound          file of raw s16le samples at `SOUND_RATE`; None: a video without sound, to be joined with others
    channels       1 or 2; 0 without sound
    crf            x264's quality: 0 is lossless, 18 looks like the source, 51 is worst; NVENC's is similar
    preset         x264's speed, `ultrafast` to `placebo`
    threads        of x264; it may change the result: the same input gives the same bytes only with the same number
    encoder        "x264", or "nvenc" for that of an NVIDIA GPU
    changing       the only part of the frames that is sent, after one still frame; None: whole frames are
    """

    width: int
    height: int
    fps: Fraction
    sound: Path | None
    channels: int
    crf: int = 18
    preset: str = "veryfast"
    audio_kbps: int = 160
    threads: int = 2
    encoder: str = X264
    changing: ChangingPart | None = None

    @property
    def sent(self) -> tuple[int, int]:
        """Width and height of the pictures on stdin."""
        return (self.width, self.height) if self.changing is None else (self.changing.width, self.changing.height)

    @property
    def described(self) -> str:
        """For people: "x264, 2 threads", or "nvenc"."""
        return f"{self.encoder}, {self.threads} threads" if self.encoder == X264 else self.encoder

    def __post_init__(self) -> None:
        if self.width < 2 or self.height < 2 or self.width % 2 or self.height % 2:
            raise ValueError(f"a frame of {self.width}x{self.height} cannot be yuv420p; make both sides even")
        if self.channels not in ((0,) if self.sound is None else (1, 2)):
            raise ValueError(f"{self.channels} channels; the sound of a video has 1 or 2")
        if not 0 < self.fps.numerator <= _LARGEST_RATE_TERM or self.fps.denominator > _LARGEST_RATE_TERM:
            raise ValueError(f"a frame rate of {self.fps}; ffmpeg keeps terms up to {_LARGEST_RATE_TERM} exactly")


def encode_arguments(ffmpeg: Path, encoding: Encoding, target: Path, still: int = -1) -> list[str]:
    """The command that reads frames from stdin and writes `target`: H.264 High yuv420p and AAC, `moov` first.

    The frames are planes of yuv420p in the matrix bt709 and the limited range; `lipsyncd.renderers.i420` makes them.

    Without a sound, `target` has the video alone.

    still  with `encoding.changing`, the descriptor from which one whole frame is read: stdin has that part alone. The
           bytes of the video are the same as if whole frames were sent.

    All four colour fields are set in the stream and in the container: players take untagged colours for BT.601, which
    shifts those of skin. Sound and video each end where their input ends; neither is cut to the shorter one.

    The `bitexact` flags keep dates and library versions out of the file.
    """
    import ffmpeg as graph

    def pictures(descriptor: int, size: tuple[int, int]) -> Any:
        source = graph.input(
            f"pipe:{descriptor}",
            format="rawvideo",
            pixel_format="yuv420p",
            video_size=size,
            framerate=str(encoding.fps),
        )
        return source.video

    size, part = (encoding.width, encoding.height), encoding.changing
    video = pictures(0, encoding.sent)
    if part is not None:
        video = _laid_over(pictures(still, size), video, part, size)
    video = video.filter("setparams", range="tv", color_primaries="bt709", color_trc="bt709", colorspace="bt709")
    options = {**_h264_options(encoding), "profile:v": "high", "g": keyframe_interval(encoding.fps)}
    return _mp4_command(ffmpeg, video, encoding, target, options)


def join_arguments(ffmpeg: Path, encoding: Encoding, parts: Path, target: Path) -> list[str]:
    """The command that writes `target` of the videos that `parts` lists and the sound of the encoding.

    The videos are copied packet by packet; only the sound is encoded, as `encode_arguments` encodes it.

    parts  of `join_list`
    """
    import ffmpeg as graph

    video = graph.input(_file_url(parts), format="concat", safe=0).video
    return _mp4_command(ffmpeg, video, encoding, target, {"c:v": "copy"})


def join_list(names: Sequence[str]) -> str:
    """The text of a file that lists videos in its own folder, for ffmpeg's demuxer `concat`.

    names  of files: letters, digits, dots, hyphens
    """
    return "ffconcat version 1.0\n" + "".join(f"file {name}\n" for name in names)


def _mp4_command(
    ffmpeg: Path, video: Any, encoding: Encoding, target: Path, options: Mapping[str, object]
) -> list[str]:
    """The command that writes an MP4 of a video stream, and of the encoding's sound if there is one."""
    import ffmpeg as graph

    streams, sound_options = [video], {}
    if encoding.sound is not None:
        streams.append(
            graph.input(_file_url(encoding.sound), format="s16le", ar=SOUND_RATE, ac=encoding.channels).audio
        )
        sound_options = {
            "c:a": "aac",
            "b:a": f"{encoding.audio_kbps}k",
            "aac_coder": "fast" if encoding.audio_kbps >= _FAST_CODER_KBPS else "twoloop",
        }
    container = {
        "map_metadata": -1,
        "movflags": "+faststart",
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
        "flags:a": "+bitexact",
    }
    settings = {**options, **sound_options, **container}
    output = graph.output(*streams, _file_url(target), format="mp4", **settings).overwrite_output()
    command = output.global_args("-hide_banner", "-nostdin", "-xerror", "-loglevel", "error").compile(
        cmd=os.fspath(ffmpeg)
    )
    return [str(argument) for argument in command]


def keyframe_interval(fps: Fraction) -> int:
    """Frames from one key frame to the next, at most."""
    return max(1, round(_KEYFRAME_INTERVAL_S * fps))


def _h264_options(encoding: Encoding) -> dict[str, object]:
    if encoding.encoder == X264:
        return {"c:v": "libx264", "preset": encoding.preset, "crf": encoding.crf, "threads": encoding.threads}
    # Constant quality with B frames, as x264 has them; the presets of NVENC have other names.
    return {"c:v": "h264_nvenc", "preset": "p5", "rc": "vbr", "cq": encoding.crf, "b:v": 0, "bf": 3}


def encoder_threads() -> int:
    """The threads of x264 on this machine. Beyond eight they only add frames to what is held in memory."""
    return min(max(usable_cores(), 2), _MOST_THREADS)


def _laid_over(still: Any, changing: Any, part: ChangingPart, size: tuple[int, int]) -> Any:
    """The changing part, and the still frame around it, as one picture.

    Up to five rectangles are put together. The filter `overlay` would mix its inputs pixel by pixel, which costs twice
    as much.
    """
    import ffmpeg as graph

    (width, height), (left, top, right, bottom) = size, (part.left, part.top, part.right, part.bottom)
    around = ((0, 0, width, top), (0, top, left, bottom), (right, top, width, bottom), (0, bottom, width, height))
    boxes = [box for box in around if box[0] < box[2] and box[1] < box[3]]
    copies = still.filter("tpad", stop=-1, stop_mode="clone").filter_multi_output("split", len(boxes))
    tiles = [changing, *(_cut(copies[number], box) for number, box in enumerate(boxes))]
    layout = "|".join(f"{x}_{y}" for x, y, *_ in ((left, top), *boxes))
    return graph.filter(tiles, "xstack", inputs=len(tiles), layout=layout, shortest=1)


def _cut(video: Any, box: tuple[int, int, int, int]) -> Any:
    left, top, right, bottom = box
    return video.filter("crop", right - left, bottom - top, left, top)


def _file_url(path: Path) -> str:
    # Without the prefix, a colon in a folder's name would be read as a protocol.
    return f"file:{path.absolute()}"
