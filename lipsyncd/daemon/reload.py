"""Read the settings again while the daemon runs: take over all that may change, or none when one of them is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lipsyncd import log as logs
from lipsyncd.errors import ConfigError
from lipsyncd.jobs.manifest import quoted
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.settings.changes import merge, value_of

log = logging.getLogger(__name__)


def reload(settings: CurrentSettings, read: Callable[[], Settings]) -> None:
    """Replace the settings by those that `read` finds now. When these cannot be used, log why and change nothing."""
    old = settings.now
    try:
        changes = merge(old, read())
        settings.replace(changes.settings)
    except ConfigError as error:
        log.error("the settings stay as they were: %s", error)
        return
    for name in changes.taken:
        log.info("%s is %s now, was %s", name, _shown(changes.settings, name), _shown(old, name))
    for name in changes.waiting:
        if name.startswith("queue."):
            log.warning("%s: a queue comes and goes with a restart", name)
        else:
            log.warning("%s stays %s: the new value needs a restart", name, _shown(old, name))
    log.info("settings read again: %d taken over, %d need a restart", len(changes.taken), len(changes.waiting))
    logs.setup(changes.settings.log.level, changes.settings.log.format)


def _shown(settings: Settings, name: str) -> str:
    value = value_of(settings, name)
    return quoted(str(value) if isinstance(value, Path) else value)
