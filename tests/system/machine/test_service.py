"""`make install` on a bare Debian, and the unit under a real systemd. The tests follow one service to its end."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from lipsyncd.media.mp4 import inspect
from tests.kits import doc_pages
from tests.kits.installation import ROOT, picture, sound
from tests.kits.machine import container_kit
from tests.kits.machine.users_kit import CAP_LEASE
from tests.kits.machine.virtual_machine import Machine, booted
from tests.kits.media.media_kit import converted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a busy machine installs packages for minutes

SETTINGS = "/etc/lipsyncd/lipsyncd.toml"
INSTALL, OPERATE = "docs/install.md", "docs/operate.md"
SUDO = """#!/bin/sh
[ "$1" = -u ] || exec "$@"
user=$2; shift 2; exec runuser --user="$user" -- "$@"
"""


@pytest.fixture(scope="module")
def machine(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with a checkout in /usr/src/lipsyncd and the users alice, later in the service's group, and bob."""
    if reason := container_kit.cannot_run("systemd-nspawn", "nsenter"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machine")
    root = container_kit.copy_root(debian_root, folder / "root")
    container_kit.checkout(root / "usr/src/lipsyncd")
    with booted(root, folder / "boot.log") as machine:
        machine.run("useradd --create-home alice && useradd --create-home bob")
        machine.write("/usr/local/bin/sudo", SUDO, mode=0o755)
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """After `make install` for a machine without a GPU, with a key, a free port, and the test's renderers."""
    output = machine.run(f"cd /usr/src/lipsyncd && {documented('sudo make install EXTRAS=')}").stdout
    for word in (SETTINGS, "cpu-only.conf", "adduser NAME lipsyncd", "systemctl enable --now lipsyncd"):
        assert word in output
    assert "models pull" not in output
    machine.run("USER=alice; " + documented('sudo usermod --append --groups lipsyncd "$USER"'))
    shutil.copy(ROOT / "tests/kits/machine/service_renderers.py", machine.root / "opt/lipsyncd/own")
    text = (machine.root / SETTINGS.lstrip("/")).read_text()
    own = 'renderers = ["slow=service_renderers:Slow", "forbidden=service_renderers:ForbiddenAttempts"]'
    patience = "stall_timeout_s = 600"  # for a busy machine
    text = text.replace("[render]", f"[render]\n{own}\n{patience}").replace("[web]", "[web]\nport = 0")
    machine.write(SETTINGS, text)
    machine.run(documented("sudo systemctl enable --now lipsyncd"))
    return machine


def documented(command: str) -> str:
    """The command; asserts that the documentation has it word for word."""
    assert command in doc_pages.read(INSTALL)
    return command


def give(
    machine: Machine,
    user: str,
    name: str,
    *,
    image: bytes,
    voice: bytes,
    inbox: str = "/srv/lipsyncd/inbox",
    **manifest: Any,
) -> None:
    """Drop a job into the share as a user of the group, with cp and mv as over a mount."""
    home = machine.root / "home" / user
    for file, content in (("face.png", image), ("voice.wav", voice)):
        (home / file).write_bytes(content)
    order = json.dumps({"image": f"{name}.png", "audio": f"{name}.wav", **manifest})
    (home / "order.json").write_text(order)
    steps = [("face.png", "png"), ("voice.wav", "wav"), ("order.json", "json")]
    copies = " && ".join(
        f"cp ~{user}/{file} {inbox}/.{name}.{suffix} && mv {inbox}/.{name}.{suffix} {inbox}/{name}.{suffix}"
        for file, suffix in steps
    )
    machine.run(copies, user=user)


def job(machine: Machine, name: str) -> dict[str, Any]:
    """The newest job of that name in `lipsyncd status` for alice; {} if there is none."""
    status = json.loads(machine.run("lipsyncd status --json", user="alice").stdout)
    found: dict[str, Any] = next((j for j in status["jobs"] if j["name"] == name), {})
    return found


def until_state(machine: Machine, name: str, state: str) -> dict[str, Any]:
    found: dict[str, Any] = machine.until(
        lambda: (j := job(machine, name)).get("state") == state and j, f"job {name}: {state}"
    )
    return found


def status_of(machine: Machine, path: str, key: str = "") -> int:
    """The status of the REST service's answer to a GET from inside."""
    header = f"'Authorization': 'Bearer {key}'" if key else ""
    file = machine.root / "var/lib/lipsyncd/state/status.json"
    machine.until(file.exists, "the daemon's own status")
    port = json.loads(file.read_text())["web_port"]
    program = f"""
from urllib import error, request
asked = request.Request('http://127.0.0.1:{port}{path}', headers={{{header}}})
try:
    print(request.urlopen(asked).status)
except error.HTTPError as refused:
    print(refused.code)
"""
    return int(machine.python(program))


# -- a service that runs -----------------------------------------------------------------------------------------------


def test_the_service_is_ready_and_says_what_it_does(installed: Machine) -> None:
    assert installed.show("ActiveState") == "active"
    assert installed.show("UnitFileState") == "enabled"
    assert installed.show("User") == "lipsyncd"
    assert installed.show("WatchdogUSec") == "30s"
    installed.until(lambda: installed.show("StatusText") == "idle", "the status text")
    assert status_of(installed, "/health/ready") == 200
    assert installed.show("NRestarts") == "0"


def test_the_key_comes_as_a_credential(installed: Machine) -> None:
    assert status_of(installed, "/credits") == 200
    installed.run(doc_pages.commands(INSTALL, "A key for REST"))
    key = (installed.root / "etc/lipsyncd/api-key").read_text().strip()
    assert re.fullmatch(r"anna:\S{24}", key)
    assert '\nhost = "0.0.0.0"' in (installed.root / SETTINGS.lstrip("/")).read_text()
    assert status_of(installed, "/credits") == 401
    assert status_of(installed, "/credits", key=key) == 200
    environment = installed.run(f"cat /proc/{installed.show('MainPID')}/environ").stdout
    assert "HF_HUB_OFFLINE" in environment
    assert key.partition(":")[2] not in environment


def test_a_member_of_the_group_drops_a_job_and_takes_its_video(installed: Machine) -> None:
    """The preview renderer under the unit's restrictions, with inputs of another user and the drop-in for no GPU."""
    installed.run(doc_pages.commands(INSTALL, "Drop-ins for the unit"))
    assert installed.show("PrivateDevices") == "yes"
    face = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(face, "PNG")
    give(installed, "alice", "share", image=face.getvalue(), voice=sound(1.0), renderer="preview")
    installed.until(lambda: job(installed, "share").get("state") in ("done", "failed"), "the job's end", seconds=400)
    assert job(installed, "share")["state"] == "done", job(installed, "share")
    video = "/srv/lipsyncd/outbox/share.mp4"
    installed.run(f"cp {video} ~alice/ && rm {video} /srv/lipsyncd/outbox/share.json", user="alice")
    assert inspect(installed.root / "home/alice/share.mp4").video.frames == 25
    assert set(installed.run("stat --format=%G /srv/lipsyncd/archive/*").stdout.split()) == {"lipsyncd"}
    installed.run("rm /etc/systemd/system/lipsyncd.service.d/cpu-only.conf")
    installed.run("systemctl daemon-reload && systemctl restart lipsyncd")


def test_the_group_submits_and_cancels_under_any_umask_and_other_users_cannot(installed: Machine) -> None:
    home = installed.root / "home/alice"
    (home / "face.png").write_bytes(picture(1))
    (home / "voice.wav").write_bytes(sound(30.0, 1))
    submit = "umask 077; cd; lipsyncd submit ~alice/face.png ~alice/voice.wav --renderer slow --name mine"
    job_id = installed.run(submit, user="alice").stdout.strip()
    until_state(installed, "mine", "running")
    assert "cancelled" in installed.run(f"umask 077; cd; lipsyncd cancel {job_id}", user="alice").stdout
    until_state(installed, "mine", "cancelled")
    refused = installed.run("cd; lipsyncd status", user="bob", check=False)
    assert refused.returncode == 77
    assert "adduser" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert installed.run("cp ~bob/.profile /srv/lipsyncd/inbox/", user="bob", check=False).returncode != 0


def test_the_restrictions_hold_from_inside(installed: Machine) -> None:
    installed.run("install -d -o lipsyncd /usr/local/elsewhere")
    give(installed, "alice", "forbidden", image=picture(2), voice=sound(0.3, 2), renderer="forbidden", resolution=64)
    until_state(installed, "forbidden", "done")
    tried = json.loads((installed.root / "var/lib/lipsyncd/state/attempts.json").read_text())
    allowed = {name for name, outcome in tried.items() if outcome == "done"}
    assert allowed == {"write the state", "write the outbox"}, tried
    assert tried["write elsewhere"] == "Read-only file system"
    assert tried["make a namespace"] == "Operation not permitted"
    assert tried["ask who writes another user's file"] == "Permission denied"


SLOW_MEMBER = """
import sys, time
content = open("/home/alice/slow.mp3", "rb").read()
with open("/srv/lipsyncd/inbox/slow.mp3", "wb", buffering=0) as file:
    for begin in range(0, len(content), len(content) // 6 + 1):
        file.write(content[begin : begin + len(content) // 6 + 1])
        time.sleep(1.5)
"""


def test_a_slow_members_sound_is_waited_for_to_its_end(installed: Machine) -> None:
    """Its pauses are longer than `watch.settle_s`, and this MP3 states no length: only the kernel knows more."""
    status = json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["daemon"]
    assert status["leases"] is True
    rights = installed.run(f"grep ^Cap /proc/{installed.show('MainPID')}/status").stdout.split()
    shown = dict(zip(rights[::2], rights[1::2], strict=True))
    assert shown["CapPrm:"] == shown["CapEff:"] == shown["CapBnd:"] == f"{1 << CAP_LEASE:016x}"
    assert int(shown["CapAmb:"], 16) == 0
    face = io.BytesIO()
    Image.fromarray(skimage.data.astronaut()).save(face, "PNG")
    (installed.root / "home/alice/slow.png").write_bytes(face.getvalue())
    (installed.root / "home/alice/slow.mp3").write_bytes(converted(".mp3", "-write_xing", "0", seconds=12.0))
    installed.run("cp ~alice/slow.png /srv/lipsyncd/inbox/", user="alice")
    installed.run(f"umask 007; python3 -c {shlex.quote(SLOW_MEMBER)}", user="alice")
    installed.until(lambda: job(installed, "slow").get("state") in ("done", "failed"), "the job's end", seconds=400)
    assert job(installed, "slow")["state"] == "done", job(installed, "slow")
    assert inspect(installed.root / "srv/lipsyncd/outbox/slow.mp4").video.frames == pytest.approx(300, abs=3)


def test_in_a_user_namespace_the_daemon_reports_that_its_right_has_no_effect(installed: Machine) -> None:
    """The capability shows there as well; the daemon has tried it."""

    def leases() -> object:
        return json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["daemon"].get("leases")

    drop_in = "/etc/systemd/system/lipsyncd.service.d/namespace.conf"
    installed.write(drop_in, "[Service]\nPrivateUsers=yes\n")
    installed.run("systemctl daemon-reload && systemctl restart lipsyncd")
    installed.until(lambda: leases() is False, "the answer of the kernel")
    rights = installed.run(f"grep ^CapEff /proc/{installed.show('MainPID')}/status").stdout.split()[1]
    assert int(rights, 16) >> CAP_LEASE & 1
    assert "files of other users wait longer" in installed.run("lipsyncd status", user="alice").stdout
    found = installed.run("lipsyncd doctor", check=False).stdout
    assert re.search(r"^warning +writers +the kernel does not tell", found, re.MULTILINE), found
    installed.run(f"rm {drop_in} && systemctl daemon-reload && systemctl restart lipsyncd")
    installed.until(lambda: leases() is True, "the right")


def test_systemctl_reload_reads_the_settings_again(installed: Machine) -> None:
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    installed.write(SETTINGS, text.replace("[render]", "[render]\nstop_grace_s = 20"))
    installed.run("systemctl reload lipsyncd")
    assert "settings read again: 1 taken over" in installed.journal()
    assert "render.stop_grace_s is 20.0 now, was 30.0" in installed.journal()
    installed.until(lambda: installed.show("ActiveState") == "active", "the end of the reload")
    installed.until(lambda: installed.show("StatusText") == "idle", "the status text")
    right = (installed.root / SETTINGS.lstrip("/")).read_text()
    installed.write(SETTINGS, right.replace("stop_grace_s = 20", "stop_grace = 20"))
    assert installed.run("systemctl reload lipsyncd", check=False).returncode != 0
    assert "did you mean render.stop_grace_s?" in installed.journal()
    assert installed.show("ActiveState") == "active"
    installed.write(SETTINGS, right)
    installed.run("systemctl reload lipsyncd")


# -- stops and crashes -------------------------------------------------------------------------------------------------


def test_a_stop_lets_the_job_finish_within_its_grace(installed: Machine) -> None:
    give(installed, "alice", "short", image=picture(3), voice=sound(1.0, 3), renderer="slow", resolution=64)
    found = until_state(installed, "short", "running")
    installed.until(lambda: re.match(rf"rendering job {found['id']} \d+%$", installed.show("StatusText")), "the status")
    installed.run("systemctl stop lipsyncd")
    assert (installed.show("Result"), installed.show("ExecMainStatus")) == ("success", "0")
    assert job(installed, "short")["state"] == "done"
    assert inspect(installed.root / "srv/lipsyncd/outbox/short.mp4").video.frames == 25


def test_a_stop_requeues_a_longer_job_without_an_attempt(installed: Machine) -> None:
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    installed.write(SETTINGS, text.replace("stop_grace_s = 20", "stop_grace_s = 1"))
    installed.run("systemctl start lipsyncd")
    give(installed, "alice", "long", image=picture(4), voice=sound(20.0, 4), renderer="slow", resolution=64)
    until_state(installed, "long", "running")
    installed.run("systemctl stop lipsyncd")
    assert (installed.show("Result"), installed.show("ExecMainStatus")) == ("success", "0")
    found = job(installed, "long")
    assert (found["state"], found["attempt"]) == ("queued", 0)
    assert not list((installed.root / "srv/lipsyncd/outbox").glob("long*"))
    installed.run("systemctl start lipsyncd")
    installed.run(f"cd; lipsyncd cancel {found['id']}", user="alice")
    until_state(installed, "long", "cancelled")


def test_a_member_of_the_group_cannot_act_for_the_daemon(installed: Machine) -> None:
    """With the service stopped, the group can read its state; only its own user can change the ledger."""
    installed.run("systemctl stop lipsyncd")
    found = job(installed, "long")
    refused = installed.run(f"cd; lipsyncd retry {found['id']}", user="alice", check=False)
    assert refused.returncode == 77
    assert "sudo -u lipsyncd lipsyncd" in refused.stderr
    assert "queued" in installed.run(f"lipsyncd retry {found['id']}", user="lipsyncd").stdout
    assert "cancelled" in installed.run(f"lipsyncd cancel {found['id']}", user="lipsyncd").stdout
    installed.run("systemctl start lipsyncd")


def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_started_again(installed: Machine) -> None:
    installed.write("/etc/systemd/system/lipsyncd.service.d/quick.conf", "[Service]\nWatchdogSec=4\nRestartSec=0\n")
    installed.run("systemctl daemon-reload && systemctl restart lipsyncd")
    hung = installed.show("MainPID")
    time.sleep(6.0)  # longer than the watchdog's limit: it gets messages
    assert (installed.show("MainPID"), installed.show("NRestarts")) == (hung, "0")
    installed.run(f"kill -STOP {hung}")
    installed.until(lambda: installed.show("NRestarts") == "1", "the restart")
    installed.until(lambda: installed.show("ActiveState") == "active", "the new daemon")
    assert installed.show("MainPID") != hung
    installed.until(lambda: "Watchdog timeout" in installed.journal(), "systemd's word of it")
    installed.until(lambda: installed.show("StatusText") == "idle", "the status text")


def test_a_daemon_that_dies_is_started_again_and_a_wrong_setting_is_not_tried_twice(installed: Machine) -> None:
    before = int(installed.show("NRestarts"))
    installed.run(f"kill -KILL {installed.show('MainPID')}")
    installed.until(lambda: int(installed.show("NRestarts")) > before, "the restart")
    installed.until(lambda: installed.show("ActiveState") == "active", "the new daemon")
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    installed.write(SETTINGS, text.replace("[render]", "[render]\nstop_grace = 1"))
    installed.run("systemctl restart lipsyncd", check=False)
    installed.until(lambda: installed.show("ActiveState") == "failed", "the end")
    assert installed.show("ExecMainStatus") == "78"
    assert "did you mean render.stop_grace_s?" in installed.journal()
    installed.write(SETTINGS, text)
    installed.run("rm /etc/systemd/system/lipsyncd.service.d/quick.conf")
    installed.run("systemctl daemon-reload && systemctl reset-failed lipsyncd && systemctl start lipsyncd")


def test_without_a_key_the_service_starts_on_this_machine_alone(installed: Machine) -> None:
    (installed.root / "etc/lipsyncd/api-key").unlink()
    installed.run("systemctl restart lipsyncd", check=False)
    installed.until(lambda: installed.show("ActiveState") == "failed", "the refusal")
    assert "no key is configured" in installed.journal()
    installed.run(f"sed -i 's/^host = /# host = /' {SETTINGS}")
    installed.run("systemctl reset-failed lipsyncd && systemctl start lipsyncd")
    assert status_of(installed, "/credits") == 200


# -- other folders -----------------------------------------------------------------------------------------------------


def test_a_share_is_configured_unmounted_and_mounted_again(installed: Machine) -> None:
    """The documented commands, with a bind mount in place of a network mount."""
    share = doc_pages.commands(INSTALL, "Use folders on a network share").replace(
        "nas:/talking /mnt/share nfs hard,noatime,_netdev", "/nas /mnt/share none bind"
    )
    assert "/nas " in share
    installed.run(f"mkdir /nas && {share}")
    assert "/mnt/share" in installed.show("RequiresMountsFor").split()
    order = {"image": picture(5), "voice": sound(0.3, 5), "renderer": "slow", "resolution": 64}
    give(installed, "alice", "there", inbox="/mnt/share/inbox", **order)
    until_state(installed, "there", "done")
    assert (installed.root / "nas/outbox/there.mp4").exists()
    installed.run("umount --lazy /mnt/share")  # the daemon holds its lock in the inbox
    installed.until(
        lambda: "not ready: inbox: /mnt/share/inbox is not mounted" in installed.show("StatusText"), "the status text"
    )
    installed.run("mount /mnt/share")
    give(installed, "alice", "again", inbox="/mnt/share/inbox", **order)
    until_state(installed, "again", "done")
    assert installed.show("NRestarts") == "0"


def test_the_state_moves_to_another_disk(installed: Machine) -> None:
    before = json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["jobs"]
    installed.run(doc_pages.commands(OPERATE, "Move to another disk or machine"))
    shutil.rmtree(installed.root / "var/lib/lipsyncd/state")
    order = {"image": picture(6), "voice": sound(0.3, 6), "renderer": "slow", "resolution": 64}
    give(installed, "alice", "moved", inbox="/mnt/share/inbox", **order)
    until_state(installed, "moved", "done")
    after = json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["jobs"]
    assert {j["id"] for j in before} < {j["id"] for j in after}
    job_id = installed.run("cd; lipsyncd submit face.png voice.wav --renderer slow --name last", user="alice").stdout
    installed.until(lambda: job(installed, "last"), "the job of the command line")
    installed.run(f"lipsyncd cancel {job_id.strip()}", user="alice")
