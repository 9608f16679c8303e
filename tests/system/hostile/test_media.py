"""Files that were made to do harm, to lie, or that broke on the way: each gets the right reason, and nothing else."""

import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lipsyncd.errors import (
    AudioNotRecognised,
    AudioTooLong,
    AudioUndecodable,
    ImageAnimated,
    ImageNotRecognised,
    ImageTooLarge,
    ImageTooSmall,
    ImageUndecodable,
    InputError,
)
from lipsyncd.media import Kind, sniff
from lipsyncd.prepare import decode_picture as picture_decoder
from lipsyncd.prepare import decode_sound as sound_decoder
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.prepare.decode_sound import decode_sound
from lipsyncd.sandbox import landlock
from lipsyncd.sandbox.jail import Completed, run_jailed
from tests.kits.media.codec_kit import amr, bw64, gsm_in_wav, mov, mp4, remuxed
from tests.kits.media.footage_kit import H264, VP8, film_with_voice
from tests.kits.media.media_kit import bomb, converted, corners, encoded, ffmpeg, png_of, streamed, tone, wav

SOUND_KINDS = [kind for kind in Kind if kind.is_audio]

needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")


@pytest.fixture
def folder(tmp_path):
    """A job's folder, with a secret beside it and another file in it."""
    folder = tmp_path / "job"
    folder.mkdir()
    (tmp_path / "secret.wav").write_bytes(wav(tone(1)))
    (folder / "beside.wav").write_bytes(wav(tone(1)))
    return folder


def decoded(folder: Path, data: bytes, kind: Kind | None = None):
    """Decode `data` as a picture, or as a sound of `kind`; only the input is left in the folder when that fails."""
    (folder / "input").write_bytes(data)
    try:
        if kind is None:
            return decode_picture(folder / "input", folder, background=(0, 0, 0))
        return decode_sound(folder / "input", kind, folder, ffmpeg=ffmpeg())
    except BaseException:
        assert sorted(os.listdir(folder)) == ["beside.wav", "input"]
        raise


# -- what pretends to be something else --------------------------------------------------------------------------------

PLAYLISTS = {
    "ffconcat, a file beside it": "ffconcat version 1.0\nfile beside.wav\n",
    "ffconcat, an absolute path": "ffconcat version 1.0\nfile {secret}\n",
    "ffconcat behind a RIFF header": "RIFF\x24\0\0\0WAVEffconcat version 1.0\nfile {secret}\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls, from a server": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"><image href="{secret}"/></svg>',
}


@pytest.mark.parametrize("kind", SOUND_KINDS)
@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_no_sound_whatever_it_is_called(folder, name, kind):
    text = PLAYLISTS[name].format(secret=folder.parent / "secret.wav")
    with pytest.raises((AudioNotRecognised, AudioUndecodable)):
        decoded(folder, text.encode(), kind)

    # The first bytes were enough to refuse it. Without that, and without a jail, ffmpeg's own options refuse it too.
    targets = (folder / "speech.s16", folder / "sound.s16")
    command = sound_decoder._sound_command(ffmpeg(), folder / "input", kind, *targets, max_s=600)
    assert subprocess.run(command, capture_output=True).returncode != 0
    assert sum(target.stat().st_size for target in targets if target.exists()) == 0


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_no_picture(folder, name):
    with pytest.raises(ImageNotRecognised):
        decoded(folder, PLAYLISTS[name].format(secret="/etc/passwd").encode())


def without_samples(whole: bytes, elsewhere: Path) -> bytes:
    """An M4A that leaves its samples out and names the file that has them, by an alias as QuickTime allows it."""
    data = bytearray(whole)
    at = data.index(b"mdat")
    data[at + 4 : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - at - 4)
    path = str(elsewhere).encode()
    path += bytes(len(path) % 2)
    alias = bytes(150) + struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)
    at = data.index(b"url \0\0\0\1") - 4
    data[at : at + 12] = struct.pack(">I", 12 + len(alias)) + b"alis\0\0\0\0" + alias
    for name in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(name) - 4
        data[at : at + 4] = struct.pack(">I", int.from_bytes(data[at : at + 4], "big") + len(alias))
    return bytes(data)


def test_samples_in_another_file_are_not_fetched(folder):
    whole = converted(".m4a", "-c:a", "alac")
    secret = folder.parent / "secret.m4a"
    secret.write_bytes(whole)

    with pytest.raises(InputError):
        decoded(folder, without_samples(whole, secret), Kind.M4A)

    asked_for = ["-enable_drefs", "1", "-use_absolute_path", "1", "-i", str(folder / "input")]
    loot = subprocess.run([str(ffmpeg()), "-v", "error", *asked_for, "-f", "s16le", "-"], capture_output=True)
    assert len(loot.stdout) == 44_100 * 2, "the trap does not work, so the test proves nothing"


OTHER_CODECS = {
    "WMA in Matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "wmav2")),
    "WMA in WAV": (Kind.WAV, lambda: converted(".wav", "-c:a", "wmav2")),
    "mp2 in WAV": (Kind.WAV, lambda: converted(".wav", "-c:a", "mp2")),
    "AC-3 alone": (Kind.MP3, lambda: converted(".ac3")),
    "DTS in MP4": (Kind.M4A, lambda: converted(".m4a", "-c:a", "dca", "-strict", "-2", "-f", "mp4")),
    "a film without sound": (Kind.M4A, lambda: _silent_film()),
    "a picture": (Kind.MP3, lambda: encoded(corners(), "JPEG")),
}


def _silent_film() -> bytes:
    command = [str(ffmpeg()), "-v", "error", "-f", "lavfi", "-i", "color=red:s=64x64:d=1", "-movflags", "frag_keyframe"]
    return subprocess.run([*command, "-f", "mp4", "-"], check=True, capture_output=True).stdout


@pytest.mark.parametrize("name", OTHER_CODECS)
def test_only_listed_codecs_are_decoded(folder, name):
    kind, make = OTHER_CODECS[name]
    with pytest.raises((AudioNotRecognised, AudioUndecodable)):
        decoded(folder, make(), kind)


# -- what a decoder that was talked into it could do -------------------------------------------------------------------


@needs_landlock
@pytest.mark.parametrize("escape", ["concat", "direct", "lavfi"])
def test_even_a_willing_ffmpeg_cannot_read_a_file_outside(folder, escape):
    """The very command that succeeds without the jail, so that nothing but the jail is what stops it."""
    secret, target = folder.parent / "secret.wav", folder / "loot.wav"
    (folder / "list").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    inputs = {
        "concat": ["-f", "concat", "-safe", "0", "-i", str(folder / "list")],
        "direct": ["-i", str(secret)],
        "lavfi": ["-f", "lavfi", "-i", f"amovie={secret}"],
    }[escape]
    command = [str(ffmpeg()), "-nostdin", "-y", *inputs, str(target)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    target.unlink()

    ended = run_jailed(command, readable=[folder / "list"], writable=[folder], timeout_s=20)

    assert ended.returncode > 0
    assert "Permission denied" in ended.stderr_tail
    assert not target.exists()


@needs_landlock
@pytest.mark.parametrize("where", ["../loot.wav", "../secret.wav", "/dev/shm/lipsyncd-loot.wav"])
def test_even_a_willing_ffmpeg_cannot_write_a_file_outside(folder, where):
    before = (folder.parent / "secret.wav").read_bytes()
    (folder / "input").write_bytes(wav(tone(1)))
    target = folder / where

    command = [str(ffmpeg()), "-nostdin", "-y", "-i", str(folder / "input"), str(target)]
    ended = run_jailed(command, readable=[folder / "input"], writable=[folder], timeout_s=20)

    assert "Permission denied" in ended.stderr_tail
    assert sorted(os.listdir(folder.parent)) == ["job", "secret.wav"]
    assert (folder.parent / "secret.wav").read_bytes() == before
    assert not Path("/dev/shm/lipsyncd-loot.wav").exists()


LIES = {
    "nothing": b"",
    "no JSON": b"\x7fELF",
    "a list": b"[]",
    "no size": b'{"notes": []}',
    "text for a size": b'{"width": "64", "height": 64, "notes": []}',
    "a size that the file has not": b'{"width": 9000, "height": 9000, "notes": []}',
    "a negative size": b'{"width": -1, "height": -64, "notes": []}',
    "notes that are none": b'{"width": 8, "height": 8, "notes": 3}',
    "an error of ours that is not its own": b'{"error": {"code": "disk-low", "message": "delete everything"}}',
    "an error that is none": b'{"error": {"code": ["x"]}}',
    "nesting": b"[" * 60_000,
    "a huge number": b'{"width": ' + b"9" * 50_000 + b', "height": 1, "notes": []}',
}


@pytest.mark.parametrize("name", LIES)
def test_a_decoder_that_was_taken_over_is_not_believed(folder, name):
    picture = folder / "picture.rgb"
    picture.write_bytes(bytes(8 * 8 * 3))
    ended = Completed(0, LIES[name], "", True, False)
    with pytest.raises(ImageUndecodable):
        picture_decoder._checked_picture(picture_decoder._answer(ended), picture)


def test_the_text_of_a_decoder_is_made_printable(folder):
    (folder / "picture.rgb").write_bytes(bytes(8 * 8 * 3))
    answer = {"width": 8, "height": 8, "notes": ["\x1b[2J\n" + "x" * 5000] * 100}
    picture = picture_decoder._checked_picture(answer, folder / "picture.rgb")
    assert len(picture.notes) == 16
    assert all(note.isprintable() and len(note) <= 200 for note in picture.notes)

    reason = {"code": "image-undecodable", "message": "a\x00b\u202ec", "remedy": ""}
    with pytest.raises(ImageUndecodable) as caught:
        picture_decoder._answer(Completed(0, json.dumps({"error": reason}).encode(), "", True, False))
    assert caught.value.message == r"a\x00b\u202ec"


# -- pictures that are too much, too little or broken ------------------------------------------------------------------


def animation(form: str) -> bytes:
    return encoded(corners(), form, save_all=True, append_images=[corners().rotate(180)], duration=100)


def cut(data: bytes, part: float) -> bytes:
    return data[: int(len(data) * part)]


def noise(form: str, **options: object) -> bytes:
    image = Image.frombytes("RGB", (300, 200), random.Random(1).randbytes(300 * 200 * 3))
    return encoded(image, form, **options)


def png_promising(width: int, height: int) -> bytes:
    return png_of(width, height, b"\0" * 100)


PICTURES = {
    # name: (bytes, error, text in its message)
    "a bomb": (bomb, ImageTooLarge, "30000 x 30000 pixels, 900.0 megapixels"),
    "a size of 2 billion": (lambda: png_promising(2**31 - 1, 2**31 - 1), ImageTooLarge, "2147483647 x 2147483647"),
    "a webp of 16383 x 16383": (lambda: _webp_canvas(16_383, 16_383), ImageTooLarge, "16383 x 16383"),
    "a jpeg of 65500 x 65500": (lambda: _jpeg_size(65_500, 65_500), ImageTooLarge, "65500 x 65500"),
    "one pixel": (lambda: encoded(Image.new("RGB", (1, 1)), "PNG"), ImageTooSmall, "1 x 1 pixels"),
    "63 pixels high": (lambda: encoded(Image.new("RGB", (500, 63)), "JPEG"), ImageTooSmall, "500 x 63 pixels"),
    "a jpeg of 2,000 scans": (lambda: jpeg_of_scans(2000), ImageUndecodable, "more than 200 scans"),
    "a jpeg of 2,000 scans behind fill bytes": (
        lambda: jpeg_of_scans(2000).replace(b"\xff\xda", b"\xff\xff\xda"),
        ImageUndecodable,
        "more than 200 scans",
    ),
    "a jpeg of endless segments": (
        lambda: noise("JPEG")[:2] + b"\xff\xfe\0\2" * 5000 + noise("JPEG")[2:],
        ImageUndecodable,
        "more than 4096 segments",
    ),
    "an animated png": (lambda: animation("PNG"), ImageAnimated, "2 frames"),
    "an animated webp": (lambda: animation("WEBP"), ImageAnimated, "2 frames"),
    "an animated gif": (lambda: animation("GIF"), ImageAnimated, "2 frames"),
    "an animated avif": (lambda: animation("AVIF"), ImageAnimated, "2 frames"),
    "half a heic": (lambda: cut(noise("HEIF"), 0.5), ImageUndecodable, "decode"),
    "half an avif": (lambda: cut(noise("AVIF"), 0.5), ImageUndecodable, "decode"),
    "half a bmp": (lambda: cut(noise("BMP"), 0.5), ImageUndecodable, "decode"),
    "half a tiff": (lambda: cut(noise("TIFF"), 0.5), ImageUndecodable, "decode"),
    "half a gif": (lambda: cut(noise("GIF"), 0.5), ImageUndecodable, "decode"),
    "a heic of 65535 x 65535": (lambda: claiming("HEIF", 65_535), ImageTooLarge, "65535 x 65535"),
    "an avif of 65535 x 65535": (lambda: claiming("AVIF", 65_535), ImageTooLarge, "65535 x 65535"),
    "a sound": (lambda: wav(tone(1)), ImageNotRecognised, "a sound (wav)"),
    "nothing": (lambda: b"", ImageNotRecognised, "empty"),
    "zeros": (lambda: bytes(5000), ImageNotRecognised, "only zeros"),
    "half a jpeg": (lambda: cut(noise("JPEG"), 0.5), ImageUndecodable, "truncated"),
    "nine tenths of a jpeg": (lambda: cut(noise("JPEG"), 0.9), ImageUndecodable, "truncated"),
    "half a progressive jpeg": (lambda: cut(noise("JPEG", progressive=True), 0.5), ImageUndecodable, "truncated"),
    "half a png": (lambda: cut(noise("PNG"), 0.5), ImageUndecodable, "truncated"),
    "half a webp": (lambda: cut(noise("WEBP"), 0.5), ImageUndecodable, "decode"),
    "a png with few rows": (lambda: png_promising(300, 200), ImageUndecodable, "cannot be decoded"),
    "a png with a wrong sum": (lambda: noise("PNG").replace(b"IDAT", b"IDAX"), ImageUndecodable, "cannot be decoded"),
}


def claiming(form: str, side: int) -> bytes:
    """A HEIC or AVIF whose description gives another size than its coded picture has."""
    sizes = b"ispe" + bytes(4) + struct.pack(">II", 300, 200)
    data = noise(form)
    assert sizes in data
    return data.replace(sizes, b"ispe" + bytes(4) + struct.pack(">II", side, side))


def jpeg_of_scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated until it has that many. Decoders warn and work through all."""
    data = encoded(Image.new("RGB", (side, side), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


def _webp_canvas(width: int, height: int) -> bytes:
    data = bytearray(encoded(corners().convert("RGBA"), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def _jpeg_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(corners(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_cannot_be_taken_says_why(folder, name):
    make, error, text = PICTURES[name]
    with pytest.raises(error) as caught:
        decoded(folder, make())
    assert text in caught.value.message


def test_a_jpeg_of_many_scans_is_decoded_up_to_the_limit_and_costs_nothing_beyond_it(folder):
    assert decoded(folder, jpeg_of_scans(200)).width == 64
    (folder / "picture.rgb").unlink()
    with pytest.raises(ImageUndecodable, match="more than 200 scans"):
        decoded(folder, jpeg_of_scans(201))
    started = time.monotonic()
    with pytest.raises(ImageUndecodable, match="more than 200 scans"):
        decoded(folder, jpeg_of_scans(2000, side=3000))
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_a_picture_that_is_larger_than_its_header_claims_takes_little_memory(folder, form):
    side = 12_000 if form == "AVIF" else 11_000  # HEVC ends at 142 million
    quick = {"speed": 10} if form == "AVIF" else {"enc_params": {"preset": "ultrafast"}}
    large = encoded(Image.new("RGB", (side, side), "red"), form, **quick)
    claim = b"ispe" + bytes(4) + struct.pack(">II", 300, 200)
    (folder / "input").write_bytes(re.sub(rb"ispe\0\0\0\0.{8}", lambda _: claim, large, flags=re.DOTALL))
    code = f"""
import resource
from pathlib import Path
from lipsyncd.errors import ImageUndecodable
from lipsyncd.prepare.decode_picture import decode_picture
folder = Path({str(folder)!r})
try:
    decode_picture(folder / "input", folder, background=(0, 0, 0))
except ImageUndecodable:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 200 * 1024


def test_a_bomb_costs_neither_time_nor_memory(folder):
    (folder / "input").write_bytes(bomb())
    code = f"""
import resource, time
from pathlib import Path
from lipsyncd.prepare.decode_picture import decode_picture
from lipsyncd.errors import ImageTooLarge
folder = Path({str(folder)!r})
started = time.monotonic()
try:
    decode_picture(folder / "input", folder, background=(0, 0, 0))
except ImageTooLarge:
    print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took_s, peak_kib = map(float, ended.stdout.split())
    assert took_s < 1.0
    assert peak_kib < 100 * 1024


# -- sounds that lie or are broken -------------------------------------------------------------------------------------

SECOND = tone(1)
LYING_WAVS = {
    # name: (bytes, seconds that come out, or the error and a text in its message)
    "data size 0xFFFFFFFE": (lambda: wav(SECOND, data_bytes=0xFFFFFFFE), 1.0),
    "data size 0xFFFFFFFF": (lambda: wav(SECOND, data_bytes=0xFFFFFFFF), 1.0),
    "data size 0": (lambda: wav(SECOND, data_bytes=0), 1.0),
    "data size too small": (lambda: wav(SECOND, data_bytes=16_000), 0.5),
    "an odd byte at the end": (lambda: wav(SECOND + b"\1"), 1.0),
    "rate 0": (lambda: wav(SECOND, rate=0), (AudioUndecodable, "0 Hz")),
    "rate 2^31-1": (lambda: wav(SECOND, rate=2**31 - 1), (AudioUndecodable, "2147483647 Hz")),
    "rate 1 Hz, which makes hours": (lambda: wav(SECOND, rate=1), (AudioTooLong, "600 s")),
    "no channels": (lambda: wav(SECOND, channels=0), (AudioUndecodable, "0 channels")),
    "255 channels": (lambda: wav(SECOND, channels=255), (AudioUndecodable, "255 channels")),
    "8 bits": (lambda: wav(bytes(range(100, 156)) * 300, bits=8), 1.05),
    "0 bits": (lambda: wav(SECOND, bits=0), (AudioUndecodable, "")),
    "no data": (lambda: wav(SECOND)[:36], (AudioUndecodable, "")),
    "no format": (
        lambda: b"RIFF\x10\0\0\0WAVEdata\x04\0\0\0abcd",
        (AudioUndecodable, "does not describe the format of its samples"),
    ),
}


@pytest.mark.parametrize("name", LYING_WAVS)
def test_a_wav_lasts_as_long_as_its_samples_whatever_it_says(folder, name):
    make, expected = LYING_WAVS[name]
    if isinstance(expected, float):
        assert float(decoded(folder, make(), Kind.WAV).duration) == pytest.approx(expected, abs=0.001)
        return
    error, text = expected
    with pytest.raises(error) as caught:
        decoded(folder, make(), Kind.WAV)
    assert text in caught.value.message


def test_a_cut_off_sound_plays_as_far_as_it_goes_and_says_so(folder):
    sound = decoded(folder, wav(SECOND, data_bytes=64_000), Kind.WAV)
    assert sound.notes == ("cut short: 1.00 of 2.00 s",)
    damaged = decoded(folder, wav(SECOND + b"\1"), Kind.WAV)
    assert damaged.notes[0].startswith("damaged parts of the sound were left out: Invalid PCM packet")


BROKEN_SOUNDS = {
    "nothing": (Kind.WAV, lambda: b"", "empty"),
    "zeros": (Kind.WAV, lambda: bytes(9000), "only zeros"),
    "an m4a without its index": (Kind.M4A, lambda: cut(converted(".m4a"), 0.6), "moov atom not found"),
    "an mp3 that ends in its tag": (Kind.MP3, lambda: b"ID3\x04\0\0\0\1\0\0" + b"x" * 50, ""),
    "an mp3 of noise": (Kind.MP3, lambda: b"ID3\x04\0\0\0\0\0\0" + random.Random(2).randbytes(5000), ""),
    "a flac header": (Kind.FLAC, lambda: converted(".flac")[:42], ""),
    "an ogg page": (Kind.OGG, lambda: converted(".opus")[:60], ""),
}


@pytest.mark.parametrize("name", BROKEN_SOUNDS)
def test_a_broken_sound_says_why(folder, name):
    kind, make, text = BROKEN_SOUNDS[name]
    with pytest.raises(AudioUndecodable) as caught:
        decoded(folder, make(), kind)
    assert text in caught.value.message
    assert str(folder) not in caught.value.message
    assert "\n" not in caught.value.message


# -- anything else -----------------------------------------------------------------------------------------------------

SEEDS = {
    "jpeg": (None, lambda: noise("JPEG")),
    "png": (None, lambda: noise("PNG")),
    "webp": (None, lambda: noise("WEBP")),
    "heic": (None, lambda: noise("HEIF")),
    "avif": (None, lambda: noise("AVIF")),
    "bmp": (None, lambda: noise("BMP")),
    "tiff": (None, lambda: noise("TIFF")),
    "tiff, compressed": (None, lambda: noise("TIFF", compression="tiff_lzw")),
    "gif": (None, lambda: noise("GIF")),
    "wav": (Kind.WAV, lambda: wav(SECOND)),
    "mp3": (Kind.MP3, lambda: converted(".mp3")),
    "aac": (Kind.AAC, lambda: converted(".aac")),
    "m4a": (Kind.M4A, lambda: converted(".m4a")),
    "ogg": (Kind.OGG, lambda: converted(".opus")),
    "flac": (Kind.FLAC, lambda: converted(".flac")),
    "aiff": (Kind.AIFF, lambda: converted(".aiff")),
    "caf": (Kind.CAF, lambda: converted(".caf", "-c:a", "alac")),
    "w64": (Kind.W64, lambda: converted(".w64")),
    "aiff of unknown length": (Kind.AIFF, lambda: streamed("aiff")),
    "caf of unknown length": (Kind.CAF, lambda: streamed("caf")),
    "rf64 of unknown length": (Kind.WAV, lambda: streamed("wav", "-rf64", "always")),
    "w64 of unknown length": (Kind.W64, lambda: streamed("w64")),
    "weba": (Kind.WEBA, lambda: converted(".webm", "-c:a", "libopus")),
    "mka": (Kind.MKA, lambda: converted(".mka", "-c:a", "aac")),
    "amr": (Kind.AMR, amr),
    "amr-wb": (Kind.AMR, lambda: amr(wide=True)),
    "mp2": (Kind.MP3, lambda: converted(".mp2")),
    "joined wavs": (Kind.WAV, lambda: wav(SECOND) * 3),
    "bw64": (Kind.WAV, bw64),
    "g.722 in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "g722", "-ar", "16000")),
    "g.726 in wav": (Kind.WAV, lambda: converted(".wav", "-c:a", "g726", "-ar", "8000", "-b:a", "32k")),
    "gsm in wav": (Kind.WAV, gsm_in_wav),
    **{
        f"{codec} in wav": (Kind.WAV, lambda codec=codec: converted(".wav", "-c:a", codec))
        for codec in ("adpcm_ms", "adpcm_ima_wav", "mp3")
    },
    **{
        f"{codec} in mp4": (Kind.M4A, lambda codec=codec: mp4("-c:a", codec))
        for codec in ("libopus", "flac", "libmp3lame", "ac3", "eac3", "alac")
    },
    "ima adpcm in mov": (Kind.M4A, lambda: mov("adpcm_ima_qt")),
    "pcm in mov": (Kind.M4A, lambda: mov("pcm_s24le")),
    "amr in 3gp": (Kind.M4A, lambda: remuxed(amr(), "amr", ".3gp")),
    "vorbis in webm": (Kind.WEBA, lambda: converted(".webm", "-c:a", "libvorbis")),
    "vorbis in ogg": (Kind.OGG, lambda: converted(".ogg", "-c:a", "libvorbis")),
    "flac in ogg": (Kind.OGG, lambda: converted(".oga", "-c:a", "flac")),
    "mp3 in matroska": (Kind.MKA, lambda: converted(".mka", "-c:a", "libmp3lame")),
    "the sound of a film": (Kind.MP4, lambda: film_with_voice(".mp4", *H264, "-c:a", "aac")),
    "the sound of a webm film": (Kind.WEBM, lambda: film_with_voice(".webm", *VP8, "-c:a", "libopus")),
}


def test_every_kind_and_codec_that_is_taken_is_damaged_below():
    """PCM and the codecs with two names count once."""
    sounds = {kind for kind, _ in SEEDS.values() if kind}
    assert sounds == set(SOUND_KINDS)
    pictures = {sniff(make()[:512]) for kind, make in SEEDS.values() if not kind}
    assert pictures == {kind for kind in Kind if kind.is_image}

    wanted = {codec for _, codecs in sound_decoder._FFMPEG.values() for codec in map(_codec, codecs.split(","))}
    seen = set()
    for kind, make in SEEDS.values():
        if kind:
            told = subprocess.run([str(ffmpeg()), "-hide_banner", "-i", "-"], input=make(), capture_output=True)
            seen |= {_codec(name) for name in re.findall(r"Audio: (\w+)", told.stderr.decode())}
    assert wanted <= seen | {"pcm"}


def _codec(name: str) -> str:
    """The codec of a decoder of ffmpeg: `amrnb` and `libopencore_amrnb` are two decoders of one."""
    plain = name.removeprefix("lib").removeprefix("opencore_").removesuffix("float").replace("adpcm_g7", "g7")
    return {"amr_nb": "amrnb", "amr_wb": "amrwb", "gsm_ms": "gsm"}.get(plain, "pcm" if plain[:4] == "pcm_" else plain)


@pytest.mark.parametrize("name", SEEDS)
def test_random_damage_gives_a_result_or_a_reason_and_never_a_surprise(folder, name):
    kind, make = SEEDS[name]
    chance = random.Random(name)
    for _ in range(8):
        data = bytearray(make())
        for _ in range(chance.randint(1, 20)):
            data[int(chance.random() ** 3 * len(data))] = chance.randrange(256)  # mostly in the headers
        started = time.monotonic()
        try:
            decoded(folder, bytes(data), kind)
        except InputError as error:
            assert error.message.isprintable()
        assert time.monotonic() - started < 20
        for left in ("picture.rgb", "speech.s16", "sound.s16"):
            (folder / left).unlink(missing_ok=True)


CLAIMS = {
    # what a header claims far beyond the file: a decoder that believed it would take that much memory
    "wav of 64 channels": (Kind.WAV, lambda: wav(bytes(64 * 2 * 9000), channels=64)),
    "wav of 2^31 bytes a block": (Kind.WAV, lambda: _patched(converted(".wav", "-c:a", "adpcm_ms"), 32, b"\xff\xff")),
    "aiff of 2^31 frames": (Kind.AIFF, lambda: _patched(converted(".aiff"), 22, b"\x7f\xff\xff\xff")),
    "caf of huge packets": (Kind.CAF, lambda: _patched(converted(".caf"), 36, b"\x7f\xff\xff\xff\x7f\xff\xff\xff")),
    "w64 of huge chunks": (Kind.W64, lambda: _patched(converted(".w64"), 56, b"\xff" * 6)),
    "matroska of huge elements": (
        Kind.MKA,
        lambda: _patched(converted(".mka", "-c:a", "flac"), 60, b"\x01" + b"\xff" * 7),
    ),
    "m4a of 2^32 samples": (
        Kind.M4A,
        lambda: _entries(b"stsz"),
    ),
    "m4a of 2^32 chunks": (Kind.M4A, lambda: _entries(b"stco")),
    "adts of largest frames": (Kind.AAC, lambda: (b"\xff\xf1\x50\x83\xff\xff\xfc" + bytes(8184)) * 40),
    "amr of one frame type": (Kind.AMR, lambda: b"#!AMR\n" + b"\x7c" * 400_000),
}


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _entries(table: bytes) -> bytes:
    data = converted(".m4a")
    at = data.index(table) + 12 if table == b"stsz" else data.index(table) + 8
    return _patched(data, at, b"\xff\xff\xff\xff")


@pytest.mark.parametrize("name", [*CLAIMS, *(f"seed {name}" for name, (kind, _) in SEEDS.items() if kind)])
def test_no_sound_costs_more_than_200_mb_of_memory(folder, name):
    kind, make = SEEDS[name[5:]] if name.startswith("seed ") else CLAIMS[name]
    (folder / "input").write_bytes(make())
    code = f"""
import resource
from pathlib import Path
from lipsyncd.errors import InputError
from lipsyncd.media import Kind
from lipsyncd.prepare.decode_sound import decode_sound
folder = Path({str(folder)!r})
try:
    decode_sound(folder / "input", Kind({kind.value!r}), folder, ffmpeg=Path({str(ffmpeg())!r}))
except InputError as error:
    assert error.message.isprintable()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 200 * 1024
