"""The settings that are valid at this moment, in one object for all of their users.

A user keeps the object and reads `now` whenever it needs a value, so a change reaches all users at once.
"""

from __future__ import annotations

from collections.abc import Callable

from lipsyncd.settings.sections import Settings


class CurrentSettings:
    """`now` is immutable and may be read from any thread; only the main thread replaces it.

    A setting may name a file that is read at a change only, such as keys. Its user registers with `before_change`.
    """

    def __init__(self, settings: Settings) -> None:
        self.now = settings
        self._prepare: list[Callable[[Settings], Callable[[], None]]] = []

    def before_change(self, prepare: Callable[[Settings], Callable[[], None]]) -> None:
        """Call `prepare` with new settings before they become valid, and what it returns right afterwards.

        `prepare` raises `ConfigError` when it cannot work with them; it changes nothing itself.
        """
        self._prepare.append(prepare)

    def replace(self, settings: Settings) -> None:
        """Make these the valid settings. Raises `ConfigError` before anything has changed."""
        prepared = [prepare(settings) for prepare in self._prepare]
        self.now = settings
        for take_over in prepared:
            take_over()
