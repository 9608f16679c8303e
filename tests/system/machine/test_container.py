"""The container images: built in full by buildah on a small Debian, and run far enough to render and to answer.

The preview image is whole; the GPU image is built without torch: gigabytes that say nothing about our file.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from tests.kits.installation import ROOT, face, picture, put, sound
from tests.kits.machine.container_kit import PipSource, cannot_run, checkout
from tests.kits.machine.users_kit import CAP_LEASE, capabilities

if reason := cannot_run("mmdebstrap", "buildah"):
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.timeout(900)
UID = 961
BASE = "localhost/base"


@dataclass(frozen=True)
class Builder:
    """buildah with its own store. Without overlay in the kernel it copies everything for each line, slowly."""

    folder: Path

    def command(self, *arguments: str | Path) -> list[str]:
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text().split() else "vfs"
        places = ["--storage-driver", driver, "--root", str(self.folder / "st"), "--runroot", str(self.folder / "run")]
        return ["buildah", *places, *map(str, arguments)]

    def __call__(self, *arguments: str | Path, timeout_s: float = 600) -> str:
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False, cwd=self.folder
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout.strip()

    def build(self, source: Path, target: str, *arguments: str) -> str:
        """Build the image of one target from a checkout, with the package sources of this machine."""
        pip = PipSource.of_this_machine()
        (self.folder / "pip.conf").write_text(pip.config)
        volumes = [f"--volume={path}:{path}:ro" for path in pip.folders]
        volumes.append(f"--volume={self.folder / 'pip.conf'}:/etc/pip.conf:ro")
        self(
            "bud", "--isolation", "chroot", "--network", "host", "--format", "docker", "--layers", *volumes,
            "--build-arg", f"BASE={BASE}", *arguments, "--target", target, "-t", target, source,
        )  # fmt: skip
        return f"localhost/{target}"

    def about(self, image: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))
        return content


@pytest.fixture(scope="module")
def builder(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    """A builder whose store has the base: the small Debian that other tests boot."""
    builder = Builder(tmp_path_factory.mktemp("images"))
    archive = builder.folder / "base.tar"
    subprocess.run(["tar", "-C", debian_root, "-cf", archive, "--exclude=./dev/*", "."], check=True, timeout=120)
    (builder.folder / "Basefile").write_text("FROM scratch\nADD base.tar /\n")
    builder("bud", "--isolation", "chroot", "-f", "Basefile", "-t", "base", builder.folder)
    archive.unlink()
    yield builder
    subprocess.run(["umount", builder.folder / "st" / "overlay"], capture_output=True, check=False)
    shutil.rmtree(builder.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def preview(builder: Builder, source: Path) -> str:
    return builder.build(source, "preview")


@pytest.fixture(scope="module")
def gpu(builder: Builder, source: Path, preview: str) -> str:
    return builder.build(source, "gpu", "--build-arg", "TORCH=")


@dataclass
class Container:
    """A container of an image, with a storage folder of the host mounted, as `docker run -v` does."""

    builder: Builder
    name: str
    storage: Path
    port: int
    capabilities: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str, user: str = "", **variables: str) -> list[str]:
        """The image's entry point with these arguments. buildah does not run it by itself."""
        flags = ["--isolation", "chroot", "--network", "host", f"--volume={self.storage}:/app/storage"]
        flags += [f"--user={user}"] if user else []
        flags += [f"--cap-add=CAP_{name}" for name in self.capabilities]
        flags += [f"--env={name}={value}" for name, value in {"PORT": str(self.port), **variables}.items()]
        return self.builder.command("run", *flags, self.name, "--", "tini", "--", "lipsyncd-entrypoint", *arguments)

    def run(self, *arguments: str, user: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, user=user, **variables), capture_output=True, text=True, timeout=120, check=False
        )

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def answers(self, path: str) -> int:
        with suppress(OSError):
            return self.get(path)[0]
        return 0

    def rights(self) -> dict[str, int]:
        """The capabilities of the daemon, by their names in /proc."""
        return capabilities(self.daemon())

    def daemon(self) -> int:
        """The id of its process on this machine."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
                if words[1:3] == [b"/opt/lipsyncd/bin/lipsyncd", b"run"] and self._is_here(entry):
                    return int(entry.name)
        raise AssertionError("no daemon runs in the container")

    def _is_here(self, entry: Path) -> bool:
        return f"PORT={self.port}".encode() in (entry / "environ").read_bytes().split(b"\0")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def until(done: Callable[[], Any], what: str, *, seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := done():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {seconds} s")


@contextmanager
def container(builder: Builder, image: str, folder: Path) -> Iterator[Container]:
    """A container that does not run yet. Processes that a test leaves in it are ended."""
    storage = folder / "storage"
    storage.mkdir()
    made = Container(builder, builder("from", "--pull-never", image), storage, free_port())
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            os.kill(made.daemon(), signal.SIGKILL)
            made.process.wait(30)
        builder("rm", made.name)


def added_by_compose() -> list[str]:
    """The capabilities that the compose file adds, as it names them."""
    block = re.search(r"^    cap_add:\n((?:      - .*\n)+)", (ROOT / "config/compose.yaml").read_text(), re.MULTILINE)
    assert block is not None
    return re.findall(r"- (\w+)", block[1])


@pytest.fixture(scope="module")
def running(builder: Builder, preview: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The preview image, ready."""
    with container(builder, preview, tmp_path_factory.mktemp("preview")) as made:
        made.capabilities = added_by_compose()
        log = (made.storage.parent / "log").open("wb")
        made.process = subprocess.Popen(made.command("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: made.answers("/health/ready") == 200, "readiness")
        yield made


def test_a_pair_dropped_into_the_mounted_inbox_becomes_a_video(running: Container) -> None:
    portrait = io.BytesIO()
    Image.fromarray(data.astronaut()).save(portrait, "PNG")
    put(running.storage / "inbox", "anna.png", portrait.getvalue())
    put(running.storage / "inbox", "anna.wav", sound(1.0))
    until(lambda: (running.storage / "outbox" / "anna.json").exists(), "the video")
    sidecar = json.loads((running.storage / "outbox" / "anna.json").read_text())
    assert sidecar["renderer"] == "preview"
    until(lambda: b'"done"' in running.get(f"/talk-status/{sidecar['id']}")[1], "the end of the job")
    status, video = running.get(f"/storage/videos/{sidecar['id']}.mp4")
    assert (status, video) == (200, (running.storage / "outbox" / "anna.mp4").read_bytes())


def test_health_has_the_originals_fields_and_says_what_runs(running: Container) -> None:
    status, body = running.get("/health")
    assert status == 200
    health = json.loads(body)
    assert len(health) == 9
    assert (health["service"], health["device"]) == ("lipsyncd", "cpu")


def test_it_runs_as_its_own_user_which_owns_the_storage(running: Container) -> None:
    assert running.storage.stat().st_uid == UID
    status = (Path("/proc") / str(running.daemon()) / "status").read_text()
    numbers = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert numbers["Uid"].split() == [str(UID)] * 4
    assert numbers["Groups"].split() in ([], [str(UID)])
    assert numbers["NoNewPrivs"] == "1"
    lease = 1 << CAP_LEASE
    rights = running.rights()
    assert (rights["Prm"], rights["Eff"], rights["Inh"], rights["Amb"]) == (lease, lease, 0, 0)


def test_another_users_file_that_is_still_open_is_waited_for(running: Container) -> None:
    """As on a volume that people of the host share: the file is root's there, and the daemon is uid 961."""
    assert json.loads(running.run("status", "--json").stdout)["daemon"]["leases"] is True
    put(running.storage / "inbox", "open.png", picture())
    with (running.storage / "inbox" / "open.wav").open("wb") as file:
        file.write(sound(1.0))
        file.flush()
        until(lambda: "a program has it open for writing" in running.run("status").stdout, "the reason")
        time.sleep(2.0)
        assert (running.storage / "inbox" / "open.wav").exists()
    until(lambda: not (running.storage / "inbox" / "open.wav").exists(), "its acceptance")


def test_each_start_without_a_key_logs_a_warning(running: Container) -> None:
    assert "every client may use this server" in (running.storage.parent / "log").read_text()


def test_the_image_declares_its_port_its_check_and_its_stop_signal(
    builder: Builder, preview: str, source: Path
) -> None:
    config = builder.about(preview)["Docker"]["config"]
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["Volumes"]) == {"/app/storage", "/app/models"}
    assert set(config["ExposedPorts"]) == {"8003/tcp"}
    assert config["Entrypoint"][0] == "tini"
    assert config["Cmd"] == ["run"]
    assert not [word for word in config["Env"] if "KEY" in word or "TOKEN" in word]
    assert "/health/ready" in config["Healthcheck"]["Test"][-1]


def test_the_health_check_of_the_image_follows_readiness(builder: Builder, preview: str, running: Container) -> None:
    check = builder.about(preview)["Docker"]["config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    for port, wanted in (running.port, True), (free_port(), False):
        flags = ["--isolation", "chroot", "--network", "host", f"--env=PORT={port}"]
        asked = subprocess.run(
            running.builder.command("run", *flags, running.name, "--", *check[1:]), capture_output=True, check=False
        )
        assert (asked.returncode == 0) is wanted, asked.stderr


def test_sigterm_ends_it_cleanly(running: Container) -> None:
    assert running.process is not None
    os.kill(running.daemon(), signal.SIGTERM)
    assert running.process.wait(60) == 0
    assert "stopped" in (running.storage.parent / "log").read_text()


def test_the_preview_image_has_no_torch_and_is_small(builder: Builder, preview: str, tmp_path: Path) -> None:
    with container(builder, preview, tmp_path) as made:
        root = Path(builder("mount", made.name))
        site = next((root / "opt/lipsyncd/lib").glob("python3*/site-packages"))
        names = {path.name for path in site.iterdir()}
        size_mb = sum(path.lstat().st_size for path in (root / "opt").rglob("*") if not path.is_symlink()) / 1e6
        builder("umount", made.name)
    print(f"\n/opt/lipsyncd of the preview image: {size_mb:.0f} MB")
    assert not {name for name in names if name.split("-")[0] in ("torch", "triton", "nvidia", "diffusers")}
    assert size_mb < 1500


def test_it_runs_as_another_user(builder: Builder, preview: str, tmp_path: Path) -> None:
    with container(builder, preview, tmp_path) as made:
        os.chown(made.storage, 12345, 12345)
        done = made.run("init", user="12345:12345")
        assert done.returncode == 0, done.stderr
        owners = {path.stat().st_uid for path in made.storage.iterdir()}
    assert owners == {12345}


def test_the_gpu_image_without_its_torch_renders_nothing_and_reports_it(
    builder: Builder, gpu: str, tmp_path: Path
) -> None:
    with container(builder, gpu, tmp_path) as made:
        assert made.run("--version").stdout.startswith("lipsyncd")
        log = (tmp_path / "log").open("wb")
        made.process = subprocess.Popen(
            made.command("run", HF_HUB_OFFLINE="1"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        until(lambda: made.answers("/health") == 200, "the daemon")
        assert (made.rights()["Prm"], made.rights()["Amb"]) == (0, 0), "no capability was added to this container"
        put(made.storage / "inbox", "anna.png", face())
        put(made.storage / "inbox", "anna.wav", sound())
        status = until(lambda: "blocked" in (s := made.run("status").stdout) and s, "a blocked job")
        assert made.answers("/health/ready") == 503
        os.kill(made.daemon(), signal.SIGTERM)
        assert made.process.wait(60) == 0
    assert "renderer-not-installed" in status or "weights-missing" in status
    assert not list((made.storage / "outbox").glob("*.mp4"))


def test_the_locks_pin_what_was_tested() -> None:
    pinned = {
        line.split(" ")[0].lower().replace("_", "-")
        for name in ("preview.txt", "musetalk.txt", "onnxruntime-gpu.txt", "torch.txt")
        for line in (ROOT / "config" / "locks" / name).read_text().splitlines()
        if "==" in line
    }
    constraints = {
        line.split("#")[0].strip().lower().replace("_", "-")
        for line in (ROOT / "config" / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    tested = {item.partition("==")[0]: item for item in constraints}
    assert {item for item in pinned if tested.get(item.partition("==")[0], item) != item} == set()
