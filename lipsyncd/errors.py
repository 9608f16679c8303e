"""Everything that can go wrong, as one tree.

    LipsyncdError
    ├── ConfigError                 exit 78: a setting, its value, what is allowed, where it was read
    ├── AnotherDaemonRuns           exit 75
    ├── NoDaemon                    a command that waits for one
    ├── UsageError                  exit 2: a command that cannot be carried out as it was given
    ├── LedgerError                 the ledger refused: IllegalTransition, UnknownJob, LedgerTooNew
    ├── InputError                  the user's files or manifest; another attempt cannot help
    │   ├── manifest and names      BadManifest BadName UnsafePath MissingFile
    │   ├── pairs                   MissingHalf AmbiguousPair InputsAlreadyTaken InputsLost
    │   ├── picture                 ImageNotRecognised ImageUndecodable ImageTooLarge ImageTooSmall ImageAnimated
    │   └── sound                   AudioNotRecognised AudioUndecodable AudioTooShort AudioTooLong
    │                               SpeechFailed FetchRefused
    ├── RenderError                 a render that failed
    │   ├── permanent               NoFaceFound FaceTooSmall UnknownRenderer BadOption
    │   └── transient               RenderCrashed RenderTimeout RenderStalled OutOfMemory
    │                               EncodeFailed BadResult FetchFailed JailFailed
    ├── PublishError                a video that cannot be shown: NameTaken ResultGone
    └── Blocked                     nothing wrong with the job: it waits and costs no attempt
                                    OutboxUnavailable InboxUnavailable DiskLow RendererNotInstalled SpeechNotInstalled

`code` is stored in the ledger, written to `reason.json` and sent over REST: it is never renamed. A message names the
thing and the value seen; `remedy` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class LipsyncdError(Exception):
    """The root. `permanent` means that another attempt cannot help; `exit_status` is what the CLI ends with."""

    code: ClassVar[str] = "internal-error"
    permanent: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1
    default_remedy: ClassVar[str] = "see the daemon's log; if it happens again, report it with the log"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = self.default_remedy if remedy is None else remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    def reason(self) -> dict[str, str]:
        """The three fields that people and programs get to see."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


def from_reason(reason: Mapping[str, object]) -> LipsyncdError:
    """The error that `reason()` came from, of its own class again; an unknown code becomes the root class."""
    wanted = reason.get("code")
    kind = next((cls for cls in tree() if cls.code == wanted), LipsyncdError)
    error = kind.__new__(kind)
    LipsyncdError.__init__(error, str(reason.get("message", "")), remedy=str(reason.get("remedy", "")))
    return error


def tree(root: type[LipsyncdError] = LipsyncdError) -> Iterator[type[LipsyncdError]]:
    """Every class of the tree, the root first."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


# -- starting and asking -----------------------------------------------------------------------------------------------


class ConfigError(LipsyncdError):
    code = "bad-configuration"
    permanent = True
    exit_status = 78
    default_remedy = "`lipsyncd config` prints every value and where it was read"


class AnotherDaemonRuns(LipsyncdError):
    code = "another-daemon-runs"
    exit_status = 75
    default_remedy = "stop that one first, or give this one its own [paths]"


class NoDaemon(LipsyncdError):
    code = "no-daemon"
    default_remedy = "start it with `lipsyncd run`, and see how it goes with `lipsyncd status`"


class UsageError(LipsyncdError):
    code = "bad-usage"
    permanent = True
    exit_status = 2
    default_remedy = ""


# -- the ledger --------------------------------------------------------------------------------------------------------


class LedgerError(LipsyncdError):
    code = "ledger-error"


class UnknownJob(LedgerError):
    code = "unknown-job"
    permanent = True
    exit_status = 2
    default_remedy = "`lipsyncd status` lists the jobs that the ledger knows"


class IllegalTransition(LedgerError):
    code = "illegal-transition"
    permanent = True
    default_remedy = ""


class LedgerTooNew(LedgerError):
    code = "ledger-too-new"
    permanent = True
    exit_status = 78
    default_remedy = "run the newer lipsyncd that wrote it, or put back the backup that it made before its migration"


# -- what people drop --------------------------------------------------------------------------------------------------


class InputError(LipsyncdError):
    code = "bad-input"
    permanent = True


class BadManifest(InputError):
    code = "bad-manifest"
    default_remedy = "correct the manifest and drop it again; the README lists its fields"


class BadName(InputError):
    code = "bad-name"
    default_remedy = "use one path component of at most 200 bytes, without control characters and no leading '.' or '-'"


class UnsafePath(InputError):
    code = "unsafe-path"
    default_remedy = "name a file that lies in the inbox itself, next to the manifest"


class MissingFile(InputError):
    code = "missing-file"
    default_remedy = "drop the file that the manifest names before the manifest, then the manifest again"


class MissingHalf(InputError):
    code = "missing-half"
    default_remedy = "drop the picture and the sound under one stem: a.png with a.wav"


class AmbiguousPair(InputError):
    code = "ambiguous-pair"
    default_remedy = "leave one picture and one sound of that stem, or say in a manifest which two belong together"


class InputsAlreadyTaken(InputError):
    code = "inputs-already-taken"
    default_remedy = "drop the manifest before its files, or files whose stems differ"


class InputsLost(InputError):
    code = "inputs-lost"
    default_remedy = "drop the picture and the voice again"


class ImageNotRecognised(InputError):
    code = "image-not-recognised"
    default_remedy = "use a JPEG, PNG or WebP picture"


class ImageUndecodable(InputError):
    code = "image-undecodable"
    default_remedy = "open the picture and export it again as JPEG, PNG or WebP"


class ImageTooLarge(InputError):
    code = "image-too-large"
    default_remedy = "scale the picture down to at most 40 megapixels"


class ImageTooSmall(InputError):
    code = "image-too-small"
    default_remedy = "use a picture of at least 64 pixels a side; a face wants 256 or more"


class ImageAnimated(InputError):
    code = "image-animated"
    default_remedy = "export one frame of it as a still picture"


class AudioNotRecognised(InputError):
    code = "audio-not-recognised"
    default_remedy = "use WAV, MP3, M4A, OGG (Vorbis or Opus) or FLAC"


class AudioUndecodable(InputError):
    code = "audio-undecodable"
    default_remedy = "open the sound and export it again, for example as a 16-bit WAV"


class AudioTooShort(InputError):
    code = "audio-too-short"
    default_remedy = "use a voice of at least 0.2 s"


class AudioTooLong(InputError):
    code = "audio-too-long"
    default_remedy = "cut the voice into pieces of at most 600 s"


class SpeechFailed(InputError):
    code = "speech-failed"
    default_remedy = "shorten or correct the text, or choose another voice"


class FetchRefused(InputError):
    code = "fetch-refused"
    default_remedy = "put the file into the inbox, or ask the administrator to list the host under [fetch] allow"


# -- rendering ---------------------------------------------------------------------------------------------------------


class RenderError(LipsyncdError):
    code = "render-failed"


class NoFaceFound(RenderError):
    code = "no-face"
    permanent = True
    default_remedy = "use a picture with one frontal face, eyes level, at least a tenth of the picture's height"


class FaceTooSmall(RenderError):
    code = "face-too-small"
    permanent = True
    default_remedy = "crop the picture closer to the face, or use one of a higher resolution"


class UnknownRenderer(RenderError):
    code = "unknown-renderer"
    permanent = True


class BadOption(RenderError):
    code = "bad-option"
    permanent = True
    default_remedy = "correct the manifest; the README lists the options of each renderer"


class RenderCrashed(RenderError):
    code = "render-crashed"
    default_remedy = "`lipsyncd status ID` shows the end of the renderer's own output"


class RenderTimeout(RenderError):
    code = "render-timeout"
    default_remedy = "shorten the voice, or raise render.job_timeout_s"


class RenderStalled(RenderError):
    code = "render-stalled"
    default_remedy = "`lipsyncd status ID` shows the end of the renderer's own output"


class OutOfMemory(RenderError):
    code = "out-of-memory"
    default_remedy = "free memory on this machine; the job is tried again by itself"


class EncodeFailed(RenderError):
    code = "encode-failed"
    default_remedy = "check that render.ffmpeg names an ffmpeg with libx264 and aac, and that the disk is not full"


class BadResult(RenderError):
    code = "bad-result"
    default_remedy = "this is a fault of the renderer: report it with the input"


class FetchFailed(RenderError):
    code = "fetch-failed"
    default_remedy = "check that the address answers from this machine, then `lipsyncd retry ID`"


class JailFailed(RenderError):
    code = "jail-failed"
    default_remedy = "`lipsyncd doctor` shows what the jail can do here; then `lipsyncd retry ID`"


# -- publishing --------------------------------------------------------------------------------------------------------


class PublishError(LipsyncdError):
    code = "publish-failed"
    permanent = True


class NameTaken(PublishError):
    code = "name-taken"
    default_remedy = 'take that file out of the outbox and retry, or set output.on_name_conflict = "suffix"'


class ResultGone(PublishError):
    code = "result-gone"
    default_remedy = "finished videos are kept for archive.results_h; drop the inputs again (they are in the archive)"


# -- waiting -----------------------------------------------------------------------------------------------------------


class Blocked(LipsyncdError):
    """Something around the job is missing. The job stays queued, no attempt is charged, it is tried again by itself."""

    code = "blocked"


class OutboxUnavailable(Blocked):
    code = "outbox-unavailable"
    default_remedy = "mount the outbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class InboxUnavailable(Blocked):
    code = "inbox-unavailable"
    default_remedy = "mount the inbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class DiskLow(Blocked):
    code = "disk-low"
    default_remedy = "free space there, or lower paths.min_free_mb"


class RendererNotInstalled(Blocked):
    code = "renderer-not-installed"
    default_remedy = "install it, or choose another one with render.renderer"


class SpeechNotInstalled(Blocked):
    code = "speech-not-installed"
    default_remedy = "install the extra: pip install 'lipsyncd[tts]'"
