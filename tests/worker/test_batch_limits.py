"""What did not fit into a device's memory is remembered, and forgotten again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipsyncd.worker.batch_limits import BatchLimits

DAY_MS = 24 * 3_600_000
TERMS = "cap=14GB device=15.8GB"


class Calendar:
    """Milliseconds since 1970 that pass only when a test moves them."""

    def __init__(self) -> None:
        self.now_ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ceilings.json"


def test_a_limit_outlives_the_daemon_that_found_it(file: Path) -> None:
    first = BatchLimits(file)
    assert first.most("cuda:0", "musetalk", TERMS) == 0
    first.lower("cuda:0", "musetalk", TERMS, 8)
    first.lower("cuda:0", "musetalk", TERMS, 4)
    first.lower("cuda:1", "musetalk", TERMS, 2)

    for limits in (first, BatchLimits(file)):
        assert limits.most("cuda:0", "musetalk", TERMS) == 4
        assert limits.most("cuda:1", "musetalk", TERMS) == 2
        assert limits.most("cuda:0", "preview", TERMS) == 0


def test_a_limit_does_not_hold_under_other_terms(file: Path) -> None:
    limits = BatchLimits(file)
    limits.lower("cuda:0", "musetalk", TERMS, 4)
    assert limits.most("cuda:0", "musetalk", TERMS.replace("14", "20")) == 0


@pytest.mark.parametrize(("after_ms", "most"), [(DAY_MS - 1, 4), (DAY_MS, 0), (-2 * DAY_MS, 0)])
def test_more_is_tried_again_after_a_day_and_when_the_clock_went_back(file: Path, after_ms: int, most: int) -> None:
    calendar = Calendar()
    BatchLimits(file, calendar).lower("cpu", "musetalk", TERMS, 4)
    calendar.now_ms += after_ms
    assert BatchLimits(file, calendar).most("cpu", "musetalk", TERMS) == most


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b'{"musetalk on cpu": 3}',
        b'{"musetalk on cpu": {"most": "4", "terms": "t", "at_ms": 1}}',
        b'{"musetalk on cpu": {"most": true, "terms": "t", "at_ms": 1}}',
        b'{"musetalk on cpu": {"most": 0, "terms": "t", "at_ms": 1}}',
        b'{"musetalk on cpu": {"most": 4, "terms": null, "at_ms": 1}}',
        b'{"musetalk on cpu": {"most": 4, "terms": "t"}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_worth_nothing_and_stops_nothing(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    limits = BatchLimits(file, lambda: 1)
    assert limits.most("cpu", "musetalk", "t") == 0
    limits.lower("cpu", "musetalk", "t", 2)
    assert json.loads(file.read_bytes())["musetalk on cpu"] == {"most": 2, "terms": "t", "at_ms": 1}


def test_a_disk_that_refuses_leaves_the_limit_in_memory(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = BatchLimits(file / "no such folder" / "ceilings.json")
    limits.lower("cpu", "musetalk", TERMS, 4)
    assert limits.most("cpu", "musetalk", TERMS) == 4
    assert "is not written" in caplog.text
