"""A Ray cluster on this machine, with a home and a token of its own; its processes are ended by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.cluster import auth_token, connection
from lipsyncd.cluster.on_node import Terms
from lipsyncd.cluster.ray_child import Losses, RayChild, Slot
from lipsyncd.cluster.share import WorkFolder
from lipsyncd.cluster.slots import hosts_of
from lipsyncd.settings import Settings
from lipsyncd.settings.cluster import Ray, Roots
from lipsyncd.worker.child_process import Timeouts
from tests.kits.installation import ROOT, Installation
from tests.kits.machine.processes import children_of, command_of

OBJECTS_BYTES = 80_000_000
NODE = {"num_cpus": 1, "object_store_memory": OBJECTS_BYTES}


class RayMachines:
    """One head node and more, all on this machine. `environment` is what every process of the cluster has."""

    def __init__(self, root: Path, *, head_gpus: int, port: int = 0) -> None:
        from ray.cluster_utils import Cluster

        self.share = root / "share"
        self.share.mkdir(exist_ok=True)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={**NODE, "num_gpus": head_gpus, "include_dashboard": False, "gcs_server_port": port or None},
        )
        self.address: str = self._cluster.address
        self._ray: Any = None

    def connected(self) -> Any:
        """The module `ray`, connected to this cluster until its end."""
        if self._ray is None:
            settings = Settings(executor_ray=Ray(address=self.address), roots=Roots(share=self.share))
            connection.prepare(settings)
            self._ray = connection.connect(settings)
        return self._ray

    def add_node(self, gpus: int = 1, **more: Any) -> Any:
        return self._cluster.add_node(**NODE, num_gpus=gpus, **more)

    def lose(self, node: Any) -> None:
        """End the machine's raylet without warning; what it has started ends with it."""
        self._cluster.remove_node(node, allow_graceful=False)

    def lose_control_store(self) -> None:
        """End the head's control store, its raylet and the raylet's agents without warning.

        The agents would look for the control store for a minute more.
        """
        agents = [pid for one in self._cluster.head_node.all_processes["raylet"] for pid in agents_of(one.process.pid)]
        for kind in ("gcs_server", "raylet"):
            for one in self._cluster.head_node.all_processes[kind]:
                one.process.kill()
                one.process.wait(10)
        for pid in agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def control_store_stopped(self) -> Iterator[None]:
        """The head's control store takes connections meanwhile, and answers none."""
        processes = [one.process for one in self._cluster.head_node.all_processes["gcs_server"]]
        for one in processes:
            one.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for one in processes:
                one.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._ray is not None:
            connection.disconnect(self._ray)
        self._cluster.shutdown()


@contextmanager
def ray_machines(
    root: Path, home: Path, *, head_gpus: int = 2, port: int = 0, **environment: str
) -> Iterator[RayMachines]:
    """A cluster in which renderers of the tests are found. No process of it is left afterwards.

    home  the same for all clusters of one test process, since Ray reads its token once
    """
    own = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / ".ray" / "auth_token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        **environment,
    }
    # A short path: those of Ray's sockets may have 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in [name for name in os.environ if name.startswith("LIPSYNCD_")]:
            patch.delenv(name)  # the machines would take the variables of a long run for settings
        patch.setenv("RAY_TMPDIR", scratch)
        for name, value in own.items():
            patch.setenv(name, value)
        auth_token.make()
        machines = RayMachines(root, head_gpus=head_gpus, port=port)
        try:
            yield machines
        finally:
            machines.close()
            assert_none_left(home)


def agents_of(raylet: int) -> list[int]:
    """The helpers of a raylet that are no workers."""
    return [pid for pid in children_of(raylet) if b"agent" in command_of(pid).lower()]


def processes_of(home: Path) -> list[int]:
    """The live processes, besides this one, whose home was that folder when they began."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ended = (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not ended and f"HOME={home}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def assert_none_left(home: Path, within_s: float = 60.0) -> None:
    """Wait until no process with that home is left; those that stay are ended, and fail the test."""
    deadline = time.monotonic() + within_s
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = {pid: command for pid in processes_of(home) if (command := command_of(pid))}
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == {}, left


@contextmanager
def ray_child(
    machines: RayMachines,
    storage: Path,
    timeouts: Timeouts,
    renderers: tuple[str, ...],
    environment: tuple[str, ...],
    *,
    number: int = 0,
) -> Iterator[RayChild]:
    """The executor of the first GPU of the head, or of another one."""
    ray = machines.connected()
    host = next(iter(hosts_of(ray.nodes(), "").values()))
    terms = Terms(str(machines.share), str(storage / "models"), renderers, environment, {})
    slot = Slot(f"here:{number}", host.node, host.name, number)
    child = RayChild(ray, slot, terms, lambda: timeouts, WorkFolder(machines.share), Losses(), gpus=1.0)
    try:
        yield child
    finally:
        child.close()
        child.release()


def installation_on(machines: RayMachines, installation: Installation, **cluster: Any) -> Installation:
    """The installation with renders on that cluster, and without its own devices."""
    installation.changes["executor"] = {"kind": "ray"}
    installation.changes["executor.ray"] = {"address": machines.address, **cluster}
    installation.changes["roots"] = {"share": str(machines.share)}
    return installation


def ray_environment() -> dict[str, str]:
    """What a program needs besides the address to use the cluster of these tests."""
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")}


def start_on_ray(installation: Installation, **environment: str) -> None:
    """Start the daemon in a process of its own: Ray does not survive a fork."""
    installation.start(fresh=True, **ray_environment(), **environment)


def children(home: Path) -> list[int]:
    """Process ids of the render children on the machines with that home."""
    return [pid for pid in processes_of(home) if b"\0lipsyncd.renderers\0" in command_of(pid)]


def actor_of(child: int) -> int:
    """The process that started a render child."""
    return int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
