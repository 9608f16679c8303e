"""`make install` on a bare Debian, and the unit under a real systemd: the tests go through one life of one service."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from lipsyncd.mp4 import inspect
from tests import container_kit
from tests.home import ROOT, picture, sound
from tests.machine import Machine, booted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a busy machine installs packages for minutes

SETTINGS = "/etc/lipsyncd/lipsyncd.toml"
README = (ROOT / "README.md").read_text()
SUDO = """#!/bin/sh
[ "$1" = -u ] || exec "$@"
user=$2; shift 2; exec runuser --user="$user" -- "$@"
"""


@pytest.fixture(scope="module")
def machine(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with a checkout in /usr/src/lipsyncd and the people alice, of the service's group later, and bob."""
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
    """After `make install` for a box without a GPU, with a key, a free port, and renderers of the test's own."""
    said = machine.run(f"cd /usr/src/lipsyncd && {told('sudo make install EXTRAS=')}").stdout
    for word in (SETTINGS, "cpu-only.conf", "adduser NAME lipsyncd", "systemctl enable --now lipsyncd"):
        assert word in said
    assert "models pull" not in said
    machine.run("USER=alice; " + told('sudo usermod --append --groups lipsyncd "$USER"'))
    package = next((machine.root / "opt/lipsyncd/lib").glob("python3*/site-packages"))
    shutil.copy(ROOT / "tests/service_renderers.py", package)
    text = (machine.root / SETTINGS.lstrip("/")).read_text()
    own = 'renderers = ["slow=service_renderers:Slow", "walls=service_renderers:Walls"]'
    patience = "stall_timeout_s = 600"  # the first sound that is analysed has numba compile, on a busy machine too
    text = text.replace("[render]", f"[render]\n{own}\n{patience}").replace("[web]", "[web]\nport = 0")
    machine.write(SETTINGS, text)
    machine.run(told("sudo systemctl enable --now lipsyncd"))
    return machine


def told(command: str) -> str:
    """The command, which the README tells in these very words."""
    assert command in README
    return command


def told_block(beginning: str) -> str:
    """The commands of the README's paragraph that begins so."""
    paragraph = README.partition(f"\n**{beginning}")[2]
    assert paragraph, beginning
    lines = re.search(r"(?:^    .*\n)+", paragraph, re.MULTILINE)
    assert lines is not None
    return lines.group()


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
    """Let a user of the group drop a job into the share with cp and mv, as over a mount."""
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
    """The newest job of that name, as `lipsyncd status` tells it to alice; {} when there is none."""
    told = json.loads(machine.run("lipsyncd status --json", user="alice").stdout)
    found: dict[str, Any] = next((j for j in told["jobs"] if j["name"] == name), {})
    return found


def until_state(machine: Machine, name: str, state: str) -> dict[str, Any]:
    found: dict[str, Any] = machine.until(
        lambda: (j := job(machine, name)).get("state") == state and j, f"job {name}: {state}"
    )
    return found


def status_of(machine: Machine, path: str, key: str = "") -> int:
    """What the REST service answers to a GET from inside."""
    header = f"'Authorization': 'Bearer {key}'" if key else ""
    file = machine.root / "var/lib/lipsyncd/state/status.json"
    machine.until(file.exists, "the daemon's own status")
    port = json.loads(file.read_text())["web_port"]
    program = f"""
from urllib import error, request
asked = request.Request('http://127.0.0.1:{port}{path}', headers={{{header}}})
try:
    installed.run("umount --lazy /mnt/share")  # the daemon holds its lock of the inbox
    installed.until(
        lambda: "not ready: inbox: /mnt/share/inbox is not mounted" in installed.show("StatusText"), "the word"
    )
    installed.run("mount /mnt/share")
    give(installed, "alice", "again", inbox="/mnt/share/inbox", **order)
    until_state(installed, "again", "done")
    assert installed.show("NRestarts") == "0"


def test_the_state_moves_to_another_disk(installed: Machine) -> None:
    before = json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["jobs"]
    installed.run(told_block("Moving the state"))
    shutil.rmtree(installed.root / "var/lib/lipsyncd/state")
    order = {"image": picture(6), "voice": sound(0.3, 6), "renderer": "slow", "resolution": 64}
    give(installed, "alice", "moved", inbox="/mnt/share/inbox", **order)
    until_state(installed, "moved", "done")
    after = json.loads(installed.run("lipsyncd status --json", user="alice").stdout)["jobs"]
    assert {j["id"] for j in before} < {j["id"] for j in after}
    job_id = installed.run("cd; lipsyncd submit face.png voice.wav --renderer slow --name last", user="alice").stdout
    installed.until(lambda: job(installed, "last"), "the job of the command line")
    installed.run(f"lipsyncd cancel {job_id.strip()}", user="alice")


# -- upgrade and end ---------------------------------------------------------------------------------------------------


def test_installing_again_upgrades_a_running_service_and_keeps_its_settings(installed: Machine) -> None:
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    before = installed.show("MainPID")
    installed.write("/usr/src/lipsyncd/lipsyncd/of_the_next_version.py", '"""New."""\n')
    said = installed.run("cd /usr/src/lipsyncd && make install EXTRAS=").stdout
    assert "The service runs again." in said
    assert (installed.root / SETTINGS.lstrip("/")).read_text() == text
    assert installed.show("ActiveState") == "active"
    assert installed.show("MainPID") != before
    installed.run("/opt/lipsyncd/bin/python -c 'import lipsyncd.of_the_next_version'")
    assert job(installed, "short")["state"] == "done"
    assert not list((installed.root / "usr/src/lipsyncd").glob("build"))


def test_uninstalling_takes_the_program_and_leaves_what_people_made(installed: Machine) -> None:
    said = installed.run("cd /usr/src/lipsyncd && make uninstall").stdout
    root = installed.root
    for kept in ("/etc/lipsyncd", "/var/lib/lipsyncd", "/srv/lipsyncd"):
        assert kept in said
        assert (root / kept.lstrip("/")).is_dir()
    assert (root / "srv/lipsyncd/outbox/short.mp4").exists()
    assert (root / "data/lipsyncd/state/ledger.db").exists()
    gone = ("opt/lipsyncd", "usr/local/bin/lipsyncd", "usr/local/lib/systemd/system/lipsyncd.service")
    assert [path for path in gone if (root / path).is_symlink() or (root / path).exists()] == []
    assert installed.show("LoadState") == "not-found"
    assert installed.run("find /proc -maxdepth 1 -user lipsyncd -name '[0-9]*'").stdout == ""
