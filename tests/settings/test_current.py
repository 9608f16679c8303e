"""The holder of the valid settings: a change reaches all users, or none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lipsyncd.errors import ConfigError
from lipsyncd.settings import CurrentSettings, Render, Settings


def test_a_change_is_prepared_first_and_then_taken_over_by_every_user() -> None:
    settings, steps = CurrentSettings(Settings()), list[tuple[str, int]]()

    def prepare(new: Settings) -> Callable[[], None]:
        assert settings.now.render.max_attempts == 3
        steps.append(("prepared", new.render.max_attempts))
        return lambda: steps.append(("taken over", settings.now.render.max_attempts))

    settings.before_change(prepare)
    settings.before_change(prepare)
    settings.replace(Settings(render=Render(max_attempts=5)))
    assert steps == [("prepared", 5)] * 2 + [("taken over", 5)] * 2


def test_a_change_that_one_user_refuses_reaches_no_user() -> None:
    before = Settings()
    settings, taken_over = CurrentSettings(before), list[str]()

    def refuse(_new: Settings) -> Callable[[], None]:
        raise ConfigError("a key is too short")

    settings.before_change(lambda _new: lambda: taken_over.append("keys"))
    settings.before_change(refuse)
    with pytest.raises(ConfigError, match="too short"):
        settings.replace(Settings(render=Render(max_attempts=5)))
    assert settings.now is before
    assert taken_over == []
