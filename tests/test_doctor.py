"""`lipsyncd doctor`: a healthy installation is told so on one screen, and each fault, really made, with its remedy."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lipsyncd import ffmpeg, gpu
from lipsyncd.doctor import CHECKS, Finding, Verdict, examine, places
from lipsyncd.doctor.findings import Installation, run_checks
from lipsyncd.errors import ConfigError, WeightsMissing
from lipsyncd.files import read_json, write_json
from lipsyncd.ledger import Ledger
from lipsyncd.settings import load
from tests.core_kit import NOBODY, as_nobody, queued
from tests.home import Home
from tests.hub_kit import noise, weight, write_lock
from tests.hub_kit import put as put_weight
from tests.web_kit import port_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask what another user may do, and mount")
EYES = noise(100_000)
ENTRY = weight("eyes", EYES)


def seen(home: Home, name: str, *, full: bool = False) -> Finding:
    """What one check finds, guarded as all are."""
    installation = Installation(home.settings, full=full)
    return run_checks({name: CHECKS[name]}, installation)[name]


def fault(home: Home, name: str, *words: str, verdict: Verdict = Verdict.FAULT, full: bool = False) -> Finding:
    """As `seen`, which has to be bad, to say these words and to know a remedy."""
    found = seen(home, name, full=full)
    assert found.verdict is verdict, found
    assert all(word in f"{found.seen}\n{found.remedy}" for word in words), found
    assert found.remedy or verdict is Verdict.NOTE
    return found


@pytest.fixture
def made(home: Home) -> Home:
    """An installation whose folders are made, and no daemon."""
    home.folders.initialise()
    return home


# -- all is well -------------------------------------------------------------------------------------------------------


def test_a_healthy_installation_is_well_on_one_screen(home: Home) -> None:
    home.changes["web"] = {"enabled": True}
    with home.running():
        home.drop_pair("anna")
        home.until_done("anna")
        port = port_of(home)
        started_s = time.monotonic()
        done = home.cli("doctor")
        took_s = time.monotonic() - started_s
        told = json.loads(home.cli("doctor", "--json").stdout)
        shown = screen(home)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    *lines, summary = done.stdout.splitlines()
    assert len(lines) < 24
    assert summary.startswith("lipsyncd 0.") and ": all is well (" in summary
    assert not re.search(r"^(warning|fault)", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert re.search(r"^ok +encoders +libx264 and aac made a frame", done.stdout, re.MULTILINE)
    assert re.search(rf"^ok +daemon +lipsyncd run, pid {home_pid(told)}, version", done.stdout, re.MULTILINE)
    assert f"127.0.0.1:{port} is the daemon's, which is ready" in done.stdout
    assert "1 done" in done.stdout
    assert took_s < 30  # three seconds on an idle machine

    assert told["verdict"] == "note"
    assert [check["name"] for check in told["checks"]] == ["settings", *CHECKS]
    assert {check["verdict"] for check in told["checks"]} <= {"ok", "note"}

    assert "\x1b[32mok" in shown  # colour on a terminal
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 100


def home_pid(told: dict[str, Any]) -> str:
    [daemon] = [check["seen"] for check in told["checks"] if check["name"] == "daemon"]
    return re.search(r"pid (\d+)", daemon)[1]  # type: ignore[index]


def screen(home: Home) -> str:
    """What the command writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lipsyncd", "--config", str(home.config), "doctor"]
    with subprocess.Popen(command, stdout=theirs, env=home.environment(COLUMNS="100", TERM="xterm")) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # the last writer has gone
                break
            if not block:
                break
            shown += block
        assert process.wait(60) == 0
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_before_the_first_start_there_is_nothing_wrong(home: Home) -> None:
    report = examine(home.settings)
    assert report.verdict is Verdict.NOTE, report
    assert list(report.findings) == ["settings", *CHECKS]
    assert "not made yet" in report.findings["inbox"].seen
    assert "lipsyncd init" in report.findings["inbox"].remedy
    assert not home.path("state").exists()  # looking makes nothing


# -- the command and its checks ----------------------------------------------------------------------------------------


def test_wrong_settings_are_a_fault_and_the_machine_is_looked_at_all_the_same(home: Home) -> None:
    home.changes["output"] = {"fps": 0}
    done = home.cli("doctor", "--json")
    told = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 2
    assert told["settings"]["verdict"] == "fault"
    assert "output.fps" in told["settings"]["seen"]
    assert "allowed" in told["settings"]["remedy"]
    assert told["encoders"]["verdict"] == told["jail"]["verdict"] == "ok"
    assert "inbox" not in told


def test_settings_without_any_home_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", _no_home)
    with pytest.raises(ConfigError) as caught:
        load(environ={})
    report = examine(caught.value)
    assert list(report.findings) == ["settings", "the rest"]
    assert report.verdict is Verdict.FAULT


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("change", "status"),
    [({}, 0), ({"render": {"ffmpeg": "/nowhere/ffmpeg"}}, 2), ({"web": {"enabled": True, "port": 80_03}}, 0)],
    ids=["notes", "fault", "port"],
)
def test_the_exit_status_is_that_of_the_worst_finding(home: Home, change: dict[str, Any], status: int) -> None:
    home.changes.update(change)
    if status == 0 and "web" in change:
        home.changes["web"]["port"] = free_port()
    assert examine(home.settings).verdict.exit_status == status


def test_warnings_end_with_1() -> None:
    assert [verdict.exit_status for verdict in Verdict] == [0, 0, 1, 2]


def test_a_check_that_hangs_is_a_fault_and_holds_up_no_other(made: Home) -> None:
    never = threading.Event()

    def hanging(_: Installation) -> Finding:
        never.wait()
        raise AssertionError

    checks = {"hanging": hanging, "clock": CHECKS["clock"]}
    found = run_checks(checks, Installation(made.settings), limit_s=1.0)
    never.set()
    assert found["hanging"].verdict is Verdict.FAULT
    assert "no answer within 1 s" in found["hanging"].seen
    assert found["clock"].verdict is Verdict.OK


def test_a_check_that_fails_itself_says_so(made: Home) -> None:
    def faulty(_: Installation) -> Finding:
        raise ZeroDivisionError("once\nmore")

    found = run_checks({"faulty": faulty}, Installation(made.settings))["faulty"]
    assert (found.verdict, found.seen) == (Verdict.FAULT, "ZeroDivisionError: once")
    assert "report it" in found.remedy


# -- the machine -------------------------------------------------------------------------------------------------------


def test_an_ffmpeg_that_is_not_there_is_named_with_its_setting(home: Home) -> None:
    home.changes["render"] = {"ffmpeg": "/nowhere/ffmpeg"}
    fault(home, "ffmpeg", "/nowhere/ffmpeg", "render.ffmpeg")
    fault(home, "encoders", "/nowhere/ffmpeg", "render.ffmpeg")


def program(home: Home, text: str) -> None:
    """Make an ffmpeg of our own out of the real one."""
    real = shlex(str(ffmpeg.find("")))
    path = home.root / "ffmpeg"
    path.write_text(f"#!/bin/sh\nreal={real}\n{text}\n")
    path.chmod(0o755)
    home.changes["render"] = {"ffmpeg": str(path)}


def shlex(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_an_old_ffmpeg_is_a_warning(home: Home) -> None:
    program(
        home, 'case "$*" in *-version*) echo "ffmpeg version 5.1.9-0+deb12u1 Copyright";; *) exec "$real" "$@";; esac'
    )
    fault(home, "ffmpeg", "5.1.9-0+deb12u1", "older than 8.1.3", "imageio-ffmpeg", verdict=Verdict.WARNING)


def test_an_ffmpeg_of_no_release_is_a_note(home: Home) -> None:
    program(home, 'case "$*" in *-version*) echo "ffmpeg version N-12-gabc Copyright";; *) exec "$real" "$@";; esac')
    assert seen(home, "ffmpeg").verdict is Verdict.NOTE


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("8.1.3", False), ("8.1.2", True), ("8.1", True), ("9.0", False), ("n9.0.2-17-g2a571b6068-20260930", False),
        ("7.1.5-0+deb13u1", True), ("10.0", False), ("N-121000-g1234567", None), ("git-2026", None),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, old: bool | None) -> None:
    assert ffmpeg.below_floor(version) is old


def test_encoders_that_are_listed_and_do_not_encode_are_a_fault(home: Home) -> None:
    program(home, 'case "$*" in *-encoders*|*-version*) exec "$real" "$@";; *) echo "no such luck" >&2; exit 3;; esac')
    assert seen(home, "ffmpeg").verdict is Verdict.OK
    fault(home, "encoders")


def test_the_gpus_encoder_is_tried_and_not_believed() -> None:
    """Without a GPU its reason comes from the real ffmpeg, which lists the encoder all the same."""
    if gpu.look("auto") is None:
        assert ffmpeg.nvenc_fault(ffmpeg.find(""))
    assert "No such file" in ffmpeg.nvenc_fault(Path("/nowhere/ffmpeg"))


def test_a_clock_that_went_back_is_told(made: Home) -> None:
    ledger = Ledger(made.path("state") / "ledger.db")
    queued(ledger)
    ledger.close()
    assert seen(made, "clock").verdict is Verdict.OK
    with closing(sqlite3.connect(made.path("state") / "ledger.db", isolation_level=None)) as file:
        file.execute("UPDATE job_event SET at_ms = at_ms + 7200000")
    fault(made, "clock", "s behind the ledger's newest event", "timedatectl", verdict=Verdict.WARNING)


# -- renders -----------------------------------------------------------------------------------------------------------


def test_a_renderer_that_is_not_installed_or_not_known_is_a_fault(home: Home) -> None:
    home.changes["render"] = {"renderer": "mine", "renderers": ["mine=no_such_package.module:Mine"]}
    fault(home, "renderer", "mine needs no_such_package", "render.renderer")
    home.changes["render"] = {"renderer": "nosuch"}
    fault(home, "renderer", "no renderer is called 'nosuch'")


@pytest.fixture
def weighed(made: Home) -> Home:
    """MuseTalk with a lock list of one small file, which is there and proved."""
    lock = write_lock(made.root / "lock.json", [ENTRY])
    made.changes["render"] = {"renderer": "musetalk"}
    made.changes["weights"] = {"lock": str(lock), "auto_pull": False}
    put_weight(made.root / "given", ENTRY, EYES)
    assert made.cli("models", "pull", "--from", made.root / "given").returncode == 0
    assert seen(made, "weights", full=True).verdict is Verdict.OK
    return made


def the_weight(home: Home) -> Path:
    return home.path("models") / ENTRY.used_file


def test_weights_that_are_there_and_verified_are_well(weighed: Home) -> None:
    found = seen(weighed, "weights")
    assert found.verdict is Verdict.OK
    assert "1 files, 100.0 kB, verified" in found.seen


def test_missing_weights_are_a_fault_unless_the_first_job_pulls_them(
    weighed: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_weight(weighed).unlink()
    fault(weighed, "weights", "missing eyes", "weights.auto_pull is off", WeightsMissing.default_remedy)
    weighed.changes["weights"]["auto_pull"] = True
    fault(weighed, "weights", "missing eyes", "the first job pulls them", verdict=Verdict.NOTE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fault(weighed, "weights", "missing eyes", "HF_HUB_OFFLINE")


def test_a_truncated_weight_is_seen_by_its_size(weighed: Home) -> None:
    with the_weight(weighed).open("r+b") as file:
        file.truncate(60_000)
    fault(weighed, "weights", "eyes has 60000 bytes of 100000", "models pull")


def test_a_weight_of_the_right_size_is_noted_until_it_is_hashed(weighed: Home) -> None:
    the_weight(weighed).write_bytes(EYES[::-1])
    fault(weighed, "weights", "not hashed yet: eyes", verdict=Verdict.NOTE)
    fault(weighed, "weights", "another hash", "models pull", full=True)
    assert the_weight(weighed).exists()  # `models verify` sets it aside, a look does not


@pytest.mark.skipif(gpu.look("auto") is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("devices", [["auto"], ["cuda:0"], ["cpu", "cuda:0"]])
def test_a_gpu_that_is_asked_for_and_absent_is_a_fault(home: Home, devices: list[str]) -> None:
    home.changes["render"] = {"renderer": "musetalk", "devices": devices}
    fault(home, "device", "no such GPU", "nvidia-smi", 'render.devices = ["cpu"]')


def test_a_renderer_that_needs_no_gpu_asks_for_none(home: Home) -> None:
    home.changes["render"] = {"renderer": "preview", "devices": ["auto"]}
    assert seen(home, "device").verdict is Verdict.OK
    home.changes["render"] = {"renderer": "musetalk", "devices": ["cpu"]}
    assert seen(home, "device").verdict is Verdict.NOTE


class Nvml:
    """NVIDIA's library as it answers for one H200 with driver 570, at the calls that `gpu` makes."""

    def __init__(self, used_gb: int) -> None:
        self.used_gb = used_gb

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        return 0 if index.value == 0 else 2

    def nvmlDeviceGetMemoryInfo(self, _: Any, info: Any) -> int:
        info._obj.total, info._obj.used = 150_000_000_000, self.used_gb * 1_000_000_000
        return 0

    def nvmlDeviceGetName(self, _: Any, name: Any, size: Any) -> int:
        name.value = b"NVIDIA H200"
        return 0

    def nvmlSystemGetDriverVersion(self, version: Any, size: Any) -> int:
        version.value = b"570.86.15"
        return 0


def test_a_gpu_is_told_with_driver_and_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_library", lambda: Nvml(used_gb=30))
    home.changes["render"] = {"renderer": "preview", "devices": ["cuda:0"]}
    assert seen(home, "device").seen == "cuda:0: NVIDIA H200, driver 570.86.15, 120.0 of 150.0 GB free"
    home.changes["render"]["devices"] = ["cuda:0", "cuda:1"]
    fault(home, "device", "cuda:1: no such GPU")
    home.changes["render"] = {"renderer": "musetalk", "devices": ["auto"]}
    found = seen(home, "device")
    cpu_build = _torch_version().endswith("+cpu")
    assert found.verdict is (Verdict.FAULT if cpu_build else Verdict.OK)
    assert ("is a build without CUDA" in found.seen) is cpu_build


def _torch_version() -> str:
    from importlib.metadata import version

    return version("torch")


def test_a_voice_that_is_no_program_is_a_fault(home: Home) -> None:
    home.changes["speech"] = {"command": ["/nowhere/piper"]}
    fault(home, "speech", "/nowhere/piper", "speech.command")
    home.changes["speech"] = {"command": ["/bin/cat"]}
    assert seen(home, "speech").verdict is Verdict.OK


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inbox", "outbox", "failed", "archive"])
def test_a_folder_without_its_marker_is_not_mounted(made: Home, kind: str) -> None:
    (made.path(kind) / ".lipsyncd" / f"{kind}-id").unlink()
    fault(made, kind, f"has not the marker of our {kind}", f"mount the {kind}", "lipsyncd init --adopt")
    shutil.rmtree(made.path(kind))
    fault(made, kind, "is not there", f"mount the {kind}")


def test_a_state_folder_that_is_a_file_is_told(home: Home) -> None:
    home.root.joinpath("storage").mkdir()
    home.path("state").write_text("")
    fault(home, "state", "is no folder")


@as_root
def test_a_folder_that_is_closed_to_the_daemons_user_is_told_to_root(made: Home) -> None:
    """Root itself may write everywhere, so the daemon's user is asked for."""
    for folder in (made.root, *made.root.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o111)
    for kind in ("state", "inbox", "outbox", "spool"):
        os.chown(made.path(kind), NOBODY, NOBODY)
    assert seen(made, "inbox").verdict is Verdict.OK
    made.path("outbox").chmod(0o500)
    fault(made, "outbox", "is closed to user")
    assert "sudo -u" in examine(made.settings).findings["settings"].remedy


def test_whoever_may_not_look_into_the_state_folder_is_told_who_may(made: Home) -> None:
    made.path("state").chmod(0o700)
    made.path("outbox").chmod(0o755)
    settings = made.settings
    found = as_nobody(lambda: examine(settings).findings, made.root / "storage", made.root)
    if os.geteuid() != 0:
        return
    for name in ("inbox", "outbox", "ledger", "daemon", "jobs"):
        assert found[name].verdict is Verdict.WARNING, (name, found[name])
        assert "you may not look there" in found[name].seen
        assert "lipsyncd doctor` sees more" in found[name].remedy
    assert found["clock"].verdict is found["ffmpeg"].verdict is Verdict.OK


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[None]:
    """A real file system of that size on `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k,mode=0777", "lipsyncd-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine does not let root mount: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@as_root
def test_a_disk_that_fills_is_a_warning_and_a_full_one_a_fault(home: Home) -> None:
    home.path("outbox").mkdir(parents=True)
    with small_disk(home.path("outbox"), 4000):
        home.folders.initialise()
        found = fault(home, "outbox", "tmpfs", "at 1 MB jobs begin to wait", verdict=Verdict.WARNING)
        assert "4.1 MB free" in found.seen
        (home.path("outbox") / "large").write_bytes(bytes(3_500_000))
        fault(home, "outbox", "less than 1 MB, so jobs wait", "paths.min_free_mb")


def test_a_network_folder_is_polled_and_may_not_hold_the_ledger(made: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsyncd.watch.file_system_type", lambda folder: "nfs4")
    assert "polling every 2 s: nfs4 tells nothing" in seen(made, "watch").seen
    fault(made, "state", "lies on nfs4", "local disk")
    fault(made, "spool", "lies on nfs4", "local disk")


def test_events_are_promised_only_where_the_kernel_gives_them(made: Home) -> None:
    assert "events (" in seen(made, "watch").seen
    assert places._inotify_fault(Path("/nowhere")) == "No such file or directory"
    assert _with_no_descriptor_left(lambda: places._inotify_fault(made.path("inbox"))) == "all instances are taken"


def _with_no_descriptor_left(work: Any) -> str:
    """What `work` gives in a process that may open nothing more."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer:
        return answer.read()


# -- the service -------------------------------------------------------------------------------------------------------


def test_a_ledger_of_a_newer_program_and_a_damaged_one_are_faults(made: Home) -> None:
    path = made.path("state") / "ledger.db"
    ledger = Ledger(path)
    for number in range(50):
        queued(ledger, f"job {number}")
    ledger.close()
    assert seen(made, "ledger", full=True).verdict in (Verdict.OK, Verdict.NOTE)
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA user_version=99")
    fault(made, "ledger", "schema 99", "newer lipsyncd")
    with path.open("r+b") as raw:
        raw.seek(8192)
        raw.write(os.urandom(16_384))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA user_version=1")
    fault(made, "ledger", "spool", full=True)


def test_jobs_that_wait_are_told_with_their_reason_and_its_remedy(made: Home) -> None:
    ledger = Ledger(made.path("state") / "ledger.db")
    ledger.set_blocked(queued(ledger), WeightsMissing("weights are missing: unet").reason(), delay_ms=1)
    queued(ledger, "bert")
    ledger.close()
    found = fault(made, "jobs", "2 queued; 1 wait: weights-missing: weights are missing", verdict=Verdict.WARNING)
    assert found.remedy == WeightsMissing.default_remedy


def test_a_backup_is_told_with_its_age(made: Home) -> None:
    Ledger(made.path("state") / "ledger.db").close()
    assert seen(made, "backup").verdict is Verdict.NOTE
    assert made.cli("backup").returncode == 0
    assert "0 h old, 1 kept" in seen(made, "backup").seen
    [copy] = (made.path("state") / "backups").glob("*.db")
    os.utime(copy, (time.time() - 3 * 86_400,) * 2)
    fault(made, "backup", "72 h old", verdict=Verdict.WARNING)


def test_a_daemon_is_told_with_its_pid_and_one_that_hangs_is_a_fault(home: Home) -> None:
    home.changes["web"] = {"enabled": True}
    daemon = home.start()
    port = port_of(home)
    assert f"lipsyncd run, pid {daemon.pid}, version" in seen(home, "daemon").seen
    daemon.send_signal(signal.SIGSTOP)
    status = home.path("state") / "status.json"
    said = read_json(status)
    assert said is not None
    fault(home, "web", f"127.0.0.1:{port}", "does not answer", "restart it")
    write_json(status, {**said, "at_ms": said["at_ms"] - 60_000})
    fault(home, "daemon", f"pid {daemon.pid}", "silent for", "restart it")
    write_json(status, {**said, "version": "0.0.1", "at_ms": time.time() * 1000})
    fault(home, "daemon", "version 0.0.1; installed is", verdict=Verdict.WARNING)
    daemon.send_signal(signal.SIGCONT)
    home.stop()
    assert seen(home, "daemon").seen == "none runs"


def test_a_daemon_that_is_not_ready_says_why_at_its_port(home: Home) -> None:
    home.changes["web"] = {"enabled": True}
    with home.running():
        port_of(home)
        (home.path("outbox") / ".lipsyncd" / "outbox-id").unlink()
        home.until(lambda: seen(home, "web").verdict is Verdict.WARNING, "the daemon's own word")
        fault(home, "web", "is not ready: outbox: ", verdict=Verdict.WARNING)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as trial:
        return int(trial.getsockname()[1])


def test_a_port_that_another_program_has_is_a_fault(home: Home) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        home.changes["web"] = {"enabled": True, "port": port}
        fault(home, "web", f"127.0.0.1:{port} is taken", "web.port")
    assert seen(home, "web").verdict is Verdict.OK
    home.changes["web"]["host"] = "192.0.2.7"  # nobody's
    fault(home, "web", "cannot be had", "web.host")


def test_a_server_without_a_key_is_fine_at_home_and_nowhere_else(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.changes["web"] = {"enabled": True}
    assert "only this machine" in seen(home, "key").seen
    home.changes["web"]["host"] = "0.0.0.0"
    fault(home, "key", "no key is configured", "web.api_key_file")
    home.changes["web"]["allow_anonymous"] = True
    fault(home, "key", "anybody", verdict=Verdict.WARNING)
    monkeypatch.setenv("LIPSYNCD_API_KEY", "somebody:secret-word")
    found = seen(home, "key")
    assert (found.verdict, found.seen) == (Verdict.OK, "1 configured")
    monkeypatch.setenv("LIPSYNCD_API_KEY", "short")
    assert "short" not in fault(home, "key", "has 5 characters").seen.replace("5 characters", "")


def test_a_key_that_only_the_daemon_knows_is_found_by_asking_it(home: Home) -> None:
    home.changes["web"] = {"enabled": True}
    with home.running(LIPSYNCD_API_KEY="somebody:secret-word"):
        port_of(home)
        assert seen(home, "key").seen == "the daemon asks for one"
