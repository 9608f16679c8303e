"""What renders on a Ray cluster need: Ray, its token, the shared folder, and machines that can use them.

Only `doctor --executor ray` asks for these checks: they join the cluster and write into the shared folder.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Mapping

from lipsyncd.cluster import auth_token, connection
from lipsyncd.cluster.share import WorkFolder
from lipsyncd.cluster.slots import Host, Prober, hosts_of, terms_of
from lipsyncd.doctor.findings import Check, Finding, Installation, Verdict
from lipsyncd.errors import ClusterUnavailable
from lipsyncd.extras import how_to_install
from lipsyncd.settings.rules import UNSET
from lipsyncd.weights import store_of

LIMIT_S = 45.0  # connecting and one probe of each machine, at the same time
_TICK_S = 0.1


def package(installation: Installation) -> Finding:
    """Is Ray installed?"""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        return Finding(Verdict.FAULT, "Ray is not installed", how_to_install("ray"))
    if installation.settings.executor.kind != "ray":
        return Finding(Verdict.NOTE, f"Ray {version}; executor.kind is local", 'executor.kind = "ray" uses it')
    return Finding(Verdict.OK, f"Ray {version}")


def token(installation: Installation) -> Finding:
    """Can only this user use the cluster?"""
    mode = auth_token.require(allow_none=installation.settings.executor_ray.allow_no_token)
    if mode == "token":
        return Finding(Verdict.OK, "only this user can read the cluster's token")
    seen = "the cluster has no token: anyone who reaches its ports runs programs as this user"
    return Finding(Verdict.WARNING, seen, "set executor.ray.allow_no_token = false; docs/scale.md makes a token")


def share(installation: Installation) -> Finding:
    """Does the shared folder exist, and may only this user write its work/?"""
    folder = installation.settings.roots.share
    if folder == UNSET:
        return Finding(Verdict.FAULT, "roots.share is not set", "set it to a folder that all machines mount")
    work = WorkFolder(folder)
    work.require()
    return Finding(Verdict.OK, f"{work.root}")


def machines(installation: Installation) -> Finding:
    """Which machines of the cluster can render for this daemon, and why the others cannot?"""
    settings = installation.settings
    if settings.roots.share == UNSET:
        return Finding(Verdict.FAULT, "no machine was asked, since roots.share is not set", "set it")
    connection.prepare(settings)
    ray = connection.connect(settings)
    try:
        hosts = list(hosts_of(ray.nodes(), settings.executor_ray.resource).values())
        if not hosts:
            raise ClusterUnavailable("no machine of the cluster has a GPU", remedy="see `ray status`")
        work = WorkFolder(settings.roots.share)
        prober = Prober(ray, terms_of(settings), work, store_of(settings).fingerprint)
        for host in hosts:
            prober.ask(host)
        while any(host.fault is None for host in hosts):
            for host in hosts:
                if host.fault is None:
                    prober.look(host)
            time.sleep(_TICK_S)
    finally:
        connection.disconnect(ray)
    lines = "; ".join(_lines(hosts))
    broken = sum(bool(host.fault) for host in hosts)
    if not broken:
        return Finding(Verdict.OK, lines)
    verdict = Verdict.FAULT if broken == len(hosts) else Verdict.WARNING
    return Finding(verdict, lines, "docs/scale.md lists what all machines need to have in common")


def _lines(hosts: list[Host]) -> Iterator[str]:
    for host in hosts:
        seen = f"{host.name} ({host.address}), {host.gpus:g} GPUs"
        probed = host.probed
        if host.fault or probed is None:
            yield f"{seen}: {host.fault}"
        else:
            yield f"{seen}, share seen with {probed.free_mb} MB free"


CHECKS: Mapping[str, Check] = {"ray": package, "token": token, "share": share, "machines": machines}
