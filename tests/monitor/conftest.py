"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lipsyncd.ledger.ledger import Ledger
from tests.kits.installation import Installation


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    """An empty ledger in an installation whose folders are made."""
    installation.folders.initialise()
    ledger = Ledger(installation.path("state") / "ledger.db")
    yield ledger
    ledger.close()
