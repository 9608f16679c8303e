"""What a running daemon takes over when its settings are read again, and what has to wait for a restart."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from lipsyncd.settings.sections import Queue, Settings
from lipsyncd.settings.values import SECTIONS, SETTINGS, attribute

# Read each time that they are needed. All others are built into something at the start: a socket, a folder's watch, a
# render child, the recipe by which equal videos are recognised.
_LIVE_SECTIONS = ("log", "fetch", "archive", "retention", "executor.split")
LIVE = frozenset(
    [
        *(name for name, setting in SETTINGS.items() if setting.section in _LIVE_SECTIONS),
        *(f"watch.{key}" for key in ("settle_s", "settle_proven_s", "settle_network_s", "manifest_grace_s")),
        *(f"watch.{key}" for key in ("pair_timeout_s", "incomplete_timeout_s", "incomplete_network_s")),
        *(f"intake.max_{key}" for key in ("image_mb", "video_mb", "audio_mb", "manifest_kb", "megapixels", "audio_s")),
        *(f"intake.min_{key}" for key in ("side_px", "audio_s")),
        "intake.on_redrop",
        *(f"render.{key}" for key in ("renderer", "unload_idle_s", "max_attempts", "stop_grace_s")),
        *(f"render.{key}" for key in ("job_timeout_s", "stall_timeout_s", "start_timeout_s")),
        *(f"output.{key}" for key in ("resolution", "fps", "stitch", "motion", "av_offset_ms", "on_name_conflict")),
        *(f"web.{key}" for key in ("api_key_file", "allowed_hosts", "cors_origins", "allow_anonymous", "public_url")),
        *(
            f"web.{key}"
            for key in ("max_queue", "max_upload_mb", "upload_timeout_s", "min_kb_s", "webhook_secret_file")
        ),
    ]
)


@dataclass(frozen=True)
class Changes:
    """The result of reading the settings again.

    settings  the old ones with the new values of those in `LIVE`: what the daemon goes on with
    taken     names of the settings that have another value now
    waiting   names of those that would have one after a restart
    """

    settings: Settings
    taken: tuple[str, ...]
    waiting: tuple[str, ...]


def value_of(settings: Settings, name: str) -> object:
    """The value of "section.key" or "queue.name.key"."""
    section, _, key = name.rpartition(".")
    if section.startswith("queue."):
        queue = section.removeprefix("queue.")
        value: object = getattr(settings.queue(queue), key)
    else:
        value = getattr(getattr(settings, attribute(section)), key)
    return value


def merge(old: Settings, new: Settings) -> Changes:
    """The settings to go on with, when `old` are in use and `new` were read."""
    changed = [name for name in SETTINGS if value_of(old, name) != value_of(new, name)]
    taken = tuple(name for name in changed if name in LIVE)
    sections = {}
    for section in SECTIONS:
        held = attribute(section)
        names = [item.name for item in fields(getattr(old, held)) if f"{section}.{item.name}" in taken]
        sections[held] = replace(getattr(old, held), **{n: getattr(getattr(new, held), n) for n in names})
    queues, queues_taken, queues_waiting = _merge_queues(old, new)
    merged = replace(old, **sections, queues=queues, file=new.file, origins=new.origins)
    waiting = tuple(name for name in changed if name not in LIVE)
    return Changes(merged, taken + queues_taken, waiting + queues_waiting)


def _merge_queues(old: Settings, new: Settings) -> tuple[tuple[Queue, ...], tuple[str, ...], tuple[str, ...]]:
    """The queues to go on with, what of them is taken over, and which ones come or go with a restart.

    A queue's preset is read for each job; its folder is watched from the start to the end.
    """
    before, after = ({queue.name: queue for queue in settings.queues} for settings in (old, new))
    taken = [
        f"queue.{name}.{item.name}"
        for name in before.keys() & after.keys()
        for item in fields(Queue)
        if getattr(before[name], item.name) != getattr(after[name], item.name)
    ]
    waiting = [f"queue.{name}" for name in before.keys() ^ after.keys()]
    queues = tuple(after.get(queue.name, queue) for queue in old.queues)
    return queues, tuple(sorted(taken)), tuple(sorted(waiting))
