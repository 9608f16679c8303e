"""Why ffmpeg did not decode a sound, in words for people: the codec that is not taken, or what is missing.

ffmpeg itself reports "Invalid argument" for each of them. Owns the names of codecs and file formats in messages.
"""

from __future__ import annotations

import re

from lipsyncd.errors import AudioUndecodable
from lipsyncd.media import Kind
from lipsyncd.prepare.decoder_process import complaint
from lipsyncd.processes import exit_text
from lipsyncd.sandbox.jail import Completed

# A film's pictures are not taken either, so only the refusal just before the decoder's failure counts.
_REFUSED = re.compile(
    r"Codec \((\w+)\) not on whitelist[^\n]*\n(?:[^\n]*Last message[^\n]*\n)*[^\n]*Error while opening decoder"
)
_UNKNOWN = re.compile(r"no decoder found for: (\w+)")
_NO_SOUND = re.compile(r"Stream map '[^']*' matches no streams")
_EMPTY = re.compile(r"Error while opening decoder|Error opening (in|out)put|Error parsing options")

_CODECS = {
    "wmav1": "WMA", "wmav2": "WMA", "wmapro": "WMA Pro", "wmavoice": "WMA Voice", "wmalossless": "WMA Lossless",
    "dca": "DTS", "dts": "DTS", "ac4": "AC-4", "ac3": "AC-3", "eac3": "E-AC-3", "truehd": "TrueHD", "mlp": "MLP",
    "mp1": "MP1", "mp1float": "MP1", "mp2": "MP2", "mp2float": "MP2", "mp3": "MP3", "mp3float": "MP3", "aac": "AAC",
    "aac_latm": "AAC in LATM", "alac": "ALAC", "flac": "FLAC", "opus": "Opus", "libopus": "Opus", "vorbis": "Vorbis",
    "libvorbis": "Vorbis", "speex": "Speex", "libspeex": "Speex", "qdm2": "QDesign Music", "qdmc": "QDesign Music",
    "qcelp": "QCELP", "evrc": "EVRC", "g723_1": "G.723.1", "g728": "G.728", "g729": "G.729", "gsm": "GSM",
    "g722": "G.722", "g726": "G.726", "ilbc": "iLBC", "libilbc": "iLBC", "atrac3": "ATRAC3", "atrac3p": "ATRAC3+",
    "wavpack": "WavPack", "ape": "Monkey's Audio", "tta": "TTA", "truespeech": "TrueSpeech", "cook": "RealAudio",
    "mpegh_3d_audio": "MPEG-H", "amrnb": "AMR", "amrwb": "AMR-WB",
}  # fmt: skip
_FORMATS = {Kind.WEBM: "WebM", Kind.WEBA: "WebM", Kind.MKA: "Matroska file"}


def undecodable(kind: Kind, ended: Completed) -> AudioUndecodable:
    """The reason for a decoder that ended with an error."""
    called, stderr = _FORMATS.get(kind, kind.value.upper()), ended.stderr_tail
    if refused := _REFUSED.findall(stderr):
        return AudioUndecodable(f"the {called} holds {_codec(refused[-1])}, which is not taken")
    if unknown := _UNKNOWN.search(stderr):
        return AudioUndecodable(f"the {called} holds {_codec(unknown[1])}, which is not taken")
    if _NO_SOUND.search(stderr):
        return AudioUndecodable(f"the {called} holds no sound")
    message = complaint("\n".join(line for line in stderr.splitlines() if not _EMPTY.search(line)))
    if not message:
        empty = _EMPTY.search(stderr)
        message = "its header cannot be read" if empty else f"ffmpeg {exit_text(ended.returncode)}"
    return AudioUndecodable(f"the sound cannot be decoded: {message}")


def _codec(name: str) -> str:
    if name in ("none", "unknown"):
        return "a codec that is not known"
    return _CODECS.get(name, name.upper().replace("_", " "))
