"""The slots of a Ray cluster: found when a machine joins and has passed the probe, dropped when it is lost.

One thread looks once a second. It starts a worker for each new slot and ends the worker of a lost one; renders, actors
and the ledger are the workers' own. While Ray does not answer, there are no slots, jobs wait, and it connects again.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lipsyncd import __version__
from lipsyncd.cluster import connection
from lipsyncd.cluster.on_node import Probed, Terms, probe
from lipsyncd.cluster.ray_child import Losses, RayChild, Slot
from lipsyncd.cluster.share import WorkFolder
from lipsyncd.errors import LipsyncdError, ShareUnavailable
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.weights import store_of
from lipsyncd.worker.child_process import Timeouts
from lipsyncd.worker.local_child import variables_of

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_PROBE_S = 30.0  # longest answer of a machine, and how long until one that failed is asked again
_FIRST_AGAIN_S, _LONGEST_AGAIN_S = 1.0, 30.0  # between two tries to connect
_SWEEP_S = 60.0


@dataclass
class Host:
    """One machine with GPUs. `fault` is why it has no slots; None while the probe has not ended."""

    node: str
    name: str
    address: str
    gpus: float
    answer: Any = None
    nonce: str = ""
    asked_s: float = 0.0
    fault: str | None = None
    probed: Probed | None = None
    slots: list[RayChild] = field(default_factory=list)


class Prober:
    """Asks machines whether they see the same share as the same user, with the same program and weights."""

    def __init__(self, ray: Any, terms: Terms, work: WorkFolder, fingerprint: str) -> None:
        self._ray = ray
        self._terms = terms
        self._work = work
        self._fingerprint = fingerprint

    def ask(self, host: Host) -> None:
        """Begin the probe of a machine. Raises `ShareUnavailable`."""
        host.nonce, host.asked_s = secrets.token_hex(16), time.monotonic()
        folder = self._work.root / "probe" / host.nonce
        self._work.require()
        try:
            folder.mkdir(mode=0o700, parents=True)
            (folder / "question").write_text(host.nonce[::-1])
        except OSError as error:
            raise ShareUnavailable(f"{folder} cannot be written: {error.strerror}") from error
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(host.node, soft=False)
        task = self._ray.remote(probe).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        host.answer = task.remote(self._terms, host.nonce)

    def look(self, host: Host) -> None:
        """Take the machine's answer, if it is there: then `fault` is set."""
        done, _ = self._ray.wait([host.answer], timeout=0)
        if not done and time.monotonic() - host.asked_s < _PROBE_S:
            return
        try:
            host.probed = self._ray.get(host.answer, timeout=0)
            host.fault = self.judge(host)
        except self._ray.exceptions.GetTimeoutError:
            host.fault = f"no answer to the probe within {_PROBE_S:g} s"
        except self._ray.exceptions.RayError as error:
            host.fault = f"the probe failed: {str(error).strip().splitlines()[-1][:300]}"
        host.answer = None
        self._work.remove(self._work.root / "probe" / host.nonce)

    def judge(self, host: Host) -> str:
        probed = host.probed
        assert probed is not None
        if probed.fault:
            return probed.fault
        pairs = (
            ("runs as user", probed.uid, os.geteuid()),
            ("has lipsyncd", probed.lipsyncd, __version__),
            ("has Python", probed.python, platform.python_version()),
            ("has the lock list of weights", probed.weights, self._fingerprint),
        )
        for what, seen, wanted in pairs:
            if seen != wanted:
                return f"it {what} {seen}, the daemon {wanted}"
        try:
            answer = (self._work.root / "probe" / host.nonce / "answer").read_text()
        except OSError:
            answer = ""
        return "" if answer == f"{host.nonce[::-1]}:answered" else "what it writes to roots.share is not seen here"


def hosts_of(nodes: Sequence[Mapping[str, Any]], resource: str) -> dict[str, Host]:
    """The live machines with GPUs, of Ray's list of nodes."""
    found = {}
    for node in nodes:
        resources = node["Resources"]
        if node["Alive"] and resources.get("GPU", 0) > 0 and (not resource or resources.get(resource, 0) > 0):
            name, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
            found[node["NodeID"]] = Host(node["NodeID"], name, address, float(resources["GPU"]))
    return found


def terms_of(settings: Settings) -> Terms:
    """What machines are given of the daemon's settings."""
    render = settings.render
    return Terms(
        share=str(settings.roots.share),
        weights=str(store_of(settings).folder),
        renderers=render.renderers,
        environment=render.environment,
        variables=variables_of(render),
        alone=settings.executor_ray.gpus_per_worker >= 1,
    )


class Slots:
    """The slots of one cluster. `run` is one thread's work; the rest may be called from any.

    add, remove  called with each slot that comes and goes, in that thread
    changed      called when `facts` have changed

    Raises `ConfigError` without Ray or its token, and `ClusterUnavailable` when executor.ray.address is "auto" and no
    cluster runs on this machine. One with an address may be about to start, and is waited for.
    """

    def __init__(
        self,
        settings: CurrentSettings,
        timeouts: Callable[[], Timeouts],
        add: Callable[[RayChild], None],
        remove: Callable[[RayChild], None],
    ) -> None:
        connection.prepare(settings.now)
        if settings.now.executor_ray.address == "auto":
            connection.address_for(settings.now)
        self.changed: Callable[[], None] = lambda: None
        self.fault = "not connected yet"
        self._settings = settings
        self._terms = terms_of(settings.now)
        self._timeouts = timeouts
        self._add = add
        self._remove = remove
        self._work = WorkFolder(settings.now.roots.share)
        self._fingerprint = store_of(settings.now).fingerprint
        self._losses = Losses()
        self._guard = threading.Lock()
        self._hosts: dict[str, Host] = {}
        self._ray: Any = None
        self._prober: Prober | None = None
        self._swept_s = float("-inf")
        self._shown: list[dict[str, Any]] = []

    def run(self, stopping: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Follow the cluster until the daemon stops. No trouble of Ray's ends this thread."""
        again_s = _FIRST_AGAIN_S
        while not stopping():
            try:
                if self._ray is None:
                    self._connect()
                self._look()
                shown = self.facts()
                if self.fault or shown != self._shown:
                    self._shown = shown
                    self.changed()
                self.fault, again_s = "", _FIRST_AGAIN_S
                wait(_LOOK_S)
            except LipsyncdError as error:
                self._report(error.message)
                wait(again_s)
                again_s = min(2 * again_s, _LONGEST_AGAIN_S)
            except Exception as error:  # RpcError and others of Ray's insides, which have no common base
                self._disconnect(error)
                wait(again_s)
                again_s = min(2 * again_s, _LONGEST_AGAIN_S)

    def close(self) -> None:
        """Leave the cluster, when no worker runs any more: Ray then ends all actors."""
        if self._ray is not None:
            ray, self._ray = self._ray, None
            try:
                connection.disconnect(ray)
            except ConnectionError as error:  # it ends with this process
                log.warning("cluster: %s", error)

    def facts(self) -> list[dict[str, Any]]:
        """Each slot, and each machine that has none, as JSON."""
        rows: list[dict[str, Any]] = []
        with self._guard:
            hosts = list(self._hosts.values())
        for host in hosts:
            shown = {"host": host.name, "address": host.address, "gpus": host.gpus}
            if not host.slots:
                rows.append(
                    {"name": "", **shown, "state": "unused", "job": "", "fault": host.fault or "is being probed"}
                )
            for one in host.slots:
                loaded = "loaded" if one.pid is not None else "ready" if one.has_actor else "free"
                state = "busy" if one.job_id else loaded
                rows.append({"name": one.device, **shown, "state": state, "job": one.job_id, "fault": ""})
        return rows

    def _connect(self) -> None:
        self._ray = connection.connect(self._settings.now)
        self._prober = Prober(self._ray, self._terms, self._work, self._fingerprint)
        log.info("connected to Ray at %s", connection.address_of(self._ray))

    def _disconnect(self, error: Exception) -> None:
        self._report(f"Ray does not answer: {str(error).strip().splitlines()[0][:300] if str(error) else type(error)}")
        for node in list(self._hosts):
            self._lose(node)
        self.close()

    def _report(self, fault: str) -> None:
        if fault != self.fault:
            log.warning("cluster: %s", fault)
            self.fault = fault
            self.changed()

    # -- one look ------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        assert self._ray is not None and self._prober is not None
        if not self._ray.is_initialized() or not connection.answers(self._ray):
            raise ConnectionError("its control store takes no connections")
        cluster = self._settings.now.executor_ray
        nodes = connection.bounded(self._ray.nodes, "the list of machines")
        there = hosts_of(nodes, cluster.resource)
        for node in [node for node in self._hosts if node not in there]:
            self._lose(node)
        for node, host in there.items():
            if node not in self._hosts:
                log.info("machine %s (%s) joins with %g GPUs", host.name, host.address, host.gpus)
                self._prober.ask(host)
                with self._guard:
                    self._hosts[node] = host
        for host in self._hosts.values():
            if host.answer is not None:
                self._prober.look(host)
                if host.fault:
                    log.warning("machine %s (%s) gets no jobs: %s", host.name, host.address, host.fault)
                elif host.fault == "":
                    self._open(host)
            elif host.fault and time.monotonic() - host.asked_s > _PROBE_S:
                host.fault = None
                self._prober.ask(host)
            for slot in host.slots:
                slot.release_if_idle(cluster.release_idle_s)
        self._sweep()

    def _open(self, host: Host) -> None:
        """Start a worker for each slot of a machine that has passed the probe."""
        cluster = self._settings.now.executor_ray
        count = math.floor(host.gpus / cluster.gpus_per_worker + 1e-9)
        if cluster.workers:
            count = min(count, cluster.workers - sum(len(other.slots) for other in self._hosts.values()))
        for number in range(count):
            slot = Slot(f"{host.name}-{host.node[:6]}:{number}", host.node, host.name, number)
            assert host.probed is not None
            build = f"{host.probed.build} {slot.name}" if host.probed.mixed else host.probed.build
            child = RayChild(
                self._ray,
                slot,
                self._terms,
                self._timeouts,
                self._work,
                self._losses,
                gpus=cluster.gpus_per_worker,
                resource=cluster.resource,
                build=build,
            )
            host.slots.append(child)
            self._add(child)
        log.info("machine %s (%s) takes jobs: %d at a time", host.name, host.address, len(host.slots))
        if not host.slots:
            host.fault = f"executor.ray.workers is {cluster.workers}, and so many slots are open"

    def _lose(self, node: str) -> None:
        with self._guard:
            host = self._hosts.pop(node)
        log.warning("machine %s (%s) is lost", host.name, host.address)
        for child in host.slots:
            child.gone.set()
            self._remove(child)

    def _sweep(self) -> None:
        """Remove, now and then, what lost machines left in the shared folder."""
        if time.monotonic() - self._swept_s < _SWEEP_S:
            return
        self._swept_s = time.monotonic()
        running = frozenset(one.job_id for host in self._hosts.values() for one in host.slots)
        if removed := self._work.sweep(self._settings.now.executor_ray.lost_grace_s, running):
            log.info("%d folders of lost attempts are removed from %s", removed, self._work.root)
