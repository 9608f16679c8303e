"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.ledger.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger in the test's own folder."""
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()
