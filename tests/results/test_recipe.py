"""What makes two videos of the same inputs equal: how their networks are computed is a part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lipsyncd.processes import usable_cores
from lipsyncd.results.recipe import kernel_cache, recipe_of
from lipsyncd.settings import Settings
from tests.kits.installation import Installation


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Installation(tmp_path).settings


def changed(settings: Settings, **render: Any) -> str:
    return recipe_of(replace(settings, render=replace(settings.render, **render)))


def test_the_recipe_names_how_the_networks_are_computed(settings: Settings) -> None:
    plain = changed(settings, devices=("cuda:0",))
    assert changed(settings, devices=("cuda:0",), kernels="published") != plain
    assert changed(settings, devices=("cuda:0",), cpu_precision="bfloat16") != plain
    assert changed(settings, devices=("cuda:0",), threads=7) == plain, "a GPU has no such threads"
    assert changed(settings, devices=("cpu",), threads=7) != changed(settings, devices=("cpu",), threads=6)
    assert changed(settings, devices=("cpu",)) == changed(settings, devices=("cpu",), threads=usable_cores())


def test_the_recipe_names_the_encoder_and_its_threads(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe_of(settings)
    assert recipe_of(replace(settings, output=replace(settings.output, encoder="nvenc"))) != plain
    monkeypatch.setattr("lipsyncd.results.recipe.encoder_threads", lambda: 7)
    assert recipe_of(settings) != plain


def test_the_recipe_names_what_was_found_about_the_kernels_of_this_machine(settings: Settings) -> None:
    before, folder = recipe_of(settings), kernel_cache(settings)
    folder.mkdir(parents=True)
    (folder / "0123.json").write_text('{"fault": ""}')
    passed = recipe_of(settings)
    (folder / "0123.json").write_text('{"fault": "pictures differ"}')
    assert len({before, passed, recipe_of(settings)}) == 3


def test_the_cores_of_a_process_follow_its_affinity_its_control_group_and_openmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    place = next(
        (line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/")), None
    )
    assert usable_cores({}, tmp_path) == 8
    assert usable_cores({"OMP_NUM_THREADS": "3"}, tmp_path) == 3
    assert usable_cores({"OMP_NUM_THREADS": "many"}, tmp_path) == 8
    if place is None:
        pytest.skip("this system has no control groups of version 2")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / "cpu.max").write_text("450000 100000\n")
    assert usable_cores({}, tmp_path) == 5
    (tmp_path / place / "cpu.max").write_text("max 100000\n" if place else "150000 100000\n")
    assert usable_cores({}, tmp_path) == (5 if place else 2)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores({}, tmp_path) == 1
