"""WAVs whose lengths lie, and WAVs that are joined: what comes out lasts as long as what was put in."""

import os
import struct

import pytest

from lipsyncd.errors import AudioUndecodable
from lipsyncd.media import Completeness, Kind, examine
from lipsyncd.prepare.decode_sound import decode_sound
from tests.kits.media.codec_kit import amr
from tests.kits.media.media_kit import converted, ffmpeg, stereo, tone, wav

ONE = wav(tone(1.5))
LIST = b"LIST\x0a\0\0\0INFOabcdef"
ODD = wav(bytes(range(100, 156)) * 300 + b"z", bits=8)  # 16,801 samples
UNKNOWN = [0, 10**9, 2 * 10**9, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFF000, 0xFFFFFFFF - 36, 0x80000000]


def decoded(folder, data: bytes, kind: Kind = Kind.WAV):
    (folder / "input").write_bytes(data)
    try:
        return decode_sound(folder / "input", kind, folder, ffmpeg=ffmpeg())
    finally:
        assert set(os.listdir(folder)) <= {"input", "speech.s16", "sound.s16"}


def examined(data: bytes):
    descriptor = os.memfd_create("examined")
    try:
        os.write(descriptor, data)
        return examine(descriptor, len(data))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("declared", UNKNOWN)
def test_a_length_that_stands_for_unknown_is_no_lie(tmp_path, declared):
    data = wav(tone(1.5), data_bytes=declared)
    assert examined(data).completeness is Completeness.PLAUSIBLE
    sound = decoded(tmp_path, data)
    assert (float(sound.duration), sound.notes) == (1.5, ())


CUT = {
    "a wav": (Kind.WAV, lambda: ONE[: 44 + 33_600], 1.05, "cut short: 1.05 of 1.50 s"),
    "joined wavs": (Kind.WAV, lambda: (ONE * 3)[:-9600], 4.2, "cut short: 4.20 of 4.50 s"),
    "an mp3": (Kind.MP3, lambda: converted(".mp3", seconds=3.0)[:9000], 1.07, "cut short: 1.07 of 3.03 s"),
    "a flac": (
        Kind.FLAC,
        lambda: converted(".flac", seconds=20.0, channels=2)[: len(converted(".flac", seconds=20.0, channels=2)) // 2],
        10.0,
        " of 20.00 s",
    ),
    "an m4a": (
        Kind.M4A,
        lambda: converted(".m4a", "-movflags", "+faststart", seconds=3.0)[:16_000],
        1.65,
        "cut short: 1.65 of 3.00 s",
    ),
    "an ogg": (Kind.OGG, lambda: converted(".opus", seconds=20.0)[:80_000], 10.0, "cut short: "),
}


@pytest.mark.parametrize("name", CUT)
def test_a_sound_that_is_cut_short_plays_as_far_as_it_goes_and_tells_how_far(tmp_path, name):
    kind, make, seconds, note = CUT[name]
    data = make()
    assert examined(data).completeness is Completeness.TRUNCATED
    sound = decoded(tmp_path, data, kind)
    assert float(sound.duration) == pytest.approx(seconds, abs=0.02 if seconds < 5 else 2.5)
    [only] = sound.notes
    assert note in only


JOINED = {
    "three": (lambda: ONE * 3, 4.5),
    "with a LIST between them": (lambda: (ONE + LIST) * 3, 4.5),
    "of an odd number of bytes": (lambda: ODD * 3, 3 * 16_801 / 16_000),
    "of an odd number of bytes, filled up": (lambda: (ODD + b"\0") * 3, 3 * 16_801 / 16_000),
    "of unknown length": (lambda: wav(tone(1.5), data_bytes=0xFFFFFFFF) * 3, 4.5),
    "the last one of unknown length": (lambda: ONE + wav(tone(1.5), data_bytes=0), 3.0),
    "behind an empty one": (lambda: wav(b"") + ONE * 2, 3.0),
    "mu-law": (lambda: converted(".wav", "-c:a", "pcm_mulaw") * 3, 3.0),
    "floats": (lambda: converted(".wav", "-c:a", "pcm_f32le") * 2, 2.0),
    "24 bits": (lambda: converted(".wav", "-c:a", "pcm_s24le", channels=2) * 2, 2.0),
    "RF64": (lambda: converted(".wav", "-rf64", "always") * 2, 2.0),
    "plain and with a longer format chunk": (lambda: ONE + _longer_format(ONE), 3.0),
    "a thousand": (lambda: wav(tone(0.02)) * 1000, 20.0),
}


def _longer_format(data: bytes) -> bytes:
    return data[:16] + struct.pack("<I", 18) + data[20:36] + b"\0\0" + data[36:]


@pytest.mark.parametrize("name", JOINED)
def test_joined_wavs_are_one_sound(tmp_path, name):
    make, seconds = JOINED[name]
    sound = decoded(tmp_path, make())
    assert float(sound.duration) == pytest.approx(seconds, abs=0.001)
    assert sound.notes == ()


def test_the_samples_of_joined_wavs_follow_one_another_without_a_gap(tmp_path):
    decoded(tmp_path, wav(tone(3.0)))
    whole = (tmp_path / "speech.s16").read_bytes()
    for length in (None, 0xFFFFFFFF):
        halves = [wav(part, data_bytes=length) for part in (tone(3.0)[:50_002], tone(3.0)[50_002:])]
        decoded(tmp_path, b"".join(halves))
        assert (tmp_path / "speech.s16").read_bytes() == whole


MIXED = {
    "another rate": lambda: ONE + wav(tone(1), rate=8000),
    "more channels": lambda: ONE + wav(stereo(tone(1)), channels=2),
    "another width": lambda: ONE + wav(b"abc" * 8000, bits=24),
    "behind one of unknown length": lambda: wav(tone(1), data_bytes=0xFFFFFFFF) + wav(tone(1), rate=8000),
}


@pytest.mark.parametrize("name", MIXED)
def test_joined_wavs_of_different_formats_are_refused_by_name(tmp_path, name):
    with pytest.raises(AudioUndecodable, match="several WAVs are joined in it: the first has format 1 with 1 channels"):
        decoded(tmp_path, MIXED[name]())


def test_a_tag_behind_a_flac_is_no_damage(tmp_path):
    sound = decoded(tmp_path, converted(".flac") + b"TAG" + bytes(125), Kind.FLAC)
    assert (float(sound.duration), sound.notes) == (1.0, ())


def test_a_sound_that_lacks_less_than_its_length_shows_tells_its_bytes(tmp_path):
    assert decoded(tmp_path, ONE[:-1]).notes == ("cut short: 1.50 s; 47999 of 48000 bytes of samples",)


CONTAINERS = {
    "MP4": (Kind.M4A, lambda: converted(".m4a")),
    "WebM": (Kind.WEBA, lambda: converted(".webm", "-c:a", "libopus")),
    "Matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "aac")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_joined_containers_are_refused_by_name(tmp_path, name):
    kind, make = CONTAINERS[name]
    with pytest.raises(AudioUndecodable, match=f"several {name} files are joined in it, the second one at byte"):
        decoded(tmp_path, make() * 2, kind)


def mono_and_stereo(suffix: str, *options: str) -> bytes:
    return converted(suffix, *options, "-ac", "1") + converted(suffix, *options, "-ac", "2")


OTHERS_JOINED = {
    "mp3": (Kind.MP3, lambda: converted(".mp3") * 3, 3.0),
    "mp3 with a tag at each end": (Kind.MP3, lambda: converted(".mp3", "-write_id3v1", "1") * 3, 3.0),
    "mp3 that differ": (Kind.MP3, lambda: mono_and_stereo(".mp3"), 2.0),
    "vorbis": (Kind.OGG, lambda: converted(".ogg") * 3, 3.0),
    "opus": (Kind.OGG, lambda: converted(".opus") * 3, 3.0),
    "flac in ogg that differ": (Kind.OGG, lambda: mono_and_stereo(".ogg", "-c:a", "flac"), 2.0),
    "flac": (Kind.FLAC, lambda: converted(".flac") * 3, 3.0),
    "aac": (Kind.AAC, lambda: converted(".aac") * 3, 3.0),
    "amr": (Kind.AMR, lambda: amr() * 3, 3.0),
    "amr-wb": (Kind.AMR, lambda: amr(wide=True) * 3, 3.0),
}


@pytest.mark.parametrize("name", OTHERS_JOINED)
def test_other_joined_sounds_are_heard_to_their_end_without_a_note(tmp_path, name):
    kind, make, seconds = OTHERS_JOINED[name]
    sound = decoded(tmp_path, make(), kind)
    assert float(sound.duration) == pytest.approx(seconds, abs=0.25)
    assert sound.notes == ()


MIXED_OGGS = {
    "vorbis at another rate": lambda: converted(".ogg") + converted(".ogg", "-ar", "24000"),
    "vorbis with more channels": lambda: mono_and_stereo(".ogg"),
    "opus with more channels": lambda: mono_and_stereo(".opus"),
    "vorbis, then opus": lambda: converted(".ogg") + converted(".opus"),
    "opus, then flac": lambda: converted(".opus") + converted(".ogg", "-c:a", "flac"),
}


@pytest.mark.parametrize("name", MIXED_OGGS)
def test_joined_oggs_of_different_formats_are_refused_by_name(tmp_path, name):
    with pytest.raises(AudioUndecodable, match=r"several Oggs are joined in it: the first has (Vorbis|Opus) with 1 ch"):
        decoded(tmp_path, MIXED_OGGS[name](), Kind.OGG)


def test_bytes_behind_the_declared_end_are_never_left_out_without_a_word(tmp_path):
    sound = decoded(tmp_path, wav(tone(1.5), data_bytes=16_000))
    assert float(sound.duration) == 0.5
    assert sound.notes == ("32000 bytes behind the end that the WAV declares were left out",)
    assert decoded(tmp_path, ONE + LIST).notes == ()
    assert decoded(tmp_path, ONE + bytes(50_000)).notes == ()


HOSTILE = {
    "headers without end": lambda: wav(b"")[:40] + (ONE[:44].replace(ONE[40:44], b"\0\0\0\0")) * 5000,
    "a million chunks": lambda: ONE + b"LIST\0\0\0\0" * 200_000,
    "a chunk that reaches back": lambda: ONE + b"LIST" + struct.pack("<I", 0xFFFFFFFF),
    "a part that ends in its header": lambda: ONE + ONE[:30],
    "two million false headers": lambda: wav(b"WAVEfmt " * 200_000, data_bytes=0),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_chain_of_wavs_costs_more_than_it_is_long(tmp_path, name):
    import time

    began_s = time.monotonic()
    try:
        decoded(tmp_path, HOSTILE[name]())
    except AudioUndecodable as error:
        assert error.message.isprintable()
    except Exception as error:
        assert error.__class__.__name__ in ("AudioTooShort", "AudioTooLong")
    assert time.monotonic() - began_s < 5
