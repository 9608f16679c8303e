"""Everything that can go wrong, as one tree.

    LipsyncdError
    ├── ConfigError                 exit 78: a setting, its value, what is allowed, where it was read
    ├── AnotherDaemonRuns           exit 75
    ├── NoDaemon                    a command that waits for one
    ├── NotAllowed                  exit 77: a file of the installation that this user may not read or write
    ├── UsageError                  exit 2: a command that cannot be carried out as it was given
    ├── LedgerError                 the ledger refused: IllegalTransition UnknownJob LedgerTooNew BackupFailed
    │                               LedgerUnavailable
    ├── InputError                  the user's files or manifest; another attempt cannot help
    │   ├── manifest and names      BadManifest BadName UnsafePath MissingFile
    │   ├── pairs                   MissingHalf AmbiguousPair InputsAlreadyTaken InputsLost
    │   ├── picture                 ImageNotRecognised ImageUndecodable ImageTooLarge ImageTooSmall ImageAnimated
    │   └── sound                   AudioNotRecognised AudioUndecodable AudioTooShort AudioTooLong
    │                               SpeechFailed FetchRefused
    ├── RenderError                 a render that failed
    │   ├── permanent               NoFaceFound FaceTooSmall UnknownRenderer BadOption VideoNotTaken
    │   └── transient               RenderCrashed RenderTimeout RenderStalled OutOfMemory
    │                               EncodeFailed BadResult FetchFailed JailFailed
    ├── PublishError                a video that cannot be shown: NameTaken ResultGone
    └── Blocked                     nothing wrong with the job: it waits and costs no attempt
                                    OutboxUnavailable InboxUnavailable DiskLow RendererNotInstalled SpeechNotInstalled
                                    WeightsMissing WeightsDamaged WeightsUnreachable DeviceMissing

`code` is stored in the ledger, written to `reason.json` and sent over REST: it is never renamed. A message names the
thing and the value seen; `remedy` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar


class LipsyncdError(Exception):
    """Something that nobody foresaw.

    The root of the tree. `permanent` means that another attempt cannot help; `exit_status` is what the CLI ends with.
    """

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
    """A setting has a value that it cannot have, or an unknown name."""

    code = "bad-configuration"
    permanent = True
    exit_status = 78
    default_remedy = "`lipsyncd config` prints every value and where it was read"


class AnotherDaemonRuns(LipsyncdError):
    """Another process holds the lock of this state folder."""

    code = "another-daemon-runs"
    exit_status = 75
    default_remedy = "stop that one first, or give this one its own [paths]"


class NoDaemon(LipsyncdError):
    """Somebody waits for a job and no daemon runs."""

    code = "no-daemon"
    default_remedy = "start it with `lipsyncd run`, and see how it goes with `lipsyncd status`"


class NotAllowed(LipsyncdError):
    """This user may not read or write what a command needs."""

    code = "not-allowed"
    permanent = True
    exit_status = 77
    default_remedy = "become a member of its group (`sudo adduser NAME lipsyncd`, then log in anew), or use sudo -u"


class UsageError(LipsyncdError):
    """A command cannot be carried out as it was given."""

    code = "bad-usage"
    permanent = True
    exit_status = 2
    default_remedy = ""


# -- the ledger --------------------------------------------------------------------------------------------------------


class LedgerError(LipsyncdError):
    """The ledger cannot be read or written."""

    code = "ledger-error"


class LedgerUnavailable(LedgerError):
    """The ledger cannot be written just now; what was under way goes on when it can."""

    code = "ledger-unavailable"
    default_remedy = "free space on the disk of paths.state, and end other programs that hold the ledger"


class UnknownJob(LedgerError):
    """The ledger knows no job of that id."""

    code = "unknown-job"
    permanent = True
    exit_status = 2
    default_remedy = "`lipsyncd status` lists the jobs that the ledger knows"


class IllegalTransition(LedgerError):
    """The job is in a state that does not allow this."""

    code = "illegal-transition"
    permanent = True
    default_remedy = ""


class LedgerTooNew(LedgerError):
    """The ledger was written by a newer version."""

    code = "ledger-too-new"
    permanent = True
    exit_status = 78
    default_remedy = "run the newer lipsyncd that wrote it, or put back the backup that it made before its migration"


class BackupFailed(LedgerError):
    """The ledger could not be copied, or its copy is not whole."""

    code = "backup-failed"
    default_remedy = "free space in that folder, or name another one with --to"


# -- what people drop --------------------------------------------------------------------------------------------------


class InputError(LipsyncdError):
    """What was dropped cannot become a video."""

    code = "bad-input"
    permanent = True


class BadManifest(InputError):
    """A manifest is no JSON object, or a field has a wrong name, type or value."""

    code = "bad-manifest"
    default_remedy = "correct the manifest and drop it again; docs/jobs.md lists its fields"


class BadName(InputError):
    """An output name is not allowed."""

    code = "bad-name"
    default_remedy = "use one path component of at most 200 bytes, without control characters and no leading '.' or '-'"


class UnsafePath(InputError):
    """A manifest names something that is no plain file of the inbox."""

    code = "unsafe-path"
    default_remedy = "name a file that lies in the inbox itself, next to the manifest"


class MissingFile(InputError):
    """A file that was named did not come in time, or cannot be read."""

    code = "missing-file"
    default_remedy = "drop the file that the manifest names before the manifest, then the manifest again"


class MissingHalf(InputError):
    """A picture or a sound stayed alone for `watch.pair_timeout_s`."""

    code = "missing-half"
    default_remedy = "drop the picture and the sound under one stem: a.png with a.wav"


class AmbiguousPair(InputError):
    """More than one picture or sound has that stem."""

    code = "ambiguous-pair"
    default_remedy = "leave one picture and one sound of that stem, or say in a manifest which two belong together"


class InputsAlreadyTaken(InputError):
    """A manifest came after its files were made a job, or with the id of a job that has other inputs."""

    code = "inputs-already-taken"
    default_remedy = "drop the manifest before its files, or files whose stems differ"


class InputsLost(InputError):
    """The inputs of a job are no longer where they were kept."""

    code = "inputs-lost"
    default_remedy = "drop the picture and the voice again"


class ImageNotRecognised(InputError):
    """A picture is of no format that is taken, by its bytes."""

    code = "image-not-recognised"
    default_remedy = "use a JPEG, PNG or WebP picture, or an MP4, MOV or WebM video"


class ImageUndecodable(InputError):
    """A picture or a video in its place is damaged or cut short."""

    code = "image-undecodable"
    default_remedy = "open the picture and export it again as JPEG, PNG or WebP, a video as MP4 (H.264)"


class ImageTooLarge(InputError):
    """A picture has too many pixels."""

    code = "image-too-large"
    default_remedy = "scale the picture down to at most 40 megapixels"


class ImageTooSmall(InputError):
    """A picture has too few pixels."""

    code = "image-too-small"
    default_remedy = "use a picture of at least 64 pixels a side; a face wants 256 or more"


class ImageAnimated(InputError):
    """A picture has more than one frame."""

    code = "image-animated"
    default_remedy = "export one frame of it as a still picture"


class AudioNotRecognised(InputError):
    """A sound is of no format that is taken, by its bytes."""

    code = "audio-not-recognised"
    default_remedy = "use WAV, MP3, M4A, OGG (Vorbis or Opus) or FLAC"


class AudioUndecodable(InputError):
    """A sound is damaged, cut short, or holds nothing that can be decoded."""

    code = "audio-undecodable"
    default_remedy = "open the sound and export it again, for example as a 16-bit WAV"


class AudioTooShort(InputError):
    """A sound is shorter than `intake.min_audio_s`."""

    code = "audio-too-short"
    default_remedy = "use a voice of at least 0.2 s"


class AudioTooLong(InputError):
    """A sound is longer than `intake.max_audio_s`."""

    code = "audio-too-long"
    default_remedy = "cut the voice into pieces of at most 600 s"


class SpeechFailed(InputError):
    """A text could not be spoken."""

    code = "speech-failed"
    default_remedy = "shorten or correct the text, or choose another voice"


class FetchRefused(InputError):
    """An address may not be fetched, or does not hold the file."""

    code = "fetch-refused"
    default_remedy = "put the file into the inbox, or ask the administrator to list the host under [fetch] allow"


# -- rendering ---------------------------------------------------------------------------------------------------------


class RenderError(LipsyncdError):
    """A render failed."""

    code = "render-failed"


class NoFaceFound(RenderError):
    """No frontal face of some size was found in the picture."""

    code = "no-face"
    permanent = True
    default_remedy = "use a picture with one frontal face, eyes level, at least a tenth of the picture's height"


class FaceTooSmall(RenderError):
    """The face has too few pixels."""

    code = "face-too-small"
    permanent = True
    default_remedy = "crop the picture closer to the face, or use one of a higher resolution"


class UnknownRenderer(RenderError):
    """No renderer has that name."""

    code = "unknown-renderer"
    permanent = True


class BadOption(RenderError):
    """A renderer does not know an option, or not that value of it."""

    code = "bad-option"
    permanent = True
    default_remedy = "correct the manifest; docs/renderers.md lists the options of each renderer"


class VideoNotTaken(RenderError):
    """The renderer animates still pictures only."""

    code = "video-not-taken"
    permanent = True
    default_remedy = "use a picture, or a renderer that takes videos, such as musetalk"


class RenderCrashed(RenderError):
    """The render process ended, or the renderer raised an error."""

    code = "render-crashed"
    default_remedy = (
        "`lipsyncd status ID` shows its last words; with log.level = debug the daemon's log has all of them"
    )


class RenderTimeout(RenderError):
    """The render took longer than `render.job_timeout_s`."""

    code = "render-timeout"
    default_remedy = "shorten the voice, or raise render.job_timeout_s"


class RenderStalled(RenderError):
    """The render process said nothing for `render.stall_timeout_s`."""

    code = "render-stalled"
    default_remedy = (
        "`lipsyncd status ID` shows its last words; with log.level = debug the daemon's log has all of them"
    )


class OutOfMemory(RenderError):
    """There was not enough memory, or the system killed the render process."""

    code = "out-of-memory"
    default_remedy = "free memory on this machine; the job is tried again by itself"


class EncodeFailed(RenderError):
    """ffmpeg did not make the video."""

    code = "encode-failed"
    default_remedy = "check that render.ffmpeg names an ffmpeg with libx264 and aac, and that the disk is not full"


class BadResult(RenderError):
    """The finished video is not what it should be."""

    code = "bad-result"
    default_remedy = "this is a fault of the renderer: report it with the input"


class FetchFailed(RenderError):
    """An address did not answer; it is tried again."""

    code = "fetch-failed"
    default_remedy = "check that the address answers from this machine, then `lipsyncd retry ID`"


class JailFailed(RenderError):
    """A jailed process could not be started."""

    code = "jail-failed"
    default_remedy = "see in the daemon's log what the kernel or the container refused; then `lipsyncd retry ID`"


# -- publishing --------------------------------------------------------------------------------------------------------


class PublishError(LipsyncdError):
    """A finished video cannot be shown."""

    code = "publish-failed"
    permanent = True


class NameTaken(PublishError):
    """The outbox has a file of that name, and `output.on_name_conflict` is "fail"."""

    code = "name-taken"
    default_remedy = 'take that file out of the outbox and retry, or set output.on_name_conflict = "suffix"'


class ResultGone(PublishError):
    """The finished video is kept no longer."""

    code = "result-gone"
    default_remedy = "finished videos are kept for retention.results_h; drop the inputs again (they are in the archive)"


# -- waiting -----------------------------------------------------------------------------------------------------------


class Blocked(LipsyncdError):
    """The job waits for something around it: it stays queued, costs no attempt, and goes on by itself."""

    code = "blocked"


class OutboxUnavailable(Blocked):
    """The outbox is not mounted, or cannot be written."""

    code = "outbox-unavailable"
    default_remedy = "mount the outbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class InboxUnavailable(Blocked):
    """The inbox is not mounted."""

    code = "inbox-unavailable"
    default_remedy = "mount the inbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class DiskLow(Blocked):
    """A disk has less than `paths.min_free_mb` free."""

    code = "disk-low"
    default_remedy = "free space there, or lower paths.min_free_mb"


class RendererNotInstalled(Blocked):
    """The renderer's packages are not installed."""

    code = "renderer-not-installed"
    default_remedy = "install it, or choose another one with render.renderer"


class SpeechNotInstalled(Blocked):
    """The extra `tts` is not installed."""

    code = "speech-not-installed"
    default_remedy = "install the extra: pip install 'lipsyncd[tts]'"


class WeightsMissing(Blocked):
    """The renderer's weights are not all there."""

    code = "weights-missing"
    default_remedy = "`lipsyncd models pull`, or `lipsyncd models pull --from DIR`"


class WeightsDamaged(Blocked):
    """A file of weights has another hash than the lock list says."""

    code = "weights-damaged"
    default_remedy = "`lipsyncd models pull` brings it anew; if it happens again, check the disk and the network"


class WeightsUnreachable(Blocked):
    """Weights could not be fetched or made ready; what was fetched is kept."""

    code = "weights-unreachable"
    default_remedy = "check that the hub answers from this machine (HF_ENDPOINT), then `lipsyncd models pull` again"


class DeviceMissing(Blocked):
    """The device that a render is to use is not there."""

    code = "device-missing"
    default_remedy = 'check the driver with `nvidia-smi`, or ask for the CPU with render.devices = ["cpu"]'
