"""Every codec and container that phones, browsers, cameras, telephone systems and speaking services write."""

import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lipsyncd.errors import AudioUndecodable
from lipsyncd.media import Completeness, Kind, examine
from lipsyncd.prepare import decode_sound as decoder
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.web.routes.downloads import _TYPES
from tests.kits.media.codec_kit import amr, bw64, gsm_in_wav, mov, mp4, remuxed
from tests.kits.media.media_kit import converted, ffmpeg, streamed, tone, wav

SECONDS = 1.0


TAKEN = {
    "opus in mp4": (Kind.M4A, lambda: mp4("-c:a", "libopus")),
    "flac in mp4": (Kind.M4A, lambda: mp4("-c:a", "flac")),
    "mp3 in mp4": (Kind.M4A, lambda: mp4("-c:a", "libmp3lame")),
    "ac-3 in mp4": (Kind.M4A, lambda: mp4("-c:a", "ac3")),
    "e-ac-3 in mp4": (Kind.M4A, lambda: mp4("-c:a", "eac3")),
    "alac in mp4": (Kind.M4A, lambda: mp4("-c:a", "alac")),
    **{
        f"{codec} in mov": (Kind.M4A, lambda codec=codec: mov(codec))
        for codec in (
            "pcm_s16le",
            "pcm_s16be",
            "pcm_s24le",
            "pcm_s32be",
            "pcm_f32le",
            "pcm_f64be",
            "pcm_u8",
            "pcm_s8",
            "pcm_alaw",
            "pcm_mulaw",
        )
    },
    "amr in 3gp": (Kind.M4A, lambda: remuxed(amr(), "amr", ".3gp")),
    "amr-wb in 3gp": (Kind.M4A, lambda: remuxed(amr(wide=True), "amr", ".3gp")),
    "amr": (Kind.AMR, amr),
    "amr-wb": (Kind.AMR, lambda: amr(wide=True)),
    **{
        f"{codec} in wav": (Kind.WAV, lambda codec=codec: converted(".wav", "-c:a", codec))
        for codec in (
            "pcm_u8",
            "pcm_s24le",
            "pcm_s32le",
            "pcm_f32le",
            "pcm_f64le",
            "pcm_alaw",
            "pcm_mulaw",
            "adpcm_ms",
            "adpcm_ima_wav",
            "mp3",
        )
    },
    "g.722 in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "g722", "-ar", "16000")),
    "g.726 in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "g726", "-ar", "8000", "-b:a", "32k")),
    "gsm in wav": (Kind.WAV, gsm_in_wav),
    "bw64": (Kind.WAV, bw64),
    "w64": (Kind.W64, lambda: converted(".w64")),
    "w64, floats": (Kind.W64, lambda: converted(".w64", "-c:a", "pcm_f32le")),
    "aiff": (Kind.AIFF, lambda: converted(".aiff")),
    "aiff, 24 bits": (Kind.AIFF, lambda: converted(".aiff", "-c:a", "pcm_s24be")),
    "aiff-c, little endian": (Kind.AIFF, lambda: converted(".aiff", "-c:a", "pcm_s16le")),
    "aiff-c, mu-law": (Kind.AIFF, lambda: converted(".aiff", "-c:a", "pcm_mulaw")),
    "caf": (Kind.CAF, lambda: converted(".caf")),
    "caf, alac": (Kind.CAF, lambda: converted(".caf", "-c:a", "alac")),
    "opus in webm": (Kind.WEBA, lambda: converted(".webm", "-c:a", "libopus")),
    "vorbis in webm": (Kind.WEBA, lambda: converted(".webm", "-c:a", "libvorbis")),
    "opus in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "libopus")),
    "vorbis in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "libvorbis")),
    "aac in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "aac")),
    "floats in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "pcm_f32le")),
    "aac in adts": (Kind.AAC, lambda: converted(".aac")),
    "mp2": (Kind.MP3, lambda: converted(".mp2")),
}


def examined(data: bytes):
    descriptor = os.memfd_create("examined")
    try:
        os.write(descriptor, data)
        return examine(descriptor, len(data))
    finally:
        os.close(descriptor)


def decoded(folder: Path, data: bytes, kind: Kind):
    (folder / "input").write_bytes(data)
    return decode_sound(folder / "input", kind, folder, ffmpeg=ffmpeg())


@pytest.mark.parametrize("name", TAKEN)
def test_what_people_record_is_decoded_whole_and_without_a_note(tmp_path, name):
    kind, make = TAKEN[name]
    data = make()

    found = examined(data)

    assert found.kind is kind
    assert found.completeness in (Completeness.COMPLETE, Completeness.PLAUSIBLE), found.note
    sound = decoded(tmp_path, data, kind)
    assert float(sound.duration) == pytest.approx(SECONDS, abs=0.09)
    assert sound.notes == ()
    assert np.abs(np.fromfile(tmp_path / "speech.s16", "<i2").astype(int)).max() > 500


def film_with(codec: str) -> bytes:
    command = [
        str(ffmpeg()),
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "color=red:s=64x64:d=1",
        "-f",
        "lavfi",
        "-i",
        "sine=d=1",
        "-c:v",
        "mpeg4",
        "-c:a",
        codec,
        "-strict",
        "-2",
        "-f",
        "mp4",
        "-movflags",
        "frag_keyframe+empty_moov",
        "-",
    ]
    return subprocess.run(command, check=True, capture_output=True).stdout


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


REFUSED = {
    "wma in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "wmav2"), "the WAV holds WMA, which is not taken"),
    "wma pro in m4a": (Kind.M4A, lambda: _wma_pro_in_mp4(), "the M4A holds WMA Pro, which is not taken"),
    "mp2 in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "mp2"), "the WAV holds MP2, which is not taken"),
    "dts in mp4": (Kind.M4A, lambda: mp4("-c:a", "dca"), "the M4A holds DTS, which is not taken"),
    "dts in a film": (Kind.MP4, lambda: film_with("dca"), "the MP4 holds DTS, which is not taken"),
    "g.723.1 in wav": (
        Kind.WAV,
        lambda: converted(".wav", "-c:a", "g723_1", "-ar", "8000", "-b:a", "6300"),
        "the WAV holds G.723.1, which is not taken",
    ),
    "wma in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "wmav2"), "the Matroska file holds WMA, which"),
    "a codec that is not known": (
        Kind.WAV,
        lambda: patched(wav(tone(1.0)), b"\x10\0\0\0\1\0", b"\x10\0\0\0\x99\x77"),
        "the WAV holds a codec that is not known, which is not taken",
    ),
    "no sound": (Kind.MP4, lambda: _silent_film(), "the MP4 holds no sound"),
}


def _wma_pro_in_mp4() -> bytes:
    """No encoder writes it: the sample entry of DTS is renamed to the one of WMA Pro in QuickTime files."""
    return patched(mov("pcm_s16le"), b"sowt", b"ms\x01\x62")


def _silent_film() -> bytes:
    command = [str(ffmpeg()), "-v", "error", "-f", "lavfi", "-i", "color=red:s=64x64:d=1", "-c:v", "mpeg4"]
    flags = ["-f", "mp4", "-movflags", "frag_keyframe+empty_moov", "-"]
    return subprocess.run([*command, *flags], check=True, capture_output=True).stdout


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_out_is_named(tmp_path, name):
    kind, make, text = REFUSED[name]
    with pytest.raises(AudioUndecodable) as caught:
        decoded(tmp_path, make(), kind)
    assert text in caught.value.message
    assert "Invalid argument" not in caught.value.message


CUT = {
    "aiff": (Kind.AIFF, lambda: converted(".aiff", seconds=3.0), "of 3.00 s"),
    "caf": (Kind.CAF, lambda: converted(".caf", seconds=3.0), "cut short: "),
    "w64": (Kind.W64, lambda: converted(".w64", seconds=3.0), "of 3.00 s"),
    "mka": (Kind.MKA, lambda: converted(".mka", "-c:a", "pcm_s16le", seconds=3.0), "cut short: "),
}


@pytest.mark.parametrize("name", CUT)
def test_no_beginning_of_a_recording_counts_as_complete_and_half_of_it_is_heard(tmp_path, name):
    kind, make, note = CUT[name]
    data = make()
    for tenth in range(10):
        found = examined(data[: len(data) * tenth // 10])
        assert found.completeness is Completeness.TRUNCATED, (tenth, found)
    assert examined(data).completeness is Completeness.COMPLETE
    sound = decoded(tmp_path, data[: len(data) // 2], kind)
    assert float(sound.duration) == pytest.approx(1.5, abs=0.1)
    assert note in sound.notes[0]


@pytest.mark.parametrize("suffix", [".aiff", ".w64", ".caf"])
def test_joined_recordings_are_refused_by_name(tmp_path, suffix):
    kind = Kind(suffix[1:])
    with pytest.raises(AudioUndecodable, match=f"several {kind.upper()}s are joined in it"):
        decoded(tmp_path, converted(suffix) * 2, kind)


def with_length(suffix: str, length: int, *, before: bytes, form: str) -> bytes:
    """A whole file whose samples are declared to have that length, in the field behind `before`."""
    data = converted(suffix)
    return _replaced(data, data.index(before) + len(before), struct.pack(form, length))


def _replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


W64_DATA = b"data" + converted(".w64")[44:56]  # the identifier of that chunk
STREAMED = {
    "wav": (Kind.WAV, lambda: streamed("wav")),
    "rf64": (Kind.WAV, lambda: streamed("wav", "-rf64", "always")),
    "bw64": (Kind.WAV, lambda: streamed("wav", "-rf64", "always").replace(b"RF64", b"BW64", 1)),
    "mka": (Kind.MKA, lambda: streamed("matroska", "-c:a", "pcm_s16le")),
    "w64": (Kind.W64, lambda: streamed("w64")),
    "w64 of libsndfile": (Kind.W64, lambda: with_length(".w64", 0, before=W64_DATA, form="<Q")),
    "w64, 24 bits": (Kind.W64, lambda: streamed("w64", "-c:a", "pcm_s24le")),
    "aiff": (Kind.AIFF, lambda: streamed("aiff")),
    "aiff of sox": (Kind.AIFF, lambda: with_length(".aiff", 0x7F000008, before=b"SSND", form=">I")),
    "aiff, mu-law": (Kind.AIFF, lambda: streamed("aiff", "-c:a", "pcm_mulaw")),
    "caf": (Kind.CAF, lambda: streamed("caf")),
    "caf of length 0": (Kind.CAF, lambda: with_length(".caf", 0, before=b"data", form=">q")),
    "caf of 2^63 - 1": (Kind.CAF, lambda: with_length(".caf", 2**63 - 1, before=b"data", form=">q")),
    "flac": (Kind.FLAC, lambda: streamed("flac")),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_recording_that_was_streamed_is_not_waited_for_and_heard_whole(tmp_path, name):
    kind, make = STREAMED[name]
    data = make()
    found = examined(data)
    assert (found.kind, found.completeness, found.endless) == (kind, Completeness.PLAUSIBLE, False)
    sound = decoded(tmp_path, data, kind)
    assert float(sound.duration) == pytest.approx(SECONDS, abs=0.01)
    assert sound.notes == ()
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name != "input") == [".s16", ".s16"]


def test_every_kind_of_sound_has_a_decoder_and_a_type_on_the_web():
    assert {kind for kind in Kind if kind.is_audio} == set(decoder._FFMPEG)
    assert {kind.value for kind in Kind} <= set(_TYPES)


OTHER = {
    "a WMA sound": lambda: converted(".wma"),
    "a raw AC-3 sound": lambda: converted(".ac3"),
    "an AU sound": lambda: converted(".au"),
    "a WavPack sound": lambda: converted(".wv"),
    "a big-endian WAV": lambda: wav(tone(1.0)).replace(b"RIFF", b"RIFX", 1),
    "a MIDI file": lambda: b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + bytes(40),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_sound_that_is_not_taken_is_named_before_any_decoder_sees_it(name):
    found = examined(OTHER[name]())
    assert found.kind is None
    assert found.other.startswith(name)
