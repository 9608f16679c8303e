"""lipsyncd: a daemon that turns a portrait and a voice into a lip-synced MP4."""

__version__ = "0.1.0"
