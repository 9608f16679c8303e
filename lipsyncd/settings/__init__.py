"""Every setting, and where its value came from.

Defaults come first; then one file, the first of `--config`, `$LIPSYNCD_CONFIG`, `/etc/lipsyncd/lipsyncd.toml`,
`~/.config/lipsyncd/lipsyncd.toml` and `./lipsyncd.toml` that exists; then the variables of the original service
(`PORT`, `OUTPUT_FPS`, ...); then `LIPSYNCD_<SECTION>_<KEY>`. Each of them overrides those before it. All wrong values
and unknown names are one `ConfigError`, with a line for each.

Standard library only, since `lipsyncd status` waits for it. Makes no folder and holds no secret.
"""

from lipsyncd.settings.current import CurrentSettings
from lipsyncd.settings.loading import load
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
    "Settings",
    "Speech",
    "Watch",
    "Web",
    "Weights",
    "load",
]
