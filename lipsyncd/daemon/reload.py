"""Read the settings again while the daemon runs: take over all that may change, or none when one of them is wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lipsyncd import log as logs
from lipsyncd.errors import ConfigError
from lipsyncd.jobs.values import quoted
from lipsyncd.monitor.reload_request import Outcome
from lipsyncd.settings import CurrentSettings, Settings
from lipsyncd.settings.changes import merge, value_of
from lipsyncd.settings.loading import renderer_faults

log = logging.getLogger(__name__)


def reload(settings: CurrentSettings, read: Callable[[], Settings]) -> Outcome:
    """Replace the settings by those that `read` finds now. When these cannot be used, log why and change nothing."""
    old = settings.now
    try:
        changes = merge(old, read())
        if faults := list(renderer_faults(changes.settings)):  # a new entry of render.renderers needs a restart
            raise ConfigError.of(faults)
        settings.replace(changes.settings)
    except ConfigError as error:
        for line in error.lines:
            log.error("the settings stay as they were: %s", line)
        return Outcome(error.exit_status, error.lines)
    taken = [f"{name} is {_shown(changes.settings, name)} now, was {_shown(old, name)}" for name in changes.taken]
    waiting = [
        f"{name}: a queue comes and goes with a restart"
        if name.startswith("queue.")
        else f"{name} stays {_shown(old, name)}: the new value needs a restart"
        for name in changes.waiting
    ]
    counts = f"settings read again: {len(taken)} taken over, {len(waiting)} need a restart"
    for line in taken:
        log.info("%s", line)
    for line in waiting:
        log.warning("%s", line)
    log.info("%s", counts)
    logs.setup(changes.settings.log.level, changes.settings.log.format)
    return Outcome(0, [*taken, *waiting, counts])


def _shown(settings: Settings, name: str) -> str:
    value = value_of(settings, name)
    return quoted(str(value) if isinstance(value, Path) else value)
