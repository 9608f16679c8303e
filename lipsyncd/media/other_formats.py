"""Names for the formats that are not taken, so that a refusal names what the file is.

Owns that list. A file with one of these beginnings is opened by no decoder.
"""

from __future__ import annotations

import codecs
import re

_BEGINNINGS = (
    (b"\x89PNG\n", "a PNG whose line breaks a transfer as text has changed"),
    (b"\x89PNG\r\r\n", "a PNG whose line breaks a transfer as text has changed"),
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
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf", "an archive"),
    (b"Rar!", "an archive"),
    (b"II+\0", "a BigTIFF picture"),
    (b"MM\0+", "a BigTIFF picture"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"\0\0\1\xb3", "an MPEG video"),
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
_PNM = re.compile(rb"P[1-7]\s")
_TS_BYTES = 188
_USUAL = re.compile(
    rb"(?P<WAV>RIFF.{4}WAVE)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<FLAC>fLaC)|(?P<Ogg>OggS\0)",
    re.DOTALL,
)
# How base64 of a WAV, PNG, JPEG, MP3, Ogg and FLAC begins, and an address that holds its data.
_BASE64 = (b"UklGR", b"iVBORw0KGgo", b"/9j/", b"SUQz", b"//t", b"//v", b"T2dnUw", b"ZkxhQw", b"data:")
_MARKUP = ((b"<svg", "an SVG drawing"), (b"<!doctype html", "a web page"), (b"<html", "a web page"))
_BRANDS = {b"crx ": "a camera's raw picture", b"jpeg": "a HEIF with a JPEG in it", b"avci": "a HEIF with H.264 in it"}


def name_of(head: bytes) -> str:
    """What a file is that starts with `head` (512 bytes are enough); "" when that is unknown."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "a camera's raw picture"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "an AVI video"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    named = [name for sign, name in _BEGINNINGS if head.startswith(sign)]
    named += [name for sign, name in _MARKUP if start.startswith(sign) or (start[:5] == b"<?xml" and sign in start)]
    if _PNM.match(head):
        named.append("a PNM picture")
    if len(head) > 2 * _TS_BYTES and head[::_TS_BYTES][:3] == b"GGG":
        named.append("an MPEG transport stream")
    return next(iter(named), "") or _behind_others(head) or _text(head, start)


def _behind_others(head: bytes) -> str:
    """A usual format with a line break, a mark or a server's answer in front, as scripts write it by mistake."""
    found = _USUAL.search(head)
    if found is None or not _as_text(head[: found.start()]):
        return ""
    plural = "" if found.start() == 1 else "s"
    return f"a {found.lastgroup} with {found.start()} byte{plural} of text in front"


def _text(head: bytes, start: bytes) -> str:
    """Which text it is: services answer with JSON when they have no sound."""
    if not _as_text(head).strip():
        return ""
    if head.lstrip().startswith(_BASE64):
        return "a base64 text"
    return "a JSON text" if start[:1] in (b"{", b"[") else "a text"


def _as_text(data: bytes) -> str:
    """The UTF-8 text in `data`, which may end within a character; "" for anything else."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return ""
    return text if all(char.isprintable() or char in "\r\n\t\ufeff" for char in text) else ""
