"""Reading the settings again while the daemon runs: what can be taken over is, unless one of them is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lipsyncd import log as logs
from lipsyncd.errors import ConfigError
from lipsyncd.jobs.manifest import shown
from lipsyncd.settings import Settings
from lipsyncd.settings.changes import merge, value_of

log = logging.getLogger(__name__)


def reload(old: Settings, read: Callable[[], Settings], hand_out: Callable[[Settings], None]) -> Settings:
    """The settings to go on with: `old` again when the new ones cannot be used, which is told with the reason.

    read      reads files and variables as at the start
    hand_out  gives the new settings to their users; raises `ConfigError` before it has given them to any
    """
    try:
        changes = merge(old, read())
        hand_out(changes.settings)
    except ConfigError as error:
        log.error("the settings stay as they were: %s", error)
        return old
    for name in changes.taken:
        log.info("%s is %s now, was %s", name, _told(changes.settings, name), _told(old, name))
    for name in changes.waiting:
        if name.startswith("queue."):
            log.warning("%s: a queue comes and goes with a restart", name)
        else:
            log.warning("%s stays %s: the new value needs a restart", name, _told(old, name))
    log.info("settings read again: %d taken over, %d need a restart", len(changes.taken), len(changes.waiting))
    logs.setup(changes.settings.log.level, changes.settings.log.format)
    return changes.settings


def _told(settings: Settings, name: str) -> str:
    value = value_of(settings, name)
    return shown(str(value) if isinstance(value, Path) else value)
