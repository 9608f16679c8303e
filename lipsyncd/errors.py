"""Everything that can go wrong, as one tree.

    LipsyncdError
    ├── ConfigError                 exit 78: a setting, its value, what is allowed, where it was read
    ├── AnotherDaemonRuns           exit 75
    ├── NoDaemon                    a command needs a running daemon
    ├── NotAllowed                  exit 77: this user may not read or write a file of the installation
    ├── UsageError                  exit 2: wrong arguments of a command
    ├── JobCancelled                a client waits for a job that was cancelled
    ├── ServerError                 a server answered a client with an error: Busy KeyRefused Unreachable
    ├── LedgerError                 IllegalTransition UnknownJob AmbiguousJob LedgerTooNew BackupFailed
    │                               LedgerUnavailable
    ├── InputError                  the user's files or manifest; another attempt cannot help
    │   ├── manifest and names      BadManifest BadName UnsafePath MissingFile
    │   ├── pairs                   MissingHalf AmbiguousPair InputsAlreadyTaken InputsLost
    │   ├── picture                 ImageNotRecognised ImageUndecodable ImageTooLarge ImageTooSmall ImageAnimated
    │   └── sound                   AudioNotRecognised AudioUndecodable AudioTooShort AudioTooLong
    │                               SpeechFailed VoiceUnusable FetchRefused
    ├── RenderError                 a render failed
    │   ├── permanent               NoFaceFound FaceTooSmall UnknownRenderer BadOption VideoNotTaken LostTwice
    │   └── transient               RenderCrashed RenderTimeout RenderStalled OutOfMemory
    │                               EncodeFailed BadResult FetchFailed JailFailed SlotLost
    ├── PublishError                a finished video cannot be published: NameTaken ResultGone
    └── Blocked                     not the job's fault: it waits, and no attempt is counted
                                    OutboxUnavailable InboxUnavailable FolderNotOurs DiskLow SystemBusy
                                    RendererNotInstalled SpeechNotInstalled WeightsMissing WeightsDamaged
                                    WeightsUnreachable DeviceMissing ClusterUnavailable ShareUnavailable

`code` is stored in the ledger, written to `reason.json` and sent over REST, so it is never renamed. A message names the
thing and the value seen; `remedy` is what the user can do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar


class LipsyncdError(Exception):
    """An unexpected error.

    The root of the tree. `permanent` means that another attempt cannot help; `exit_status` is that of a command.
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

    @property
    def lines(self) -> list[str]:
        """One line for each fault, for a terminal or a log."""
        return [str(self)]

    def reason(self) -> dict[str, str]:
        """The three fields for users and programs."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


def from_reason(reason: Mapping[str, object]) -> LipsyncdError:
    """The error that `reason()` was called on, of the same class; an unknown code gives the root class."""
    code = reason.get("code")
    kind = next((cls for cls in tree() if cls.code == code), LipsyncdError)
    error = kind.__new__(kind)
    LipsyncdError.__init__(error, str(reason.get("message", "")), remedy=str(reason.get("remedy", "")))
    return error


def tree(root: type[LipsyncdError] = LipsyncdError) -> Iterator[type[LipsyncdError]]:
    """Every class of the tree, the root first."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


# -- commands ----------------------------------------------------------------------------------------------------------


class ConfigError(LipsyncdError):
    """A setting has an unknown name or a value that is not allowed."""

    code = "bad-configuration"
    permanent = True
    exit_status = 78
    default_remedy = "`lipsyncd config` prints every value and where it was read"
    faults: Sequence[ConfigError] = ()  # the single ones, where there are several

    @classmethod
    def of(cls, faults: Sequence[ConfigError]) -> ConfigError:
        """The only one of these faults, or one error that holds all of them."""
        if len(faults) == 1:
            return faults[0]
        error = cls(f"{len(faults)} settings are wrong: {' | '.join(map(str, faults))}", remedy="")
        error.faults = tuple(faults)
        return error

    @property
    def lines(self) -> list[str]:
        return [str(fault) for fault in self.faults] or [str(self)]


class AnotherDaemonRuns(LipsyncdError):
    """Another process holds the lock of this state folder."""

    code = "another-daemon-runs"
    exit_status = 75
    default_remedy = "stop that daemon first, or give this one other [paths]"


class NoDaemon(LipsyncdError):
    """A command needs a running daemon, and none runs."""

    code = "no-daemon"
    default_remedy = "start it with `lipsyncd run`; `lipsyncd status` shows the job"


class NotAllowed(LipsyncdError):
    """This user may not read or write a file that the command needs."""

    code = "not-allowed"
    permanent = True
    exit_status = 77
    default_remedy = "join the group (`sudo adduser NAME lipsyncd`, then log in again), or use sudo -u lipsyncd"


class UsageError(LipsyncdError):
    """A command was called with wrong arguments."""

    code = "bad-usage"
    permanent = True
    exit_status = 2
    default_remedy = ""


# -- clients -----------------------------------------------------------------------------------------------------------


class JobCancelled(LipsyncdError):
    """The job was cancelled, so there is no video."""

    code = "cancelled"
    permanent = True
    default_remedy = ""


class ServerError(LipsyncdError):
    """A server has refused a client's request, or failed with it."""

    code = "server-error"
    default_remedy = "see the server's log"


class Busy(ServerError):
    """The server takes no more jobs or uploads at present. `retry_after_s`: when to ask again."""

    code = "busy"
    default_remedy = "send the request again later"
    retry_after_s: float = 5.0


class KeyRefused(ServerError):
    """The server needs a key, or does not know this one."""

    code = "key-refused"
    permanent = True
    default_remedy = "use a key of the server's web.api_key_file"


class Unreachable(ServerError):
    """No server answers at that address."""

    code = "server-unreachable"
    default_remedy = "check the address, and that the daemon runs there"


# -- the ledger --------------------------------------------------------------------------------------------------------


class LedgerError(LipsyncdError):
    """The ledger cannot be read or written."""

    code = "ledger-error"


class LedgerUnavailable(LedgerError):
    """The ledger cannot be written at the moment; work under way continues when it can."""

    code = "ledger-unavailable"
    default_remedy = "free space on the disk of paths.state, and end other programs that lock the ledger"


class UnknownJob(LedgerError):
    """The ledger has no job with that id or name."""

    code = "unknown-job"
    permanent = True
    exit_status = 2
    default_remedy = "`lipsyncd status` lists the jobs in the ledger"


class AmbiguousJob(LedgerError):
    """Several jobs have that name, or an id that begins or ends so."""

    code = "ambiguous-job"
    permanent = True
    exit_status = 2
    default_remedy = "give the id of one of them"


class IllegalTransition(LedgerError):
    """The job is in a state that does not allow this."""

    code = "illegal-transition"
    permanent = True
    default_remedy = ""


class LedgerTooNew(LedgerError):
    """The ledger was written by a newer version of lipsyncd."""

    code = "ledger-too-new"
    permanent = True
    exit_status = 78
    default_remedy = "run the version that wrote it, or restore the backup that it made before its migration"


class BackupFailed(LedgerError):
    """The ledger could not be copied, or the copy is incomplete."""

    code = "backup-failed"
    default_remedy = "free space in that folder, or name another folder with --to"


# -- inputs ------------------------------------------------------------------------------------------------------------


class InputError(LipsyncdError):
    """The inputs cannot become a video."""

    code = "bad-input"
    permanent = True


class BadManifest(InputError):
    """A manifest is not a JSON object, or a field has a wrong name, type or value."""

    code = "bad-manifest"
    default_remedy = "correct the manifest and drop it again; docs/jobs.md lists its fields"


class BadName(InputError):
    """An output name is not allowed."""

    code = "bad-name"
    default_remedy = "use one path component of at most 200 bytes, without control characters or a leading '.' or '-'"


class UnsafePath(InputError):
    """A manifest names something other than a regular file in the inbox."""

    code = "unsafe-path"
    default_remedy = "name a file in the inbox itself, next to the manifest"


class MissingFile(InputError):
    """A named file did not arrive in time, or cannot be read."""

    code = "missing-file"
    default_remedy = "drop the file that the manifest names before the manifest, then the manifest again"


class MissingHalf(InputError):
    """A picture or a sound had no counterpart for `watch.pair_timeout_s`."""

    code = "missing-half"
    default_remedy = "drop the picture and the sound under the same stem, such as a.png and a.wav"


class AmbiguousPair(InputError):
    """More than one picture or sound has the same stem."""

    code = "ambiguous-pair"
    default_remedy = "leave one picture and one sound with that stem, or name the two in a manifest"


class InputsAlreadyTaken(InputError):
    """A manifest came after its files had become a job, or has the id of a job with other inputs."""

    code = "inputs-already-taken"
    default_remedy = "drop the manifest before its files, or give the files different stems"


class InputsLost(InputError):
    """The stored inputs of a job are gone."""

    code = "inputs-lost"
    default_remedy = "drop the picture and the sound again"


class ImageNotRecognised(InputError):
    """A picture's bytes have no supported format."""

    code = "image-not-recognised"
    default_remedy = "use a JPEG, PNG, WebP, HEIC, AVIF, BMP, TIFF or GIF picture, or an MP4, MOV or WebM video"


class ImageUndecodable(InputError):
    """A picture, or a video in its place, is damaged or incomplete."""

    code = "image-undecodable"
    default_remedy = "export the picture again as JPEG, PNG or WebP, or the video as MP4 (H.264)"


class ImageTooLarge(InputError):
    """A picture has too many pixels."""

    code = "image-too-large"
    default_remedy = "scale the picture down to at most 40 megapixels"


class ImageTooSmall(InputError):
    """A picture has too few pixels."""

    code = "image-too-small"
    default_remedy = "use a picture with sides of at least 64 pixels; a face looks good from 256 pixels on"


class ImageAnimated(InputError):
    """A picture has more than one frame."""

    code = "image-animated"
    default_remedy = "export one frame as a still picture"


class AudioNotRecognised(InputError):
    """A sound's bytes have no supported format."""

    code = "audio-not-recognised"
    default_remedy = "use WAV, MP3, M4A, OGG (Vorbis or Opus) or FLAC"


class AudioUndecodable(InputError):
    """A sound is damaged, incomplete, or has no audio that can be decoded."""

    code = "audio-undecodable"
    default_remedy = "export the sound again, for example as a 16-bit WAV"


class AudioTooShort(InputError):
    """A sound is shorter than `intake.min_audio_s`."""

    code = "audio-too-short"
    default_remedy = "use a sound of at least 0.2 s"


class AudioTooLong(InputError):
    """A sound is longer than `intake.max_audio_s`."""

    code = "audio-too-long"
    default_remedy = "cut the sound into pieces of at most 600 s"


class SpeechFailed(InputError):
    """A text could not be spoken."""

    code = "speech-failed"
    default_remedy = "shorten or correct the text, or choose another voice"


class VoiceUnusable(InputError):
    """A voice of Piper is missing, damaged, or none."""

    code = "voice-unusable"
    default_remedy = "`lipsyncd voices` lists the voices; NAME.onnx and NAME.onnx.json belong into speech.voices"


class FetchRefused(InputError):
    """A URL may not be fetched, or does not have the file."""

    code = "fetch-refused"
    default_remedy = "put the file into the inbox, or ask the administrator to add the host to [fetch] allow"


# -- rendering ---------------------------------------------------------------------------------------------------------


class RenderError(LipsyncdError):
    """A render failed."""

    code = "render-failed"


class NoFaceFound(RenderError):
    """No frontal face of sufficient size was found in the picture."""

    code = "no-face"
    permanent = True
    default_remedy = "use a picture with one upright frontal face, at least a tenth of the picture's height"


class FaceTooSmall(RenderError):
    """The face has too few pixels."""

    code = "face-too-small"
    permanent = True
    default_remedy = "crop the picture closer to the face, or use a picture with a higher resolution"


class UnknownRenderer(RenderError):
    """There is no renderer of that name."""

    code = "unknown-renderer"
    permanent = True
    exit_status = 2


class BadOption(RenderError):
    """The renderer does not have that option, or does not accept its value."""

    code = "bad-option"
    permanent = True
    exit_status = 2
    default_remedy = "correct the manifest; docs/renderers.md lists the options of each renderer"


class VideoNotTaken(RenderError):
    """The renderer animates still pictures only."""

    code = "video-not-taken"
    permanent = True
    default_remedy = "use a picture, or a renderer that accepts videos, such as musetalk"


class SlotLost(RenderError):
    """A machine of the cluster, or the process that rendered there, was lost."""

    code = "slot-lost"
    default_remedy = "the job is tried again elsewhere; `lipsyncd status --slots` shows the machines"


class LostTwice(RenderError):
    """Two machines of the cluster were lost while they rendered this job."""

    code = "lost-twice"
    permanent = True
    default_remedy = "look into the logs of these machines before the job is retried"


class RenderCrashed(RenderError):
    """The render process ended without a result, or the renderer raised an error."""

    code = "render-crashed"
    default_remedy = (
        "`lipsyncd status ID` shows the end of its output; with log.level = debug the daemon's log has all of it"
    )


class RenderTimeout(RenderError):
    """The render took longer than `render.job_timeout_s`."""

    code = "render-timeout"
    default_remedy = "shorten the sound, or raise render.job_timeout_s"


class RenderStalled(RenderError):
    """The render process sent no message for `render.stall_timeout_s`."""

    code = "render-stalled"
    default_remedy = (
        "`lipsyncd status ID` shows the end of its output; with log.level = debug the daemon's log has all of it"
    )


class OutOfMemory(RenderError):
    """Memory ran out, or the system killed the render process."""

    code = "out-of-memory"
    default_remedy = "free memory on this machine; the job is tried again automatically"


class EncodeFailed(RenderError):
    """ffmpeg did not encode the video."""

    code = "encode-failed"
    default_remedy = "check that render.ffmpeg names an ffmpeg with libx264 and aac, and that the disk is not full"


class BadResult(RenderError):
    """The finished video failed its check."""

    code = "bad-result"
    default_remedy = "this is a bug in the renderer: report it with the input"


class FetchFailed(RenderError):
    """A URL did not answer; it is tried again."""

    code = "fetch-failed"
    default_remedy = "check that this machine can reach the URL, then `lipsyncd retry ID`"


class JailFailed(RenderError):
    """A jailed process could not be started."""

    code = "jail-failed"
    default_remedy = "the daemon's log shows what the kernel or the container refused; then `lipsyncd retry ID`"


# -- publishing --------------------------------------------------------------------------------------------------------


class PublishError(LipsyncdError):
    """A finished video cannot be published."""

    code = "publish-failed"
    permanent = True


class NameTaken(PublishError):
    """The outbox has a file of the same name, and `output.on_name_conflict` is "fail"."""

    code = "name-taken"
    default_remedy = 'take that file out of the outbox and retry, or set output.on_name_conflict = "suffix"'


class ResultGone(PublishError):
    """The finished video is no longer kept."""

    code = "result-gone"
    default_remedy = "drop the inputs again (see the archive); finished videos are kept for retention.results_h"


# -- waiting -----------------------------------------------------------------------------------------------------------


class Blocked(LipsyncdError):
    """The job waits for something outside it: it stays queued, no attempt is counted, and it continues by itself."""

    code = "blocked"


class OutboxUnavailable(Blocked):
    """The outbox is not mounted, or cannot be written."""

    code = "outbox-unavailable"
    default_remedy = "mount the outbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class InboxUnavailable(Blocked):
    """The inbox is not mounted."""

    code = "inbox-unavailable"
    default_remedy = "mount the inbox; if its marker was deleted on purpose, run `lipsyncd init --adopt`"


class SystemBusy(Blocked):
    """The machine had no memory, no process or no open file left for a step."""

    code = "system-busy"
    default_remedy = "end other programs, or raise the limits of the service (LimitNOFILE, TasksMax, MemoryMax)"


class FolderNotOurs(Blocked):
    """A folder or file that the daemon alone writes belongs to another user, or is a link."""

    code = "folder-not-ours"
    default_remedy = "remove it, or give it to the daemon's user"


class DiskLow(Blocked):
    """A disk has less than `paths.min_free_mb` free."""

    code = "disk-low"
    default_remedy = "free space on that disk, or lower paths.min_free_mb"


class RendererNotInstalled(Blocked):
    """The renderer's packages are not installed."""

    code = "renderer-not-installed"
    default_remedy = "install them, as `lipsyncd doctor` says, or choose another renderer with render.renderer"


class SpeechNotInstalled(Blocked):
    """The extra `tts` is not installed."""

    code = "speech-not-installed"
    default_remedy = "install it; `lipsyncd doctor` says how, since that depends on how lipsyncd was installed"


class WeightsMissing(Blocked):
    """Weights of the renderer are missing."""

    code = "weights-missing"
    default_remedy = "run `lipsyncd models pull`, or `lipsyncd models pull --from DIR`"


class WeightsDamaged(Blocked):
    """A weight file does not have the hash in the lock list."""

    code = "weights-damaged"
    default_remedy = "run `lipsyncd models pull` to fetch it again; if it happens again, check the disk and the network"


class WeightsUnreachable(Blocked):
    """Weights could not be downloaded or converted; partial downloads are kept."""

    code = "weights-unreachable"
    default_remedy = "check that this machine can reach the hub (HF_ENDPOINT), then run `lipsyncd models pull` again"


class DeviceMissing(Blocked):
    """The configured device does not exist."""

    code = "device-missing"
    default_remedy = 'check the driver with `nvidia-smi`, or use the CPU with render.devices = ["cpu"]'


class ClusterUnavailable(Blocked):
    """The Ray cluster does not answer."""

    code = "cluster-unavailable"
    default_remedy = "check `ray status` on the daemon's machine; `lipsyncd doctor --executor ray` checks the rest"


class ShareUnavailable(Blocked):
    """The shared folder of the cluster cannot be read or written."""

    code = "share-unavailable"
    default_remedy = "mount roots.share on the daemon's machine and on each machine of the cluster"
