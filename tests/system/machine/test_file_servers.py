"""Shares of other file servers than Samba: real NFS-Ganesha with a client of NFSv3, and sshfs over a real sftp-server.

NFS-Ganesha keeps the descriptor of a file open when its client is done. Both servers run in a small Debian, the NFS
server in a network of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lipsyncd.media.mp4 import inspect
from tests.kits.doctor_kit import free_port
from tests.kits.installation import Installation, picture, put, sound
from tests.kits.long_run_figures import report
from tests.kits.machine import container_kit
from tests.kits.machine.machine_kit import needs_fuse, unmount
from tests.kits.machine.users_kit import DAEMON, MEMBER, needs_users, shared_installation

pytestmark = [needs_users, pytest.mark.slow, pytest.mark.timeout(900)]

OPEN_S = 30.0  # so long an open descriptor holds back a file that is whole
PAIRS_OVER_NFS, PAIRS_OVER_SFTP = 20, 7
_GANESHA = """
NFS_CORE_PARAM { Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false; }
EXPORT { Export_Id = 1; Path = /srv/inbox; Pseudo = /inbox; Protocols = 3; Access_Type = RW; SecType = sys;
         FSAL { Name = VFS; } }
"""


@pytest.fixture(scope="module")
def root(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with both servers and their clients."""
    root = container_kit.copy_root(debian_root, tmp_path_factory.mktemp("servers") / "root")
    servers = ("nfs-ganesha", "nfs-ganesha-vfs", "sshfs", "socat", "openssh-sftp-server")
    if reason := container_kit.install(root, *servers, "libnfs-utils", "rpcbind", "netbase", "iproute2"):
        pytest.skip(reason)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    return root


@contextmanager
def running(command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts, ended at the end."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@dataclass
class NfsServer:
    """ganesha.nfsd, whose /srv/inbox is the installation's."""

    root: Path
    process: subprocess.Popen[bytes]

    def copy(self, name: str) -> subprocess.CompletedProcess[str]:
        """Copy a file of /tmp into the inbox with nfs-cp, as a member."""
        address = f"nfs://127.0.0.1/srv/inbox/{name}?uid={MEMBER.uid}&gid={DAEMON.gid}"
        entered = ["nsenter", f"--target={self.process.pid}", "--net", "chroot", self.root]
        return subprocess.run(
            [*entered, "nfs-cp", f"/tmp/{name}", address], capture_output=True, text=True, timeout=60, check=False
        )

    def open_files(self) -> set[str]:
        """The names of files that the server has open."""
        found = set()
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            found.add(os.path.basename(os.readlink(link)))
        return found


@contextmanager
def ganesha(root: Path, inbox: Path) -> Iterator[NfsServer]:
    (root / "etc/ganesha/test.conf").write_text(_GANESHA)
    (root / "srv/inbox").mkdir(exist_ok=True)
    mounts = f"mount --bind {inbox} {root}/srv/inbox; mount --bind /dev {root}/dev; mount -t proc proc {root}/proc"
    folders = f"mount -t tmpfs run {root}/run; mkdir {root}/run/rpcbind {root}/run/ganesha"
    network = f"chroot {root} ip link set lo up; chroot {root} rpcbind -f -w & sleep 1"
    server = "ganesha.nfsd -F -L /tmp/ganesha.log -f /etc/ganesha/test.conf -p /tmp/ganesha.pid -N NIV_EVENT"
    script = f"{mounts}; {folders}; {network}; exec chroot {root} {server}"
    log = root / "tmp/ganesha.log"
    with running(["unshare", "--net", "--mount", "sh", "-euc", script]) as process:
        until_s = time.monotonic() + 60
        while not log.exists() or "NFS SERVER INITIALIZED" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace") if log.exists() else "it has no log"
            assert time.monotonic() < until_s, "NFS-Ganesha does not start"
            time.sleep(0.2)
        yield NfsServer(root, process)


def test_pairs_that_come_over_a_server_that_never_closes_its_files(root: Path) -> None:
    """20 pairs over NFSv3: each is taken once, after the time for open descriptors, and none waits for ever."""
    names = [f"n{number}" for number in range(PAIRS_OVER_NFS)]
    with shared_installation() as installation:
        installation.run_as = DAEMON.command(lease=True)
        inbox = installation.path("inbox")
        with installation.running(), ganesha(root, inbox) as server:
            for number, name in enumerate(names):
                (root / f"tmp/{name}.png").write_bytes(picture(number))
                (root / f"tmp/{name}.wav").write_bytes(sound(0.4, number))
            begun_s = time.monotonic()
            for name in [f"{name}.{suffix}" for name in names for suffix in ("png", "wav")]:
                copied = server.copy(name)
                assert copied.returncode == 0, copied.stdout + copied.stderr
            copied_s = time.monotonic()
            assert server.open_files() & {f"{name}.wav" for name in names}  # it does keep them
            held = "a program has it open for writing"
            installation.until(lambda: held in installation.cli("status").stdout, "the reason")
            installation.until(lambda: len(installation.view.jobs(limit=100)) == len(names), "the acceptance of all")
            taken_s = time.monotonic()
            assert taken_s - begun_s >= OPEN_S
            for name in names:
                installation.until_done(name)
                assert inspect(installation.path("outbox") / f"{name}.mp4").video.frames == 10
            assert len(installation.view.jobs(limit=100)) == len(names)
    report(
        f"{len(names)} pairs over NFS-Ganesha, which keeps descriptors open",
        f"all right; the last one taken {taken_s - copied_s:.0f} s after its copy",
    )


@contextmanager
def sshfs(root: Path) -> Iterator[tuple[Path, Path]]:
    """A folder of an sftp-server, and where it is mounted on this machine."""
    behind, mounted = root / "srv/behind", root / "srv/mounted"
    for folder in (behind, mounted):
        folder.mkdir(exist_ok=True)
    if not (root / "dev/fuse").exists():
        os.mknod(root / "dev/fuse", 0o20666, os.makedev(10, 229))
    port = free_port()
    serve = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    with running(["chroot", root, "socat", serve, "EXEC:/usr/lib/openssh/sftp-server"]):
        options = f"directport={port},allow_other,reconnect"
        time.sleep(1)
        done = subprocess.run(
            ["chroot", root, "sshfs", "-o", options, "127.0.0.1:/srv/behind", "/srv/mounted"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        try:
            yield behind, mounted
        finally:
            unmount(mounted)


@needs_fuse
def test_inbox_and_outbox_on_one_sshfs(root: Path, installation: Installation) -> None:
    """Another machine writes seven pairs, four of them in pieces, and takes the videos from the same server."""
    names = [f"s{number}" for number in range(PAIRS_OVER_SFTP)]
    with sshfs(root) as (behind, mounted):
        installation.changes["paths"] = {kind: str(mounted / kind) for kind in ("inbox", "outbox")}
        installation.changes["watch"] = {"poll_s": 0.5, "settle_network_s": 2.0}
        with installation.running():
            status = json.loads(installation.cli("status", "--json").stdout)["daemon"]
            assert (status["watch"], status["degraded"]) == ("polling", "")

            def give(number: int) -> None:
                files = {f"s{number}.png": picture(number), f"s{number}.wav": sound(1.0, number)}
                for name, content in files.items():
                    if number % 2:
                        put(behind / "inbox", name, content)
                        continue
                    for at in range(0, len(content), len(content) // 3):
                        with (behind / "inbox" / name).open("ab") as file:
                            file.write(content[at : at + len(content) // 3])
                        time.sleep(1.0)

            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(give, range(len(names))))
            for name in names:
                installation.until_done(name)
                assert inspect(behind / "outbox" / f"{name}.mp4").video.frames == 25
                assert json.loads((behind / "outbox" / f"{name}.json").read_text())["state"] == "done"
            assert len(installation.view.jobs(limit=100)) == len(names)
            left = [path.name for path in (behind / "inbox").iterdir() if not path.name.startswith(".")]
    assert left == []
