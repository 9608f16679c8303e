"""Decode what a user dropped, once, in the jail: a picture into raw RGB, a sound into raw samples.

Nothing else in lipsyncd opens a user's picture or sound with a decoder. The jailed process gets one file to read, and
its output files already made. So a decoder that was taken over reaches nothing else, and what it leaves is measured
here before anybody believes it.

Owns the choice of demuxer, codecs and limits, and the meaning of a decoder's failure. Leaves the walls to `jail`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from lipsyncd import media
from lipsyncd.errors import (
    AudioNotRecognised,
    AudioTooLong,
    AudioTooShort,
    AudioUndecodable,
    ImageAnimated,
    ImageNotRecognised,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    InputError,
    JailFailed,
    from_reason,
)
from lipsyncd.media import Completeness, Kind
from lipsyncd.sandbox.jail import Completed, Limits, run_jailed

SPEECH_RATE = 16_000  # samples per second, mono
SOUND_RATE = 48_000  # samples per second, one or two channels

_SAMPLE_BYTES = 2
_FEWEST_SAMPLES = 160  # of speech, 10 ms: less does not tell mono from stereo
_LONGEST_MESSAGE = 200  # characters
_PACKAGE = Path(__file__).resolve().parents[1]
_PICTURE_ERRORS = (ImageNotRecognised, ImageUndecodable, ImageTooLarge, ImageTooSmall, ImageAnimated)

_SAMPLES = "u8 s8 s16le s16be s24le s24be s32le s32be f32le f32be f64le f64be alaw mulaw"
_PCM = ",".join(f"pcm_{name}" for name in _SAMPLES.split(" "))
# For each kind the one demuxer that may open it, and the decoders that may see its packets. Both native and library
# names, since builds of ffmpeg differ. ffmpeg prefers to guess: by content, by name, and into playlists.
_FFMPEG = {
    Kind.WAV: ("wav", f"{_PCM},adpcm_ms,adpcm_ima_wav"),
    Kind.MP3: ("mp3", "mp3,mp3float"),
    Kind.M4A: ("mov", "aac,alac"),
    Kind.MP4: ("mov", "aac,alac"),
    Kind.OGG: ("ogg", "vorbis,libvorbis,opus,libopus,flac"),
    Kind.FLAC: ("flac", "flac"),
}


@dataclass(frozen=True)
class Picture:
    """`file` holds height x width x 3 bytes, RGB, upright and opaque. `notes` are for the sidecar."""

    file: Path
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sound:
    """Two raw files, both signed 16 bit little endian: what renderers hear, and what goes into the MP4.

    speech_samples  at 16 kHz, mono
    sound_samples   of each channel, at 48 kHz
    channels        1 where the source was mono, else 2, interleaved
    """

    speech_file: Path
    speech_samples: int
    sound_file: Path
    sound_samples: int
    channels: int
    notes: tuple[str, ...] = ()
    rate: int = SOUND_RATE

    @property
    def duration(self) -> Fraction:
        """Seconds, exactly: samples that were decoded, never what a header says."""
        return Fraction(self.sound_samples, self.rate)


def decode_picture(
    source: Path,
    target_dir: Path,
    *,
    background: tuple[int, int, int],
    max_megapixels: float = media.MAX_MEGAPIXELS,
    min_side: int = media.MIN_SIDE,
    timeout_s: float = 60,
) -> Picture:
    """Decode a PNG, JPEG or WebP into `target_dir/picture.rgb`, turned upright by its EXIF data, in sRGB.

    background  RGB, 0 to 255, shown through transparent parts

    Raises the Image* errors of `errors`, and `JailFailed` when the machine failed rather than the picture. Then no file
    is left behind.
    """
    with new_files(target_dir / "picture.rgb") as (file,):
        request = {
            "source": os.fspath(source),
            "target": os.fspath(file),
            "background": background,
            "max_megapixels": max_megapixels,
            "min_side": min_side,
        }
        ended = _run_picture(request, source, file, timeout_s)
        if ended.timed_out:
            raise ImageUndecodable(f"the picture was not decoded within {timeout_s:g} s")
        if ended.returncode:
            raise crash(ended, ImageUndecodable, "picture")
        return _checked_picture(_answer(ended), file)


def _run_picture(request: dict[str, Any], source: Path, target: Path, timeout_s: float) -> Completed:
    pillow = importlib.util.find_spec("PIL")
    if pillow is None or pillow.origin is None:
        raise JailFailed("Pillow is not installed", remedy="pip install pillow")
    site = Path(pillow.origin).resolve().parent.parent
    libraries = [path for path in (site / "PIL", site / "pillow.libs") if path.exists()]
    return run_jailed(
        [_interpreter(), "-P", "-S", "-m", "lipsyncd.prepare.picture_child", json.dumps(request)],
        readable=[source, _PACKAGE, *libraries],
        writable=[target],
        python_path=[_PACKAGE.parent, site],
        limits=Limits(cpu_s=2 * int(timeout_s) + 1, file_bytes=_picture_bytes(request["max_megapixels"])),
        timeout_s=timeout_s,
    )


def _interpreter() -> str:
    """The real Python: that of a virtual environment would look for the environment's own files first."""
    return str(getattr(sys, "_base_executable", "") or sys.executable)


def _picture_bytes(max_megapixels: float) -> int:
    return int(max_megapixels * 3_000_000) + 1


def _answer(ended: Completed) -> dict[str, Any]:
    """What the picture's decoder said. It saw hostile bytes, so its answer may be hostile too."""
    try:
        answer = json.loads(ended.stdout)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ImageUndecodable("the picture's decoder gave no answer")
    reason = answer.get("error")
    if not isinstance(reason, dict):
        return answer
    error = from_reason({name: _printable(str(text)) for name, text in reason.items()})
    if not isinstance(error, _PICTURE_ERRORS):
        raise ImageUndecodable("the picture's decoder gave no answer")
    raise error


def _checked_picture(answer: dict[str, Any], file: Path) -> Picture:
    width, height, notes = answer.get("width"), answer.get("height"), answer.get("notes")
    if not isinstance(width, int) or not isinstance(height, int) or not isinstance(notes, list):
        raise ImageUndecodable("the picture's decoder gave no answer")
    size_bytes = file.stat().st_size
    if width < 1 or height < 1 or size_bytes != width * height * 3:
        raise ImageUndecodable(f"the picture's decoder wrote {size_bytes} bytes for {width} x {height} pixels")
    return Picture(file, width, height, tuple(_printable(str(note)) for note in notes[:16]))


def decode_sound(
    source: Path,
    kind: Kind,
    target_dir: Path,
    *,
    ffmpeg: Path,
    min_s: float = 0.2,
    max_s: float = 600,
    timeout_s: float = 120,
) -> Sound:
    """Decode a sound into `target_dir/speech.s16` and `target_dir/sound.s16`, in one run of ffmpeg.

    kind  what `media.sniff` took it for; where `media.examine` sees deeper (a FLAC behind an MP3's tag), that counts

    A header may claim hours or nothing at all, so work is bounded by output and the duration is what came out. Raises
    the Audio* errors of `errors`, and `JailFailed` when the machine failed rather than the sound. Then no file is left
    behind.
    """
    found = _checked_header(source, kind)
    cut_off = found.completeness is Completeness.TRUNCATED
    notes = (f"the sound is cut off: {found.note}",) if cut_off else ()
    with new_files(target_dir / "speech.s16", target_dir / "sound.s16") as (speech_file, sound_file):
        ended = run_jailed(
            _sound_command(ffmpeg, source, found.kind or kind, speech_file, sound_file, max_s),
            readable=[source],
            writable=[speech_file, sound_file],
            limits=Limits(cpu_s=2 * int(timeout_s) + 1, file_bytes=_sound_bytes(max_s) + (1 << 20)),
            timeout_s=timeout_s,
        )
        if ended.timed_out:
            raise AudioUndecodable(f"the sound was not decoded within {timeout_s:g} s")
        if ended.returncode < 0:
            raise crash(ended, AudioUndecodable, "sound")
        said = complaint(ended.stderr_tail)
        if ended.returncode:
            raise AudioUndecodable(f"the sound cannot be decoded: {said or f'ffmpeg ended with {ended.returncode}'}")
        if said:
            notes = (*notes, f"damaged parts of the sound were left out: {said}")
        return _checked_sound(speech_file, sound_file, notes, min_s, max_s)


def _checked_header(source: Path, kind: Kind) -> media.Structure:
    """Judge the headers first: their own reader explains a fault better than ffmpeg does."""
    with source.open("rb") as file:
        found = media.examine(file.fileno(), source.stat().st_size)
    if found.kind is None and found.completeness is Completeness.TRUNCATED:
        raise AudioUndecodable(f"the sound cannot be decoded: {found.note}")
    if found.kind not in _FFMPEG or kind not in _FFMPEG:
        raise AudioNotRecognised("the sound is no WAV, MP3, M4A, OGG or FLAC")
    if found.completeness is Completeness.INVALID:
        raise AudioUndecodable(f"the sound cannot be decoded: {found.note}")
    return found


def _sound_command(ffmpeg: Path, source: Path, kind: Kind, speech: Path, sound: Path, max_s: float) -> list[str]:
    demuxer, codecs = _FFMPEG[kind]
    closed = ["-protocol_whitelist", "file", "-format_whitelist", demuxer, "-codec_whitelist", codecs]
    return [
        os.fspath(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1",
        *closed, "-f", demuxer, "-i", f"file:{source}",
        *_raw_output(speech, SPEECH_RATE, "mono", max_s),
        *_raw_output(sound, SOUND_RATE, "mono|stereo", max_s),
    ]  # fmt: skip


def _raw_output(target: Path, rate: int, layouts: str, max_s: float) -> list[str]:
    """The first audio stream, resampled, in the nearest of `layouts`: mono stays mono where both are allowed."""
    chain = f"aresample={rate},aformat=sample_fmts=s16:channel_layouts={layouts}"
    return [
        "-map", "0:a:0", "-vn", "-sn", "-dn", "-map_metadata", "-1", "-af", chain,
        # One second over the limit tells too long from just long enough. Timestamps can lie to -t, not to -fs.
        "-t", f"{max_s + 1:g}", "-fs", str(_sound_bytes(max_s)), "-f", "s16le", f"file:{target}",
    ]  # fmt: skip


def _sound_bytes(max_s: float) -> int:
    return int((max_s + 1) * SOUND_RATE) * 2 * _SAMPLE_BYTES


def _checked_sound(speech_file: Path, sound_file: Path, notes: Sequence[str], min_s: float, max_s: float) -> Sound:
    speech_samples = speech_file.stat().st_size // _SAMPLE_BYTES
    if speech_samples < _FEWEST_SAMPLES:
        raise AudioTooShort(f"the sound lasts {speech_samples / SPEECH_RATE:.3f} s, less than {min_s:g} s")
    values = sound_file.stat().st_size // _SAMPLE_BYTES
    # Both files come from one stream, so their sizes differ by the rates, times 1 or 2 channels.
    channels = round(values * SPEECH_RATE / (speech_samples * SOUND_RATE))
    if channels not in (1, 2) or values % channels:
        raise AudioUndecodable(f"its decoder wrote {speech_samples} samples of speech beside {values} of sound")
    sound = Sound(speech_file, speech_samples, sound_file, values // channels, channels, tuple(notes))
    if sound.duration < Fraction(str(min_s)):
        raise AudioTooShort(f"the sound lasts {float(sound.duration):.3f} s, less than {min_s:g} s")
    if sound.duration > Fraction(str(max_s)):
        raise AudioTooLong(f"the sound lasts longer than {max_s:g} s")
    return sound


def padded(sound: Sound, pad_s: float) -> Sound:
    """The same sound with `pad_s` seconds of silence behind it, in both files."""
    speech, samples = round(pad_s * SPEECH_RATE), round(pad_s * sound.rate)
    for file, values in ((sound.speech_file, speech), (sound.sound_file, samples * sound.channels)):
        with file.open("ab") as raw:
            raw.write(bytes(values * _SAMPLE_BYTES))
    return replace(sound, speech_samples=sound.speech_samples + speech, sound_samples=sound.sound_samples + samples)


def shortened(sound: Sound, duration: Fraction) -> Sound:
    """Cut both files of `sound` to `duration` seconds, down to a whole sample."""
    speech, samples = int(duration * SPEECH_RATE), int(duration * sound.rate)
    os.truncate(sound.speech_file, speech * _SAMPLE_BYTES)
    os.truncate(sound.sound_file, samples * sound.channels * _SAMPLE_BYTES)
    return replace(sound, speech_samples=speech, sound_samples=samples)


# -- both --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_files(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Empty files for the jail to fill, private to this user; removed again when the decode fails.

    Made here, so that the jailed process needs no right to make any.
    """
    try:
        for target in targets:
            target.unlink(missing_ok=True)
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield targets
    except BaseException:
        for target in targets:
            with contextlib.suppress(OSError):
                os.truncate(target, 0)  # the jail's walls keep the file a moment longer, and its room with it
            target.unlink(missing_ok=True)
        raise


def crash(ended: Completed, undecodable: type[InputError], what: str) -> InputError | JailFailed:
    """Whose fault it is that a decoder ended by itself, without an answer."""
    if ended.returncode == -signal.SIGKILL:
        return JailFailed(f"the {what}'s decoder was killed from outside, perhaps for want of memory")
    if ended.returncode < 0:
        return undecodable(f"the {what}'s decoder crashed on it ({signal.Signals(-ended.returncode).name})")
    last = next((line for line in reversed(ended.stderr_tail.splitlines()) if line.strip()), "no message")
    return JailFailed(f"the {what}'s decoder does not run: {_printable(last)}")


# What is no complaint: repetitions, and the streams that nobody asked for, which no listed codec may decode.
_HARMLESS = re.compile(r"Last message repeated|Codec \(\w+\) not on whitelist")
_SPEAKER = re.compile(r"^(\[[^\]]*\]\s*)+")  # [wav @ 0x55d0c8a0b2c0]


def complaint(stderr: str) -> str:
    """The first thing that ffmpeg complained about, which is the cause; what follows are consequences."""
    for line in stderr.splitlines():
        text = _SPEAKER.sub("", line).strip()
        if text and not _HARMLESS.search(line):
            return _printable(text)
    return ""


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LONGEST_MESSAGE]
