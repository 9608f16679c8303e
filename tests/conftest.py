"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A scratch installation. A daemon that a test leaves running is ended."""
    home = Home(tmp_path)
    yield home
    if home.daemon is not None:
        home.daemon.kill()
        home.daemon.wait(10)
