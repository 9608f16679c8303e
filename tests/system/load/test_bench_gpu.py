"""`make bench-gpu`: every line of it, with tiny networks on a CPU; and what it says where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kits.installation import ROOT

torch = pytest.importorskip("torch")


def bench_gpu(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_without_a_gpu_it_says_so_and_measures_nothing() -> None:
    assert "finds no GPU on this machine, so nothing was measured" in bench_gpu()


@pytest.mark.slow
def test_a_dry_run_prints_every_table() -> None:
    text = bench_gpu("--dry-run")
    assert "these figures mean nothing" in text and "The fused networks pass" in text
    for row in (
        "| first on this machine |",
        "| later |",
        "| published | 2 |",
        "| decoder, fused |",
        "| stitched, 640x360 |",
    ):
        assert row in text, row
    for aim in (55, 45, 35):
        assert f"aim {aim}: " in text
    assert "Between two jobs" in text and "aim 100" in text
