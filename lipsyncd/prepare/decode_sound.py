"""Decode a user's sound into raw samples, once, by a jailed ffmpeg.

Owns the choice of demuxer, codecs and limits. The length of a sound is what was decoded, never what a header claims.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from lipsyncd import media
from lipsyncd.errors import AudioNotRecognised, AudioTooLong, AudioTooShort, AudioUndecodable
from lipsyncd.jobs.prepared import Sound
from lipsyncd.media import Completeness, Kind, frames, recordings, wav
from lipsyncd.media.content import Content
from lipsyncd.prepare.codecs import undecodable
from lipsyncd.prepare.decoder_process import complaint, crash, new_files
from lipsyncd.prepare.heard_channel import heard_channel
from lipsyncd.sandbox.jail import ResourceLimits, run_jailed

SPEECH_FILE, SOUND_FILE = "speech.s16", "sound.s16"
SPEECH_RATE = 16_000  # samples per second, mono
SOUND_RATE = 48_000  # samples per second, one or two channels

_REWRITTEN_FILE = "rewritten"
_Piece = bytes | tuple[int, int]  # of a rewritten file: new bytes, or start and end of a range of the source
_AUDIBLE_S = 0.1
_SAMPLE_BYTES = 2
_FEWEST_SAMPLES = 160  # of speech, 10 ms: less does not tell mono from stereo

_SAMPLES = "u8 s8 s16le s16be s24le s24be s32le s32be f32le f32be f64le f64be alaw mulaw"
_PCM = ",".join(f"pcm_{name}" for name in _SAMPLES.split(" "))
_AMR = "amrnb,libopencore_amrnb,amrwb,libopencore_amrwb"
_IN_WAV = f"{_PCM},adpcm_ms,adpcm_ima_wav,mp3,mp3float,gsm_ms,g722,g726"
_IN_MP4 = f"{_PCM},aac,alac,mp3,mp3float,opus,libopus,flac,ac3,eac3,adpcm_ima_qt,{_AMR}"
_IN_WEBM = "vorbis,libvorbis,opus,libopus,pcm_f32le"  # browsers record floats, too
# For each kind the one demuxer that may open it, and the decoders that may see its packets. Both native and library
# names, since builds of ffmpeg differ. ffmpeg prefers to guess: by content, by name, and into playlists.
_FFMPEG = {
    Kind.WAV: ("wav", _IN_WAV),
    Kind.W64: ("w64", _IN_WAV),
    Kind.MP3: ("mp3", "mp3,mp3float,mp2,mp2float"),
    Kind.AAC: ("aac", "aac"),
    Kind.M4A: ("mov", _IN_MP4),
    Kind.MP4: ("mov", _IN_MP4),
    Kind.OGG: ("ogg", "vorbis,libvorbis,opus,libopus,flac"),
    Kind.FLAC: ("flac", "flac"),
    Kind.WEBM: ("matroska", _IN_WEBM),
    Kind.WEBA: ("matroska", _IN_WEBM),
    Kind.MKA: ("matroska", f"{_IN_WEBM},{_PCM},aac,alac,mp3,mp3float,flac,ac3,eac3"),
    Kind.AMR: ("amr", _AMR),
    Kind.AIFF: ("aiff", f"{_PCM},adpcm_ima_qt"),
    Kind.CAF: ("caf", f"{_PCM},aac,alac,adpcm_ima_qt,mp3,mp3float,opus,libopus,flac"),
}


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
    with (
        _readable(source, found.kind, target_dir) as (whole, notes),
        new_files(target_dir / SPEECH_FILE, target_dir / SOUND_FILE) as (speech_file, sound_file),
    ):
        limits = ResourceLimits(cpu_s=2 * int(timeout_s) + 1, file_bytes=_sound_bytes(max_s) + (1 << 20))
        ended = run_jailed(
            _sound_command(ffmpeg, whole, found.kind or kind, speech_file, sound_file, max_s),
            readable=[whole],
            writable=[speech_file, sound_file],
            limits=limits,
            timeout_s=timeout_s,
        )
        if ended.timed_out:
            raise AudioUndecodable(f"the sound was not decoded within {timeout_s:g} s")
        if ended.returncode < 0:
            raise crash(ended, AudioUndecodable, "sound")
        fault = complaint(ended.stderr_tail)
        if ended.returncode:
            raise undecodable(found.kind or kind, ended)
        cut_short = found.completeness is Completeness.TRUNCATED
        if fault and not cut_short:
            notes = (*notes, f"damaged parts of the sound were left out: {fault}")
        sound = _checked_sound(speech_file, sound_file, notes, min_s, max_s)
        channel = heard_channel(speech_file, SPEECH_RATE, sound_file, SOUND_RATE) if sound.channels == 2 else None
        if channel is not None:
            listened = run_jailed(
                _channel_command(ffmpeg, sound_file, channel, speech_file, max_s),
                readable=[sound_file],
                writable=[speech_file],
                limits=limits,
                timeout_s=timeout_s,
            )
            if listened.returncode or listened.timed_out:
                raise crash(listened, AudioUndecodable, "sound")
            sound = _checked_sound(speech_file, sound_file, notes, min_s, max_s)
        return replace(sound, notes=(_cut_short(sound, found), *notes)) if cut_short else sound


def _cut_short(sound: Sound, found: media.Structure) -> str:
    lasts_s = float(sound.duration)
    of = f" of {found.declared_s:.2f} s" if found.declared_s >= lasts_s + 0.01 else f" s; {found.note}"
    return f"cut short: {lasts_s:.2f}{of}"


@contextlib.contextmanager
def _readable(source: Path, kind: Kind | None, target_dir: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file to decode, and notes: the source itself, or while the block runs, a copy of which a decoder reads all.

    A decoder plays the first of joined WAVs alone, and nothing behind some of the lengths that stand for "unknown".
    The tags inside joined MP3s are damage to it.
    Raises `AudioUndecodable` when the formats of joined WAVs differ.
    """
    with source.open("rb") as file:
        content = Content(file.fileno(), source.stat().st_size)
        if kind is Kind.WAV:
            try:
                found = wav.samples(content)
            except ValueError as error:
                raise AudioUndecodable(f"the sound cannot be decoded: {error}") from None
            notes: tuple[str, ...] = ()
            if found.behind_s > _AUDIBLE_S:
                notes = (f"{found.behind} bytes behind the end that the WAV declares were left out",)
            pieces: list[_Piece] = [] if found.as_is else [found.header(), *found.blocks()]
        else:
            notes, pieces = (), _rewritten(content, kind)
        if not pieces:
            yield source, notes
            return
        with new_files(target_dir / _REWRITTEN_FILE) as (rewritten,):
            try:
                with rewritten.open("wb", buffering=0) as target:
                    for piece in pieces:
                        if isinstance(piece, bytes):
                            target.write(piece)
                        else:
                            _copy(file.fileno(), target.fileno(), *piece)
                yield rewritten, notes
            finally:
                rewritten.unlink()


def _rewritten(content: Content, kind: Kind | None) -> list[_Piece]:
    """A file with other lengths in its header, or without the tags inside; [] where nothing has to be changed."""
    if kind is Kind.MP3:
        return [*frames.without_tags(content)]
    if kind is Kind.AMR:
        return [*recordings.without_headers(content)]
    if kind is Kind.FLAC and content.size > 128 and content.at(content.size - 128, 3) == b"TAG":  # ID3v1
        return [(0, content.size - 128)]
    if kind not in (Kind.AIFF, Kind.CAF, Kind.W64):
        return []
    pieces: list[_Piece] = []
    start = 0
    for change in recordings.true_lengths(content):
        pieces += [(start, change.offset), change.data]
        start = change.offset + len(change.data)
    return [*pieces, (start, content.size)] if pieces else []


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Append a range of bytes of one file to another."""
    while start < end:
        block = os.pread(source, min(1 << 20, end - start), start)
        if not block:
            return
        os.write(target, block)
        start += len(block)


def _checked_header(source: Path, kind: Kind) -> media.Structure:
    """Judge the headers first: their own reader explains a fault better than ffmpeg does."""
    with source.open("rb") as file:
        found = media.examine(file.fileno(), source.stat().st_size)
    if found.kind is None and found.completeness is Completeness.TRUNCATED:
        raise AudioUndecodable(f"the sound cannot be decoded: {found.note}")
    if found.kind not in _FFMPEG or kind not in _FFMPEG:
        raise AudioNotRecognised("the file is no sound in a format that is taken")
    if found.completeness is Completeness.INVALID:
        raise AudioUndecodable(f"the sound cannot be decoded: {found.note}")
    return found


def _sound_command(ffmpeg: Path, source: Path, kind: Kind, speech: Path, sound: Path, max_s: float) -> list[str]:
    demuxer, codecs = _FFMPEG[kind]
    closed = ["-protocol_whitelist", "file", "-format_whitelist", demuxer, "-codec_whitelist", codecs]
    return [
        os.fspath(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1",
        *closed, "-f", demuxer, "-i", f"file:{source}",
        *_raw_output(speech, f"{_two_channels(SPEECH_RATE)},aresample={SPEECH_RATE},{_MONO}", max_s),
        *_raw_output(sound, f"{_two_channels(SOUND_RATE)},aformat=sample_fmts=s16", max_s),
    ]  # fmt: skip


_MONO = "aformat=sample_fmts=s16:channel_layouts=mono"


def _two_channels(rate: int) -> str:
    """Resampled, with at most two channels; mono stays mono.

    Of more channels the centre keeps its full level, since it is the voice: ffmpeg's own mix makes it quieter the more
    channels there are. The surround channels are halved. A mix beyond full scale is limited to it.
    """
    mix = "clev=1:slev=0.5:rematrix_maxval=16"
    return f"aresample={rate}:{mix},aformat=sample_fmts=fltp:channel_layouts=mono|stereo"


def _channel_command(ffmpeg: Path, sound: Path, channel: int, speech: Path, max_s: float) -> list[str]:
    """Make speech of one channel of the raw sound, which is ours: no decoder sees the user's file again."""
    return [
        os.fspath(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1",
        "-protocol_whitelist", "file", "-format_whitelist", "s16le", "-codec_whitelist", "pcm_s16le",
        "-f", "s16le", "-ar", str(SOUND_RATE), "-ac", "2", "-i", f"file:{sound}",
        *_raw_output(speech, f"pan=mono|c0=c{channel},aresample={SPEECH_RATE},{_MONO}", max_s),
    ]  # fmt: skip


def _raw_output(target: Path, chain: str, max_s: float) -> list[str]:
    """The first audio stream behind a chain of filters, as raw samples."""
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
    sound = Sound(
        speech_file.name, speech_samples, sound_file.name, values // channels, SOUND_RATE, channels, tuple(notes)
    )
    if sound.duration < Fraction(str(min_s)):
        raise AudioTooShort(f"the sound lasts {float(sound.duration):.3f} s, less than {min_s:g} s")
    if sound.duration > Fraction(str(max_s)):
        raise AudioTooLong(f"the sound lasts longer than {max_s:g} s")
    return sound


def padded(sound: Sound, folder: Path, pad_s: float) -> Sound:
    """The same sound with `pad_s` seconds of silence behind it, in both files in `folder`."""
    speech, samples = round(pad_s * SPEECH_RATE), round(pad_s * sound.rate)
    for file, values in ((sound.speech_file, speech), (sound.file, samples * sound.channels)):
        with (folder / file).open("ab") as raw:
            raw.write(bytes(values * _SAMPLE_BYTES))
    return replace(sound, speech_samples=sound.speech_samples + speech, samples=sound.samples + samples)


def shortened(sound: Sound, folder: Path, duration: Fraction) -> Sound:
    """Cut both files of `sound` in `folder` to `duration` seconds, down to a whole sample."""
    speech, samples = int(duration * SPEECH_RATE), int(duration * sound.rate)
    os.truncate(folder / sound.speech_file, speech * _SAMPLE_BYTES)
    os.truncate(folder / sound.file, samples * sound.channels * _SAMPLE_BYTES)
    return replace(sound, speech_samples=speech, samples=samples)
