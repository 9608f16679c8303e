"""A member's day over Samba with the share of docs/install.md: a real smbd, its client, and the daemon beside them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from tests.kits import doc_pages
from tests.kits.doctor_kit import free_port
from tests.kits.installation import Installation, picture, sound
from tests.kits.machine import container_kit
from tests.kits.machine.users_kit import DAEMON, needs_users, shared_installation
from tests.kits.media.media_kit import converted

pytestmark = [needs_users, pytest.mark.slow, pytest.mark.timeout(900)]

_PEOPLE = {"anna": 1001, "bert": 1003, "carl": 1002}  # carl is no member
_PASSWORD = "of-the-test"
_GLOBAL = """
[global]
    smb ports = {port}
    interfaces = lo
    bind interfaces only = yes
    server role = standalone server
    load printers = no
    disable spoolss = yes
"""


@dataclass
class Server:
    """smbd in a small Debian of its own, whose /srv/lipsyncd is the installation's."""

    root: Path
    port: int
    installation: Installation

    def inside(self, command: str, **options: object) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
            ["chroot", self.root, "sh", "-euc", command], capture_output=True, text=True, check=False, **options
        )
        return done

    def ask(self, user: str, commands: str, *, fed_by: str = "true") -> subprocess.CompletedProcess[str]:
        """Run commands of smbclient as a user; `fed_by` is a shell command for their input."""
        address = f"//127.0.0.1/lipsyncd --port={self.port} --user={user}%{_PASSWORD}"
        return self.inside(f"cd /home/{user}; ({fed_by}) | smbclient {address} -c {shlex.quote(commands)}", timeout=120)


@pytest.fixture(scope="module")
def server(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = container_kit.copy_root(debian_root, tmp_path_factory.mktemp("samba") / "root")
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # the package starts no service
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    with shared_installation() as installation:
        server = Server(root, free_port(), installation)
        share = doc_pages.commands("docs/install.md", "Export the folders with Samba or NFS")
        people = "".join(
            f"useradd --uid {uid} --create-home {name}; printf '{_PASSWORD}\\n{_PASSWORD}\\n' | smbpasswd -s -a {name};"
            for name, uid in _PEOPLE.items()
        )
        made = server.inside(
            "apt-get update -qq; apt-get install -qq -y --no-install-recommends samba smbclient >/dev/null; "
            f"cat >/etc/samba/smb.conf; groupadd --gid {DAEMON.gid} lipsyncd; {people}"
            "usermod --append --groups lipsyncd anna; usermod --append --groups lipsyncd bert; mkdir -p /srv/lipsyncd",
            input=_GLOBAL.format(port=server.port) + share,
        )
        if "Unable to locate package" in made.stderr or "Could not resolve" in made.stderr:
            pytest.skip("Samba cannot be installed here")
        assert made.returncode == 0, made.stderr
        installation.run_as = DAEMON.command(lease=True)
        with installation.running():
            mounts = f"mount --bind {installation.root}/srv {root}/srv/lipsyncd; mount --bind /dev {root}/dev"
            smbd = "smbd --foreground --no-process-group --debug-stdout"
            with subprocess.Popen(
                ["unshare", "--mount", "sh", "-euc", f"{mounts}; exec chroot {root} {smbd}"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    installation.until(lambda: server.ask("anna", "ls").returncode == 0, "Samba's start")
                    yield server
                finally:
                    os.killpg(process.pid, signal.SIGTERM)


def give(server: Server, user: str, name: str) -> None:
    """Put a pair into the user's home."""
    home = server.root / "home" / user
    (home / f"{name}.png").write_bytes(picture(1))
    (home / f"{name}.wav").write_bytes(sound(0.4, 1))


def test_a_member_drops_a_pair_and_takes_its_video_away(server: Server) -> None:
    give(server, "anna", "pair")
    dropped = server.ask("anna", "cd inbox; put pair.png; put pair.wav")
    assert dropped.returncode == 0, dropped.stdout
    server.installation.until_done("pair")
    taken = server.ask("anna", "cd outbox; get pair.mp4; get pair.json; del pair.mp4; del pair.json")
    assert (taken.returncode, "NT_STATUS" in taken.stdout) == (0, False), taken.stdout
    assert inspect(server.root / "home/anna/pair.mp4").video.frames == 10
    assert not list(server.installation.path("outbox").glob("pair*"))


def test_a_slow_members_file_is_waited_for(server: Server) -> None:
    """smbd has the file open for the client: the kernel shows that, and the MP3 states no length."""
    give(server, "anna", "slow")
    (server.root / "home/anna/slow.mp3").write_bytes(converted(".mp3", "-write_xing", "0", seconds=12.0))
    slowly = "for part in 0 1 2 3 4; do tail -c +$((part * 20000 + 1)) slow.mp3 | head -c 20000; sleep 1.5; done"
    server.ask("anna", "cd inbox; put slow.png")
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(server.ask, "anna", "cd inbox; put - slow.mp3", fed_by=slowly)
        open_there = "slow.mp3: a program has it open for writing"
        server.installation.until(lambda: open_there in server.installation.cli("status").stdout, "the reason")
    assert put.result().returncode == 0, put.result().stdout
    server.installation.until_done("slow")
    video = server.installation.path("outbox") / "slow.mp4"
    assert inspect(video).video.frames == pytest.approx(300, abs=3)


def test_a_member_renames_a_hidden_name_and_takes_a_drop_back(server: Server) -> None:
    give(server, "anna", "renamed")
    done = server.ask(
        "anna",
        "cd inbox; put renamed.png .renamed.png; rename .renamed.png renamed.png; put renamed.wav .renamed.wav;"
        "rename .renamed.wav renamed.wav; put renamed.png alone.png",
    )
    assert (done.returncode, "NT_STATUS" in done.stdout) == (0, False), done.stdout
    server.installation.until_done("renamed")
    taken = server.ask("anna", "cd inbox; get alone.png back.png; del alone.png")
    assert (taken.returncode, "NT_STATUS" in taken.stdout) == (0, False), taken.stdout
    assert not (server.installation.path("inbox") / "alone.png").exists()


def test_a_member_drops_a_manifest_and_reads_why_its_job_failed(server: Server) -> None:
    give(server, "anna", "order")
    (server.root / "home/anna/order.json").write_text(
        json.dumps({"image": "order.png", "audio": "order.wav", "renderer": "shy"})
    )
    assert server.ask("anna", "cd inbox; put order.png; put order.wav; put order.json").returncode == 0
    job = server.installation.until_failed("order")
    assert job.state is JobState.FAILED
    assert job.kept is not None
    name = Path(job.kept).relative_to(server.installation.path("failed"))
    read = server.ask("anna", f"cd failed; get {name}/reason.json reason.json")
    assert read.returncode == 0, read.stdout
    assert json.loads((server.root / "home/anna/reason.json").read_text())["code"] == "no-face"


def test_the_daemons_own_folder_is_not_there_over_samba(server: Server) -> None:
    for folder in ("inbox", "outbox"):
        listed = server.ask("anna", f"cd {folder}; ls")
        assert listed.returncode == 0
        assert ".lipsyncd" not in listed.stdout
        for attempt in ("cd .lipsyncd; ls", "rename .lipsyncd mine", "deltree .lipsyncd", "get .lipsyncd/inbox-id x"):
            tried = server.ask("anna", f"cd {folder}; {attempt}")
            assert "NT_STATUS" in tried.stdout, (attempt, tried.stdout)
    time.sleep(1.0)
    assert server.installation.folders.available("inbox")
    assert server.installation.folders.available("outbox")


def test_a_stranger_has_no_access(server: Server) -> None:
    refused = server.ask("carl", "ls")
    assert refused.returncode != 0
    assert "NT_STATUS_ACCESS_DENIED" in refused.stdout
