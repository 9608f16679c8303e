"""This computer: an ffmpeg that encodes, a kernel that can jail it, a clock that is right."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from lipsyncd.doctor.findings import Finding, Installation, Verdict
from lipsyncd.errors import BadResult, ConfigError, EncodeFailed, LedgerError
from lipsyncd.ledger.view import LedgerView
from lipsyncd.media import ffmpeg
from lipsyncd.monitor import gpu
from lipsyncd.sandbox.jail import landlock_abi, run_jailed
from lipsyncd.worker.encoder_process import encode_one_frame, require_encoder

_ENCODE_TIMEOUT_S = 8.0
_FIRST_YEAR, _LAST_YEAR = 2026, 2099  # a clock outside these years is wrong
_AHEAD_S = 120.0
_MIN_VERSION = ".".join(map(str, ffmpeg.MIN_VERSION))
_GET_WRITE_OR_EXECUTE = 66  # prctl; Linux 6.3


def ffmpeg_program(installation: Installation) -> Finding:
    """Which ffmpeg is used, and is it recent enough to have its known vulnerabilities fixed?"""
    path = ffmpeg.find(installation.settings.render.ffmpeg)
    version = ffmpeg.version(path)
    seen = f"{version}, {'from imageio-ffmpeg' if 'imageio_ffmpeg' in path.parts else path}"
    old = ffmpeg.is_outdated(version)
    if old is None:
        return Finding(Verdict.NOTE, f"{seen}; this version cannot be compared with {_MIN_VERSION}")
    if not old:
        return Finding(Verdict.OK, seen)
    return Finding(
        Verdict.WARNING,
        f"{seen} is older than {_MIN_VERSION}, which fixed vulnerabilities in its decoders",
        "install a newer one, or name one with render.ffmpeg, such as that of the package imageio-ffmpeg",
    )


def encoders(installation: Installation) -> Finding:
    """Can the jailed ffmpeg encode one frame and its sound, with a render's own command, and decode them again?"""
    path = ffmpeg.find(installation.settings.render.ffmpeg)
    started_s = time.monotonic()
    try:
        encode_one_frame(path)
    except (EncodeFailed, BadResult) as error:
        return Finding(Verdict.FAULT, error.message, EncodeFailed.default_remedy)
    seen = f"libx264 and aac encoded one frame in {time.monotonic() - started_s:.1f} s"
    encoder = installation.settings.output.encoder
    if encoder != ffmpeg.X264:
        try:
            require_encoder(path, encoder)
        except ConfigError as error:
            return Finding(Verdict.FAULT, error.message, error.remedy)
        return Finding(Verdict.OK, f"{seen}, and {encoder} did, too")
    if gpu.find("auto") is None:
        return Finding(Verdict.OK, seen)
    fault = ffmpeg.nvenc_fault(path)
    return Finding(Verdict.OK, f"{seen}; h264_nvenc (not used) {f'fails: {fault}' if fault else 'works, too'}")


def jail(_: Installation) -> Finding:
    """Which protections does a jailed process really have, as the kernel reports them?"""
    done = run_jailed(["/bin/cat", "/proc/self/status"], readable=[Path("/proc")], timeout_s=_ENCODE_TIMEOUT_S)
    filtered = re.search(rb"^Seccomp:\s*2$", done.stdout, re.MULTILINE) is not None
    if not done.landlock:
        return Finding(
            Verdict.WARNING,
            "no Landlock: an exploited decoder can reach every file of this user",
            "use kernel 5.13 or newer with `landlock` in lsm=; in a container, allow landlock_* in its seccomp profile",
        )
    if not filtered:
        return Finding(
            Verdict.WARNING,
            "no system call filter: an exploited decoder can open UDP and unix sockets",
            "use a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
        )
    strict = ctypes.CDLL(None).prctl(_GET_WRITE_OR_EXECUTE, *(ctypes.c_ulong(0),) * 4) >= 0
    seen = f"Landlock {landlock_abi()}, seccomp"
    if not strict:
        return Finding(Verdict.NOTE, f"{seen}; memory can be writable and executable; kernel 6.3 forbids it")
    return Finding(Verdict.OK, f"{seen}, no memory that is writable and executable")


def clock(installation: Installation) -> Finding:
    """Is the clock set, and not behind the ledger's newest event?"""
    now = datetime.now(UTC)
    seen = f"{now:%Y-%m-%d %H:%M} UTC, Python {sys.version.split()[0]}"
    remedy = "set the clock (`timedatectl set-ntp true`): signed links, webhooks and retention need it"
    if not _FIRST_YEAR <= now.year <= _LAST_YEAR:
        return Finding(Verdict.FAULT, f"{seen} cannot be right", remedy)
    newest_ms = None
    with contextlib.suppress(PermissionError, LedgerError):  # the check `ledger` reports it
        newest_ms = LedgerView(installation.folders.state / "ledger.db").newest_event_ms()
    ahead_s = 0.0 if newest_ms is None else newest_ms / 1000 - now.timestamp()
    if ahead_s > _AHEAD_S:
        return Finding(Verdict.WARNING, f"{seen} is {ahead_s:.0f} s behind the ledger's newest event", remedy)
    return Finding(Verdict.OK, seen)
