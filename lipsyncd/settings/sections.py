"""Every setting with its default, its bounds and its one sentence.

One frozen record for each section, and `Settings` for all of them. `loading.py` reads values and checks them; a
section that is made directly, as in tests, is not checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lipsyncd.errors import ConfigError
from lipsyncd.jobs.values import parse_fps
from lipsyncd.settings import hosts
from lipsyncd.settings.cluster import Executor, Ray, Roots, Split
from lipsyncd.settings.rules import UNSET, setting
from lipsyncd.settings.section import Section

if TYPE_CHECKING:
    from fractions import Fraction

FOLDERS = ("inbox", "outbox", "failed", "archive", "state", "spool")
LOCK_LIST = Path(__file__).resolve().parent.parent / "weights" / "lock.json"  # data of the package


# -- what single settings may be ---------------------------------------------------------------------------------------


def _is_fps(value: object) -> bool:
    try:
        parse_fps(value)
    except ValueError:
        return False
    return True


def _are_renderers(value: tuple[str, ...]) -> bool:
    return all(re.fullmatch(r"[a-z][a-z0-9_-]*=[A-Za-z_][\w.]*:[A-Za-z_]\w*", entry) for entry in value)


def _are_variables(names: tuple[str, ...]) -> bool:
    return all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in names)


def _plain_devices(names: tuple[str, ...]) -> tuple[str, ...]:
    """One name for each device: torch takes "cuda" for the current GPU, and "cpu:0" for the only CPU that it knows."""
    numbered = tuple(re.sub(r"^cuda:0+(?=[0-9])", "cuda:", name) for name in names)
    return tuple({"cuda": "cuda:0", "cpu:0": "cpu"}.get(name, name) for name in numbered)


def _are_devices(names: tuple[str, ...]) -> bool:
    """`auto` stands alone, because what it finds may be one of the others; one device renders one job at a time."""
    known = all(re.fullmatch(r"auto|cpu|cuda:[0-9]{1,3}", name) for name in names)
    return known and 0 < len(names) == len(set(names)) and ("auto" not in names or len(names) == 1)


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


def home_folder(environ: Mapping[str, str]) -> Path:
    """The caller's home, also where HOME is not set. Raises `ConfigError`."""
    try:
        return Path(environ.get("HOME") or Path.home())
    except RuntimeError:
        raise ConfigError("this user has no home folder", remedy="set STORAGE_DIR to an absolute path") from None


def default_storage(environ: Mapping[str, str]) -> Path:
    """The state folder that systemd gives a unit, else a folder in the caller's home. Raises `ConfigError`."""
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given or home_folder(environ) / ".local/share/lipsyncd").absolute()


# -- the sections ------------------------------------------------------------------------------------------------------


class Paths(Section):
    """Where the folders are. None of the six below storage is another one or lies inside it."""

    storage: Path = setting(
        UNSET,
        "Parent of the folders below; empty means systemd's state folder, else ~/.local/share/lipsyncd.",
        variable="STORAGE_DIR",
    )
    inbox: Path = setting(UNSET, "Watched for portraits, voices and manifests; empty means storage/inbox.")
    outbox: Path = setting(UNSET, "Gets the finished videos; empty means storage/outbox.")
    failed: Path = setting(UNSET, "Gets the inputs of failed jobs, with the reason; empty means storage/failed.")
    archive: Path = setting(UNSET, "Gets the inputs of finished jobs; empty means storage/archive.")
    state: Path = setting(UNSET, "Ledger, lock and control files, on a local disk; empty means storage/state.")
    spool: Path = setting(UNSET, "Accepted jobs, on the same file system as state; empty means storage/spool.")
    min_free_mb: int = setting(500, "Jobs wait while a disk that they need has less than this free.", low=0)

    def __post_init__(self) -> None:
        storage = default_storage(os.environ) if self.storage == UNSET else self.storage.absolute()
        object.__setattr__(self, "storage", storage)
        for name in FOLDERS:
            given: Path = getattr(self, name)
            object.__setattr__(self, name, storage / name if given == UNSET else given.absolute())


class Watch(Section):
    """When a file in the inbox is finished, and how changes are noticed."""

    mode: str = setting(
        "auto", "How changes are noticed; auto polls network folders.", choices=("auto", "inotify", "poll")
    )
    settle_s: float = setting(1.0, "A file is finished when nothing has changed it for this long.", low=0)
    settle_proven_s: float = setting(
        0.2, "The same for a file whose own structure proves it complete and that no local program writes.", low=0
    )
    settle_network_s: float = setting(
        5.0, "The same in a network folder, and for another user's file if the kernel hides who writes it.", low=0
    )
    rescan_s: float = setting(10.0, "Scan the inbox this often, also when no change was noticed.", low=0.05)
    poll_s: float = setting(2.0, "Scan this often where changes cannot be noticed.", low=0.05)
    pair_timeout_s: float = setting(86400.0, "Give up on a picture or a voice that stays alone for this long.", low=1)
    manifest_grace_s: float = setting(2.0, "A manifest this soon after its pair replaces that job's options.", low=0)
    incomplete_timeout_s: float = setting(
        60.0,
        "Wait this long for the rest of a file whose header announces more; then take a sound as it is.",
        low=1,
    )
    incomplete_network_s: float = setting(1800.0, "The same in a network folder.", low=1)


class Intake(Section):
    """What is taken from the inbox."""

    max_image_mb: int = setting(64, "Largest picture file.", low=1)
    max_video_mb: int = setting(512, "Largest video file in place of a picture.", low=1)
    max_audio_mb: int = setting(512, "Largest sound file.", low=1)
    max_manifest_kb: int = setting(64, "Largest manifest.", low=1, high=64)
    min_side_px: int = setting(64, "Shortest side of a picture.", low=1)
    max_megapixels: int = setting(40, "Largest picture, decoded, other than JPEG, HEIC and AVIF.", low=1, high=1000)
    max_photo_megapixels: int = setting(64, "Largest JPEG, HEIC or AVIF picture, decoded.", low=1, high=1000)
    min_audio_s: float = setting(0.2, "Shortest voice.", low=0.04)
    max_audio_s: float = setting(600.0, "Longest voice.", low=1)
    on_redrop: str = setting(
        "link",
        "When the same files and options come again: publish the first video, render anew, or write a sidecar only.",
        choices=("link", "render", "skip"),
    )
    explain: bool = setting(
        True, "After two minutes, explain in the inbox (NAME.why.txt) why a file is left there, and what to do."
    )
    background: str = setting(
        "#ffffff",
        "Colour under transparent pictures.",
        check=_matches("#[0-9a-fA-F]{6}"),
        allowed="a colour as #rrggbb",
    )

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        red, green, blue = bytes.fromhex(self.background[1:])
        return red, green, blue


class Render(Section):
    """Which renderer runs, on which devices, and for how long."""

    renderer: str = setting("musetalk", "Renderer of jobs that name none.", check=bool, allowed="a renderer's name")
    renderers: tuple[str, ...] = setting(
        (),
        "Renderers of your own besides the built-in ones, each as name=module:Class.",
        check=_are_renderers,
        allowed='entries such as "mine=mypackage.mymodule:MyRenderer"',
    )
    environment: tuple[str, ...] = setting(
        (),
        "Environment variables of the daemon that render processes get, too; only those of libraries are handed on.",
        check=_are_variables,
        allowed='names such as "MY_CACHE_DIR"',
    )
    devices: tuple[str, ...] = setting(
        ("auto",),
        "One job at a time on each of these; auto is the first GPU.",
        plain=_plain_devices,
        check=_are_devices,
        allowed="auto alone, or different devices such as cuda:0, cuda:1, cpu",
    )
    lazy_load: bool = setting(True, "Load the renderer with the first job and not at the start.", variable="LAZY_LOAD")
    unload_idle_s: float = setting(
        300.0,
        "Free the GPU after this long without a job; 0 means after every job.",
        low=0,
        variable="UNLOAD_IDLE_SECONDS",
    )
    max_vram_gb: float = setting(
        14.0,
        "Memory that a render may use: the GPU's, or its own data when it renders on a CPU.",
        low=1,
        variable="MAX_VRAM_GB",
    )
    clear_cache: bool = setting(
        True,
        "Give cached memory back after a job: when no other follows within a second, or the device is nearly full.",
        variable="CLEAR_CACHE_AFTER_GENERATION",
    )
    kernels: str = setting(
        "fused",
        "How musetalk computes its networks: fused is faster, and is compared once with the published ones.",
        choices=("fused", "published"),
    )
    cpu_precision: str = setting(
        "float32",
        "Precision of musetalk's decoder on a CPU; bfloat16 is twice as fast where the CPU has it.",
        choices=("float32", "bfloat16"),
    )
    threads: int = setting(
        0,
        "Threads of musetalk's networks on a CPU; 0 means one for each core that the daemon may use.",
        low=0,
        high=512,
    )
    max_concurrent_jobs: int = setting(
        2, "Upper bound on jobs at a time; one device still means one job.", low=1, variable="MAX_CONCURRENT_JOBS"
    )
    job_timeout_s: float = setting(600.0, "Longest rendering of one job.", low=1, variable="JOB_TIMEOUT_SECONDS")
    stall_timeout_s: float = setting(60.0, "Longest silence of a render process while it works.", low=1)
    start_timeout_s: float = setting(120.0, "Longest start of a render process.", low=1)
    max_attempts: int = setting(3, "Attempts at a job whose failure may be temporary.", low=1, high=100)
    ffmpeg: str = setting("", "The ffmpeg to use; empty means the one on PATH, else the one of imageio-ffmpeg.")
    stop_grace_s: float = setting(30.0, "A running job gets this long to finish when the daemon stops.", low=0)


class Output(Section):
    """What a video is like, unless its job asks for something else."""

    resolution: int = setting(
        256,
        "Side of the square around the face, in pixels; ignored with stitch.",
        check=lambda side: 64 <= side <= 2048 and side % 2 == 0,
        allowed="an even number from 64 to 2048",
        variable="OUTPUT_RESOLUTION",
    )
    fps: str = setting(
        "25",
        "Frames per second.",
        check=_is_fps,
        number=True,
        allowed="a rate from 1 to 120 as a number or a fraction such as 30000/1001",
        variable="OUTPUT_FPS",
    )
    stitch: bool = setting(False, "Show the whole picture in place of the square around the face.")
    motion: str = setting(
        "subtle", "How much the head of a still moves, with any renderer.", choices=("none", "subtle", "lively")
    )
    av_offset_ms: int = setting(
        0, "How much later than the sound the lips move, in milliseconds; negative is earlier.", low=-200, high=200
    )
    crf: int = setting(18, "Quality of H.264; lower is better and larger.", low=1, high=51)
    preset: str = setting(
        "veryfast",
        "Effort of H.264; slower makes smaller files.",
        choices=("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"),
    )
    encoder: str = setting(
        "x264",
        "What encodes H.264: x264 on the processor, or nvenc on an NVIDIA GPU that has an encoder.",
        choices=("x264", "nvenc"),
    )
    audio_kbps: int = setting(160, "Bit rate of the sound.", low=32, high=512)
    on_name_conflict: str = setting(
        "suffix", "When the outbox has the name already: take name-2, or fail the job.", choices=("suffix", "fail")
    )
    file_mode: str = setting(
        "0664", "Permissions of results.", check=_matches("0?[67][0-7]{2}"), allowed='octal text such as "0664"'
    )
    group: str = setting("", "Group of results; empty leaves it to the file system.")

    @property
    def rate(self) -> Fraction:
        """`fps`, exactly."""
        return parse_fps(self.fps)

    @property
    def mode_bits(self) -> int:
        """`file_mode` as chmod takes it."""
        return int(self.file_mode, 8)


class Speech(Section):
    """How text is spoken."""

    voice: str = setting("en-us", "Voice of jobs that name none.", check=bool, allowed="the name of a voice")
    words_per_minute: int = setting(165, "Pace of the voice.", low=80, high=450)
    command: tuple[str, ...] = setting(
        (),
        "A program with its arguments that speaks in place of espeak-ng: text on stdin, WAV on stdout.",
        check=lambda words: not words or Path(words[0]).is_absolute(),
        allowed="a list of texts, the first one an absolute path",
    )
    voices: Path = setting(
        UNSET, "Folder of Piper's voices, each NAME.onnx with NAME.onnx.json; empty means storage/voices."
    )
    timeout_s: float = setting(
        60.0, "Longest speaking of one text; with a voice of Piper, of one of its sentences.", low=1
    )


class Fetch(Section):
    """How addresses in manifests are fetched."""

    allow: tuple[str, ...] = setting(
        (),
        "Hosts and networks that may be fetched from although they are not public.",
        check=hosts.are_valid,
        allowed=hosts.ALLOWED,
    )
    max_mb: int = setting(256, "Largest file.", low=1)
    timeout_s: float = setting(60.0, "Longest fetch.", low=1)
    parallel: int = setting(4, "Fetches at a time; jobs of one key have at most half of them.", low=1, high=32)
    min_kb_s: float = setting(8.0, "A fetch that is slower than this, in kB a second over 15 s, fails.", low=0)


class Archive(Section):
    """What happens to a job's inputs afterwards."""

    mode: str = setting("move", "What happens to the inputs of a finished job.", choices=("move", "delete"))


class Retention(Section):
    """How long and how much is kept; 0 means without limit. The oldest goes first."""

    outbox_days: float = setting(0.0, "Finished videos stay in the outbox this long.", low=0)
    outbox_gb: float = setting(0.0, "The same by size: beyond it, the oldest go.", low=0)
    archive_days: float = setting(30.0, "Inputs of finished and cancelled jobs stay in the archive this long.", low=0)
    archive_gb: float = setting(0.0, "The same by size.", low=0)
    failed_days: float = setting(0.0, "Inputs of failed jobs stay this long, and can be retried as long.", low=0)
    failed_gb: float = setting(0.0, "The same by size.", low=0)
    results_h: float = setting(
        24.0, "A finished video stays this long for REST and `republish`, whatever happens to it in the outbox.", low=0
    )
    results_gb: float = setting(0.0, "The same by size.", low=0)
    uploads_h: float = setting(48.0, "Uploads stay this long, and as long as an open job needs them.", low=0)
    uploads_gb: float = setting(
        10.0, "The same by size, also for those that persist; each key has an equal part of it.", low=0
    )
    ledger_days: float = setting(90.0, "Ended jobs stay in the ledger this long.", low=0)
    ledger_rows: int = setting(100_000, "At most this many ended jobs stay in the ledger.", low=0)
    below_floor: str = setting(
        "early",
        "When a disk falls below paths.min_free_mb: remove only what is due, or, early, also what has a limit above.",
        choices=("early", "due"),
    )
    night: str = setting(
        "03:30",
        "Local time of the nightly pruning and backup.",
        check=_matches("([01][0-9]|2[0-3]):[0-5][0-9]"),
        allowed="a time as HH:MM",
    )
    backups: int = setting(7, "This many nightly copies of the ledger stay; 0 means that none is made.", low=0)


class Weights(Section):
    """Where the model weights are, and which ones."""

    dir: Path = setting(UNSET, "Folder of the weights; empty means storage/models.", variable="MODELS_DIR")
    auto_pull: bool = setting(True, "Pull missing weights at the first job that needs them.")
    lock: Path = setting(UNSET, "Lock list for weights of your own; empty means the one of the package.")


class Web(Section):
    """The REST service. The limits of what it fetches for its clients are in [fetch]."""

    enabled: bool = setting(True, "Serve REST.")
    page: bool = setting(True, "Serve a page for browsers at the address /.")
    host: str = setting("127.0.0.1", "Address to listen on.", check=bool, allowed="an address", variable="HOST")
    port: int = setting(8003, "Port to listen on; 0 means any that is free.", low=0, high=65535, variable="PORT")
    max_queue: int = setting(10, "Refuse new jobs over REST while this many wait.", low=1, variable="MAX_QUEUE_SIZE")
    allow_anonymous: bool = setting(False, "Listen on other addresses than loopback although no key is configured.")
    api_key_file: Path = setting(
        UNSET,
        "File with one key on each line, user:password or one word, with admin behind it for one that has all jobs.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Names by which browsers may reach this server, and every client while it has no key."
    )
    cors_origins: tuple[str, ...] = setting((), "Origins whose pages may use this server, such as https://example.com.")
    outbox_folder: str = setting(
        "",
        "Folder of the outbox for the results of jobs over REST, with a name that no queue has; empty: the outbox.",
        check=lambda name: name == "" or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is not None,
        allowed="1 to 64 letters, digits, _ and -",
    )
    public_url: str = setting("", "Address that clients reach this server by; empty means the one of their request.")
    max_connections: int = setting(512, "Connections at a time; beyond it, the longest idle one is closed.", low=16)
    max_upload_mb: int = setting(100, "Largest uploaded file.", low=1)
    upload_timeout_s: float = setting(300.0, "Longest upload.", low=1)
    min_kb_s: float = setting(8.0, "An upload that is slower than this, in kB a second over 10 s, is ended.", low=0)
    webhook_allow: tuple[str, ...] = setting(
        (),
        "Hosts and networks that webhooks may go to although they are not public, over http too.",
        check=hosts.are_valid,
        allowed=hosts.ALLOWED,
    )
    webhook_secret_file: Path = setting(
        UNSET, "File of the keys that sign webhooks, one on each line; empty means one that lipsyncd makes in state."
    )


class Log(Section):
    """What the daemon logs, to standard error."""

    level: str = setting(
        "info", "The least urgent lines that are logged.", choices=("debug", "info", "warning", "error")
    )
    format: str = setting(
        "auto",
        "Form of each line; auto means priorities for the journal, and text elsewhere.",
        choices=("auto", "text", "json"),
    )


class Queue(Section):
    """A folder in the inbox with a preset of its own, for what the jobs that are dropped there leave open.

    The name is that of the folder, in the inbox and in the outbox. The inbox itself is the queue without a name.
    """

    name: str
    priority: int
    renderer: str
    stitch: bool
    resolution: int
    fps: str
    motion: str
    av_offset_ms: int

    @property
    def rate(self) -> Fraction:
        """`fps`, exactly."""
        return parse_fps(self.fps)

    @property
    def of_a_job(self) -> dict[str, Any]:
        """The fields of a `JobSpec` that a queue decides where its job leaves them open."""
        names = ("priority", "renderer", "stitch", "resolution", "motion", "av_offset_ms")
        return {"queue": self.name, "fps": self.rate, **{name: getattr(self, name) for name in names}}


class Settings(Section):
    """Every section, all values checked and all folders absolute.

    queues   the folders in the inbox that take drops
    file     the settings file that was used
    origins  "render.renderer" -> "default", the file's path, or "environment RENDERER"
    notes    what the daemon logs about them when it starts, one line each
    """

    paths: Paths = field(default_factory=Paths)
    watch: Watch = field(default_factory=Watch)
    intake: Intake = field(default_factory=Intake)
    render: Render = field(default_factory=Render)
    output: Output = field(default_factory=Output)
    speech: Speech = field(default_factory=Speech)
    fetch: Fetch = field(default_factory=Fetch)
    archive: Archive = field(default_factory=Archive)
    retention: Retention = field(default_factory=Retention)
    weights: Weights = field(default_factory=Weights)
    web: Web = field(default_factory=Web)
    log: Log = field(default_factory=Log)
    executor: Executor = field(default_factory=Executor)
    executor_split: Split = field(default_factory=Split)
    executor_ray: Ray = field(default_factory=Ray)
    roots: Roots = field(default_factory=Roots)
    queues: tuple[Queue, ...] = ()
    file: Path | None = field(default=None, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        folder = self.paths.storage / "models" if self.weights.dir == UNSET else self.weights.dir
        lock = LOCK_LIST if self.weights.lock == UNSET else self.weights.lock
        voices = self.paths.storage / "voices" if self.speech.voices == UNSET else self.speech.voices
        object.__setattr__(self, "speech", replace(self.speech, voices=voices))
        object.__setattr__(self, "weights", replace(self.weights, dir=folder, lock=lock))

    def queue(self, name: str = "") -> Queue:
        """The preset of a queue; the sections' own values for the inbox itself. Raises KeyError."""
        if name:
            return {queue.name: queue for queue in self.queues}[name]
        output = self.output
        own = (output.stitch, output.resolution, output.fps, output.motion, output.av_offset_ms)
        return Queue("", 0, self.render.renderer, *own)
