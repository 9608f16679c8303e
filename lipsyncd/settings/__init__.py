"""Every setting, and where its value came from.

Defaults, then one file (`--config`, `$LIPSYNCD_CONFIG`, `/etc/lipsyncd/lipsyncd.toml`, `./lipsyncd.toml`: the first
that there is), then the variables of the original service (`PORT`, `OUTPUT_FPS`, ...), then `LIPSYNCD_<SECTION>_<KEY>`:
whoever comes later wins. A wrong value or an unknown name anywhere is a `ConfigError` of one line.

Standard library only, since `lipsyncd status` waits for it. Makes no folder and holds no secret.
"""

from lipsyncd.settings.current import CurrentSettings
from lipsyncd.settings.loading import Row, describe, load, reference_toml
from lipsyncd.settings.sections import (
    Archive,
    Fetch,
    Intake,
    Log,
    Output,
    Paths,
    Queue,
    Render,
    Settings,
    Speech,
    Watch,
    Web,
    Weights,
)

__all__ = [
    "Archive",
    "CurrentSettings",
    "Fetch",
    "Intake",
    "Log",
    "Output",
    "Paths",
    "Queue",
    "Render",
    "Row",
    "Settings",
    "Speech",
    "Watch",
    "Web",
    "Weights",
    "describe",
    "load",
    "reference_toml",
]
