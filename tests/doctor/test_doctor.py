"""`lipsyncd doctor`: the screen of a healthy installation, and real faults of the machine and of renders."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.doctor import CHECKS, Finding, Verdict, examine, rendering
from lipsyncd.doctor.findings import Installation as Examined
from lipsyncd.doctor.findings import run_checks
from lipsyncd.errors import ConfigError, WeightsMissing
from lipsyncd.ledger.ledger import Ledger
from lipsyncd.ledger.live_progress import STATUS_FILE
from lipsyncd.media import ffmpeg
from lipsyncd.monitor import gpu
from lipsyncd.sandbox import landlock
from lipsyncd.settings import load
from lipsyncd.weights import store_of
from lipsyncd.weights.store import hash_file
from tests.kits.core_kit import queued
from tests.kits.doctor_kit import fault, free_port, seen
from tests.kits.hub_kit import noise, weight, write_lock
from tests.kits.hub_kit import put as put_weight
from tests.kits.installation import ROOT, Installation
from tests.kits.media.voice_kit import JOE, put_joe
from tests.kits.web_kit import port_of
from tests.sandbox.test_jail import WITHOUT_LANDLOCK

EYES = noise(100_000)
ENTRY = weight("eyes", EYES)


@pytest.fixture
def made(installation: Installation) -> Installation:
    """An installation with its folders and no daemon."""
    installation.folders.initialise()
    return installation


# -- all is well -------------------------------------------------------------------------------------------------------


@pytest.mark.inotify
def test_a_healthy_installation_fits_on_one_screen(installation: Installation) -> None:
    installation.changes["web"] = {"enabled": True}
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        port = port_of(installation)
        status = installation.path("state") / STATUS_FILE  # written each second, at first before the first scan
        installation.until(lambda: json.loads(status.read_text())["watch"] == "events", "the watch")
        started_s = time.monotonic()
        done = installation.cli("doctor")
        took_s = time.monotonic() - started_s
        report = json.loads(installation.cli("doctor", "--json").stdout)
        shown = screen(installation)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    *lines, summary = done.stdout.splitlines()
    assert len(lines) < 24
    assert summary.startswith("lipsyncd 0.") and ": all is well (" in summary
    assert not re.search(r"^(warning|fault)", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout
    assert re.search(r"^ok +encoders +libx264 and aac encoded one frame", done.stdout, re.MULTILINE)
    assert re.search(rf"^ok +daemon +lipsyncd run, pid {daemon_pid(report)}, version", done.stdout, re.MULTILINE)
    assert f"the daemon on 127.0.0.1:{port} is ready" in done.stdout
    assert "1 done" in done.stdout
    assert took_s < 30  # three seconds on an idle machine

    assert report["verdict"] == "note"
    assert [check["name"] for check in report["checks"]] == ["settings", *CHECKS]
    assert {check["verdict"] for check in report["checks"]} <= {"ok", "note"}

    assert "\x1b[32mok" in shown  # colour on a terminal
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 100


def daemon_pid(report: dict[str, Any]) -> str:
    [daemon] = [check["seen"] for check in report["checks"] if check["name"] == "daemon"]
    return re.search(r"pid (\d+)", daemon)[1]  # type: ignore[index]


def screen(installation: Installation) -> str:
    """The output of the command in a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "doctor"]
    with subprocess.Popen(command, stdout=theirs, env=installation.environment(COLUMNS="100", TERM="xterm")) as process:
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


def test_before_the_first_start_there_is_no_fault(installation: Installation) -> None:
    report = examine(installation.settings)
    assert report.verdict is Verdict.NOTE, report
    assert list(report.findings) == ["settings", *CHECKS]
    assert "does not exist yet" in report.findings["inbox"].seen
    assert "lipsyncd init" in report.findings["inbox"].remedy
    assert not installation.path("state").exists()  # a check creates nothing


# -- the command and its checks ----------------------------------------------------------------------------------------


def test_wrong_settings_are_a_fault_and_the_machine_is_still_checked(installation: Installation) -> None:
    installation.changes["output"] = {"fps": 0}
    done = installation.cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 2
    assert checks["settings"]["verdict"] == "fault"
    assert "output.fps" in checks["settings"]["seen"]
    assert "allowed" in checks["settings"]["remedy"]
    assert checks["encoders"]["verdict"] == checks["jail"]["verdict"] == "ok"
    assert "inbox" not in checks


def test_a_terminal_without_unicode_gets_escapes(installation: Installation) -> None:
    installation.changes["output"] = {"fps": 0}
    done = installation.cli("doctor", PYTHONIOENCODING="latin-1")
    assert done.returncode == 2
    assert "\\u2192 allowed: a rate from 1 to 120" in done.stdout
    assert done.stderr == ""


def test_settings_without_a_home_folder_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_exit_status_is_that_of_the_worst_finding(
    installation: Installation, change: dict[str, Any], status: int
) -> None:
    installation.changes.update(change)
    if status == 0 and "web" in change:
        installation.changes["web"]["port"] = free_port()
    assert examine(installation.settings).verdict.exit_status == status


def test_warnings_end_with_1() -> None:
    assert [verdict.exit_status for verdict in Verdict] == [0, 0, 1, 2]


def test_a_check_that_hangs_is_a_fault_and_delays_no_other(made: Installation) -> None:
    never = threading.Event()

    def hanging(_: Examined) -> Finding:
        never.wait()
        raise AssertionError

    checks = {"hanging": hanging, "clock": CHECKS["clock"]}
    found = run_checks(checks, Examined(made.settings), limit_s=1.0)
    never.set()
    assert found["hanging"].verdict is Verdict.FAULT
    assert "no answer within 1 s" in found["hanging"].seen
    assert found["clock"].verdict is Verdict.OK


def test_a_bug_in_a_check_is_reported_as_one(made: Installation) -> None:
    def faulty(_: Examined) -> Finding:
        raise ZeroDivisionError("once\nmore")

    found = run_checks({"faulty": faulty}, Examined(made.settings))["faulty"]
    assert (found.verdict, found.seen) == (Verdict.FAULT, "ZeroDivisionError: once")
    assert "report it" in found.remedy


# -- the machine -------------------------------------------------------------------------------------------------------


def test_a_missing_ffmpeg_is_named_with_its_setting(installation: Installation) -> None:
    installation.changes["render"] = {"ffmpeg": "/nowhere/ffmpeg"}
    fault(installation, "ffmpeg", "/nowhere/ffmpeg", "render.ffmpeg")
    fault(installation, "encoders", "/nowhere/ffmpeg", "render.ffmpeg")


def program(installation: Installation, text: str) -> None:
    """Configure a script in place of ffmpeg; `$real` is the real one."""
    real = shlex(str(ffmpeg.find("")))
    path = installation.root / "ffmpeg"
    path.write_text(f"#!/bin/sh\nreal={real}\n{text}\n")
    path.chmod(0o755)
    installation.changes["render"] = {"ffmpeg": str(path)}


def shlex(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_an_old_ffmpeg_is_a_warning(installation: Installation) -> None:
    program(
        installation,
        'case "$*" in *-version*) echo "ffmpeg version 5.1.9-0+deb12u1 Copyright";; *) exec "$real" "$@";; esac',
    )
    fault(installation, "ffmpeg", "5.1.9-0+deb12u1", "older than 8.1.3", "imageio-ffmpeg", verdict=Verdict.WARNING)


def test_an_ffmpeg_of_no_release_is_a_note(installation: Installation) -> None:
    program(
        installation, 'case "$*" in *-version*) echo "ffmpeg version N-12-gabc Copyright";; *) exec "$real" "$@";; esac'
    )
    assert seen(installation, "ffmpeg").verdict is Verdict.NOTE


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("8.1.3", False), ("8.1.2", True), ("8.1", True), ("9.0", False), ("n9.0.2-17-g2a571b6068-20260930", False),
        ("7.1.5-0+deb13u1", True), ("10.0", False), ("N-121000-g1234567", None), ("git-2026", None),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, old: bool | None) -> None:
    assert ffmpeg.is_outdated(version) is old


def test_encoders_that_are_listed_and_do_not_encode_are_a_fault(installation: Installation) -> None:
    program(
        installation,
        'case "$*" in *-encoders*|*-version*) exec "$real" "$@";; *) echo "no such luck" >&2; exit 3;; esac',
    )
    assert seen(installation, "ffmpeg").verdict is Verdict.OK
    fault(installation, "encoders")


def test_the_gpus_encoder_is_really_tried() -> None:
    """Without a GPU the real ffmpeg gives the reason, although it lists the encoder."""
    if gpu.find("auto") is None:
        assert ffmpeg.nvenc_fault(ffmpeg.find(""))
    assert "No such file" in ffmpeg.nvenc_fault(Path("/nowhere/ffmpeg"))


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock to switch off")
def test_a_kernel_without_landlock_is_a_warning() -> None:
    code = """
        from lipsyncd.doctor import machine
        found = machine.jail(None)
        print(found.verdict, found.seen, found.remedy, sep="|")
    """
    command = [sys.executable, "-c", WITHOUT_LANDLOCK + textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    verdict, text, remedy = ended.stdout.split("|")
    assert verdict == "warning"
    assert text.startswith("no Landlock")
    assert "landlock" in remedy


def test_a_clock_that_went_back_is_a_warning(made: Installation) -> None:
    ledger = Ledger(made.path("state") / "ledger.db")
    queued(ledger)
    ledger.close()
    assert seen(made, "clock").verdict is Verdict.OK
    with closing(sqlite3.connect(made.path("state") / "ledger.db", isolation_level=None)) as file:
        file.execute("UPDATE job_event SET at_ms = at_ms + 7200000")
    fault(made, "clock", "s behind the ledger's newest event", "timedatectl", verdict=Verdict.WARNING)


# -- renders -----------------------------------------------------------------------------------------------------------


def test_a_renderer_that_is_not_installed_is_a_fault(installation: Installation) -> None:
    installation.changes["render"] = {"renderer": "mine", "renderers": ["mine=no_such_package.module:Mine"]}
    fault(installation, "renderer", "mine needs no_such_package", "render.renderer")


def test_the_extra_for_cuda_is_the_other_one_with_another_onnxruntime() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    plain, cuda = (set(extras[name]) for name in ("musetalk", "musetalk-cuda"))
    assert [re.split("[><=]", item)[0] for item in plain - cuda] == ["onnxruntime"]
    assert [re.split("[><=]", item)[0] for item in cuda - plain] == ["onnxruntime-gpu"]


@pytest.mark.parametrize("renderer", ["preview", "musetalk"])
def test_two_packages_of_one_module_are_named(
    made: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renderer: str
) -> None:
    """Whatever renders: a voice of Piper uses the module, too."""
    made.changes["render"] = {"renderer": renderer}
    before = seen(made, "renderer")
    assert before.verdict is Verdict.OK
    assert ("onnxruntime " in before.seen) is (renderer == "musetalk")
    record = tmp_path / "site" / "onnxruntime_gpu-1.31.1.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    fault(
        made, "renderer", "onnxruntime 1", "and onnxruntime-gpu 1.31.1", "uninstall onnxruntime onnxruntime-gpu, then"
    )


@pytest.fixture
def with_weights(made: Installation) -> Installation:
    """MuseTalk with a lock list of one small file, which is installed and verified."""
    lock = write_lock(made.root / "lock.json", [ENTRY])
    made.changes["render"] = {"renderer": "musetalk"}
    made.changes["weights"] = {"lock": str(lock), "auto_pull": False}
    put_weight(made.root / "given", ENTRY, EYES)
    assert made.cli("models", "pull", "--from", made.root / "given").returncode == 0
    assert seen(made, "weights", full=True).verdict is Verdict.OK
    return made


def the_weight(installation: Installation) -> Path:
    return installation.path("models") / ENTRY.used_file


def test_verified_weights_are_ok(with_weights: Installation) -> None:
    found = seen(with_weights, "weights")
    assert found.verdict is Verdict.OK
    assert "1 files, 100.0 kB, verified" in found.seen


def test_missing_weights_are_a_fault_unless_the_first_job_downloads_them(
    with_weights: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_weight(with_weights).unlink()
    fault(with_weights, "weights", "missing eyes", "weights.auto_pull is off", WeightsMissing.default_remedy)
    with_weights.changes["weights"]["auto_pull"] = True
    fault(with_weights, "weights", "missing eyes", "the first job downloads them", verdict=Verdict.NOTE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fault(with_weights, "weights", "missing eyes", "HF_HUB_OFFLINE")


def test_a_truncated_weight_is_found_by_its_size(with_weights: Installation) -> None:
    with the_weight(with_weights).open("r+b") as file:
        file.truncate(60_000)
    fault(with_weights, "weights", "eyes has 60000 bytes instead of 100000", "models pull")


def test_a_truncated_converted_weight_is_found_by_its_recorded_size(made: Installation) -> None:
    converted = replace(ENTRY, becomes="eyes/eyes.safetensors", dtype="float16")
    made.changes["render"] = {"renderer": "musetalk"}
    made.changes["weights"] = {"lock": str(write_lock(made.root / "lock.json", [converted]))}
    store = store_of(made.settings)
    path = store.path("eyes")
    path.parent.mkdir(parents=True)
    path.write_bytes(EYES)
    store.save_proof(converted, *hash_file(path))
    assert seen(made, "weights").verdict is Verdict.OK
    path.write_bytes(EYES[:70_000])
    fault(made, "weights", "eyes has 70000 bytes instead of 100000")


def test_a_weight_of_the_right_size_is_noted_until_it_is_hashed(with_weights: Installation) -> None:
    the_weight(with_weights).write_bytes(EYES[::-1])
    fault(with_weights, "weights", "not hashed yet: eyes", verdict=Verdict.NOTE)
    fault(with_weights, "weights", "does not have the hash in the lock list", "models pull", full=True)
    assert the_weight(with_weights).exists()  # `models verify` renames it, a check does not


@pytest.mark.skipif(gpu.find("auto") is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("devices", [["auto"], ["cuda:0"], ["cpu", "cuda:0"]])
def test_a_configured_gpu_that_does_not_exist_is_a_fault(installation: Installation, devices: list[str]) -> None:
    installation.changes["render"] = {"renderer": "musetalk", "devices": devices}
    fault(installation, "device", "no such GPU", "nvidia-smi", 'render.devices = ["cpu"]')


def test_a_renderer_that_needs_no_gpu_is_ok_without_one(installation: Installation) -> None:
    installation.changes["render"] = {"renderer": "preview", "devices": ["auto"]}
    assert seen(installation, "device").verdict is Verdict.OK
    installation.changes["render"] = {"renderer": "musetalk", "devices": ["cpu"]}
    assert seen(installation, "device").verdict is Verdict.NOTE


class Nvml:
    """NVIDIA's library for one H200 with driver 570, with the functions that `gpu` calls."""

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


def test_a_gpu_is_shown_with_driver_and_memory(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_library", lambda: Nvml(used_gb=30))
    installation.changes["render"] = {"renderer": "preview", "devices": ["cuda:0"]}
    assert seen(installation, "device").seen == "cuda:0: NVIDIA H200, driver 570.86.15, 120.0 of 150.0 GB free"
    installation.changes["render"]["devices"] = ["cuda:0", "cuda:1"]
    fault(installation, "device", "cuda:1: no such GPU")
    installation.changes["render"] = {"renderer": "musetalk", "devices": ["auto"]}
    found = seen(installation, "device")
    cpu_build = _torch_version().endswith("+cpu")
    assert found.verdict is (Verdict.FAULT if cpu_build else Verdict.OK)
    assert ("is a build without CUDA" in found.seen) is cpu_build


def test_a_gpu_without_a_c_compiler_is_noted(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "_library", lambda: Nvml(used_gb=30))
    monkeypatch.setattr(rendering, "_torch", lambda: "2.13.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    installation.changes["render"] = {"renderer": "musetalk", "devices": ["cuda:0"]}
    found = seen(installation, "device")
    assert found.verdict is Verdict.NOTE and "no C compiler" in found.seen and "gcc" in found.remedy
    installation.changes["render"]["kernels"] = "published"
    assert seen(installation, "device").verdict is Verdict.OK
    installation.changes["render"]["kernels"] = "fused"
    (tmp_path / "gcc").touch(0o755)
    assert seen(installation, "device").verdict is Verdict.OK


def _torch_version() -> str:
    from importlib.metadata import version

    return version("torch")


def test_a_speech_command_that_is_no_program_is_a_fault(installation: Installation) -> None:
    installation.changes["speech"] = {"command": ["/nowhere/piper"]}
    fault(installation, "speech", "/nowhere/piper", "speech.command")
    installation.changes["speech"] = {"command": ["/bin/cat"]}
    assert seen(installation, "speech").verdict is Verdict.OK


def test_a_default_voice_of_piper_is_looked_at_and_its_absence_is_a_fault(installation: Installation) -> None:
    installation.changes["speech"] = {"voice": JOE}
    fault(installation, "speech", f"speech.voice is {JOE}: there is no voice", "lipsyncd voices")
    put_joe(installation.settings.speech.voices)
    found = seen(installation, "speech")
    assert (found.verdict, found.seen) == (
        Verdict.OK,
        f"Piper, voice {JOE}; 1 of Piper in {installation.settings.speech.voices}",
    )
    (installation.settings.speech.voices / f"{JOE}.onnx").unlink()
    fault(installation, "speech", f"{JOE}.onnx is missing", f"put {JOE}.onnx there")
