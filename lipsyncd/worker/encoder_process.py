"""Start the jailed ffmpeg that encodes a video, and try whether it can.

A GPU's encoder needs the files of its driver, and maps far more memory than it uses; x264 gets none of that.

Owns what the encoding ffmpeg may reach. Leaves its arguments to `lipsyncd.media.ffmpeg`, and feeding it to the module
that has the frames.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from lipsyncd.errors import BadResult, ConfigError, EncodeFailed
from lipsyncd.media.ffmpeg import SOUND_RATE, X264, Encoding, encode_arguments
from lipsyncd.processes import exit_text, last_line
from lipsyncd.sandbox.jail import JailedProcess, ResourceLimits, end, popen_jailed
from lipsyncd.worker.check_result import validate

# The job's own deadline ends a long encode; these only stop an ffmpeg that runs wild.
_LIMITS = ResourceLimits(cpu_s=24 * 3600, file_bytes=32 << 30, memory_bytes=16 << 30)
# CUDA reserves addresses for all memory of all GPUs, makes files in memory, and compiles.
_GPU_LIMITS = ResourceLimits(
    cpu_s=24 * 3600,
    file_bytes=32 << 30,
    memory_bytes=1 << 46,
    open_files=1024,
    write_or_execute=False,
    memory_files=True,
)
_GPU_FACTS = ("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/proc/self", "/sys/devices")
_SIDE_PX = 256  # NVENC refuses much smaller frames
_RATE = Fraction(25)
_TIMEOUT_S = 8.0


def popen_encoder(
    command: Sequence[str],
    encoding: Encoding,
    target: Path,
    *,
    stderr: int,
    inputs: Sequence[Path] = (),
    stdin: int = subprocess.PIPE,
    descriptors: Sequence[int] = (),
) -> JailedProcess:
    """Start the command of `encode_arguments` or `join_arguments`, to fill `target`, a file that exists.

    inputs  files that it reads besides the sound

    Raises `JailFailed`.
    """
    on_gpu = encoding.encoder != X264
    return popen_jailed(
        command,
        readable=[
            *inputs,
            *((encoding.sound,) if encoding.sound else ()),
            *(path for path in map(Path, _GPU_FACTS) if on_gpu and path.exists()),
        ],
        writable=[target],
        devices=sorted(Path("/dev").glob("nvidia*")) if on_gpu else (),
        limits=_GPU_LIMITS if on_gpu else _LIMITS,
        stdin=stdin,
        stderr=stderr,
        descriptors=descriptors,
    )


def encode_one_frame(ffmpeg: Path, encoder: str = X264) -> None:
    """Encode one frame and its sound in the jail, with a render's own command, and check the result.

    Raises `EncodeFailed`, `BadResult`, `JailFailed`.
    """
    with tempfile.TemporaryDirectory(prefix="lipsyncd-encoder-") as folder:
        sound, target = Path(folder, "sound.raw"), Path(folder, "frame.mp4")
        sound.write_bytes(bytes(2 * int(SOUND_RATE / _RATE)))
        target.touch()
        encoding = Encoding(_SIDE_PX, _SIDE_PX, _RATE, sound, channels=1, preset="ultrafast", encoder=encoder)
        process = popen_encoder(encode_arguments(ffmpeg, encoding, target), encoding, target, stderr=subprocess.PIPE)
        try:
            _, output = process.communicate(bytes(3 * _SIDE_PX * _SIDE_PX // 2), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise EncodeFailed(f"{ffmpeg} made no MP4 within {_TIMEOUT_S:g} s") from None
        finally:
            end(process)
        if process.returncode:
            why = last_line(output.decode(errors="replace")) or f"it {exit_text(process.returncode)}"
            raise EncodeFailed(f"{ffmpeg} made no MP4: {why}")
        validate(
            target, frames=1, fps=_RATE, width=_SIDE_PX, height=_SIDE_PX, duration=1 / _RATE, ffmpeg=ffmpeg
        )  # fmt: skip


def require_encoder(ffmpeg: Path, encoder: str) -> None:
    """Raise `ConfigError` where the encoder of `output.encoder` does not work; x264 is known to since it was found."""
    if encoder == X264:
        return
    try:
        encode_one_frame(ffmpeg, encoder)
    except (EncodeFailed, BadResult) as error:
        raise ConfigError(
            f"output.encoder is {encoder!r}, but {error.message}",
            remedy='set output.encoder = "x264"; nvenc needs a GPU with an encoder (L4, L40S and A10 have one; A100, '
            "H100 and H200 have none), its driver, and an ffmpeg with h264_nvenc",
        ) from None
