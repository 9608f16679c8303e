"""Names for the formats that are not taken, so that a refusal names what the file is.

Owns that list. A file with one of these beginnings is opened by no decoder.
"""

from __future__ import annotations

_BEGINNINGS = (
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"FUJIFILMCCD-RAW", "a camera's raw picture"),
    (b"IIU\0", "a camera's raw picture"),
    (b"IIRO", "a camera's raw picture"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"PK\3\4", "a ZIP archive or an office document"),
    (b"FLV\1", "a Flash video"),
    (b"\x1a\x45\xdf\xa3", "a Matroska file (MKV)"),
    (b"{\\rtf", "a text document"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA sound or another file of Windows Media"),
    (b"RIFX", "a big-endian WAV (RIFX)"),
    (b"\x0b\x77", "a raw AC-3 sound"),
    (b"MThd", "a MIDI file"),
    (b"MAC ", "a Monkey's Audio sound"),
    (b"wvpk", "a WavPack sound"),
    (b".snd", "an AU sound"),
    (b".RMF", "a RealMedia file"),
    (b"\x02#!SILK", "a SILK voice message"),
    (b"#!SILK", "a SILK voice message"),
)
_MARKUP = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))
_BRANDS = {b"crx ": "a camera's raw picture", b"jpeg": "a HEIF with a JPEG in it", b"avci": "a HEIF with H.264 in it"}


def name_of(head: bytes) -> str:
    """What a file is that starts with `head` (64 bytes are enough); "" when that is unknown."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "a camera's raw picture"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "an AVI video"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    named = [name for sign, name in _BEGINNINGS if head.startswith(sign)]
    named += [name for sign, name in _MARKUP if start.startswith(sign) or (start[:5] == b"<?xml" and sign in start)]
    return next(iter(named), "")
