"""Check an installation once: what works, what does not, and the remedy.

    findings   findings and verdicts, and how checks are run: all at the same time, each within a time limit
    machine    this computer: ffmpeg, the jail around it, the clock
    rendering  what a render needs: packages, weights, a device, a voice for texts
    folders    the folders, and how changes in the inbox are noticed
    service    the ledger, the daemon, its port and its key
    cluster    Ray, its token, the shared folder, its machines; only when asked, since it writes into that folder

No check changes anything, needs a daemon or loads a renderer.
"""

from __future__ import annotations

from collections.abc import Mapping

from lipsyncd.doctor import cluster, folders, machine, rendering, service
from lipsyncd.doctor.findings import Check, Finding, Installation, Report, Verdict, run_checks
from lipsyncd.errors import ConfigError
from lipsyncd.settings import Settings

__all__ = ["CHECKS", "Finding", "Report", "Verdict", "examine"]

# Checks that need no settings file. All checks are printed in the order of these tables.
_OF_THE_MACHINE: Mapping[str, Check] = {
    "ffmpeg": machine.ffmpeg_program,
    "encoders": machine.encoders,
    "jail": machine.jail,
    "clock": machine.clock,
}
CHECKS: Mapping[str, Check] = {
    **_OF_THE_MACHINE,
    "renderer": rendering.renderer,
    "weights": rendering.weights,
    "device": rendering.device,
    "speech": rendering.speech,
    "inbox": folders.inboxes,
    **{kind: folders.shared(kind) for kind in ("outbox", "failed", "archive")},
    "state": folders.state,
    "spool": folders.spool,
    "watch": folders.watch,
    "writers": folders.writers,
    "ledger": service.ledger,
    "backup": service.backup,
    "jobs": service.jobs,
    "daemon": service.daemon,
    "web": service.web,
    "key": service.key,
}


def examine(settings: Settings | ConfigError, *, full: bool = False, executor: str = "") -> Report:
    """Run every check.

    settings  or the error in them; then only the machine is checked
    full      also read every byte of the weights and of the ledger: minutes instead of a second
    executor  "ray": also join the cluster and ask its machines, which takes seconds
    """
    if isinstance(settings, Settings):
        installation = Installation(settings, full=full)
        found = {"settings": _settings(installation)}
        found |= run_checks(CHECKS, installation)
        if executor == "ray":
            found |= run_checks(cluster.CHECKS, installation, limit_s=cluster.LIMIT_S)
        return Report(found)
    broken = Finding(Verdict.FAULT, settings.message, settings.remedy)
    unchecked = Finding(Verdict.NOTE, "folders, weights, daemon and port are checked once the settings are right")
    try:
        plain = Installation(Settings(), full=full)
    except ConfigError:  # without a home folder there are no default paths
        return Report({"settings": broken, "the rest": unchecked})
    return Report({"settings": broken, **run_checks(_OF_THE_MACHINE, plain), "the rest": unchecked})


def _settings(installation: Installation) -> Finding:
    settings, user = installation.settings, installation.user
    where = str(settings.file or "no file, defaults")
    changed = sum(origin.startswith("environment") for origin in settings.origins.values())
    seen = f"{where}{f', {changed} from the environment' if changed else ''}, checked as user {user.name}"
    owner = installation.owner
    if owner.uid == user.uid:
        return Finding(Verdict.OK, seen)
    remedy = f"`{installation.as_owner} lipsyncd doctor` checks with the daemon's rights"
    return Finding(Verdict.NOTE, f"{seen}; the state folder belongs to {owner.name}", remedy)
