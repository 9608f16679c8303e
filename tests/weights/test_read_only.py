"""Weights in a folder that lipsyncd may not write, such as a read-only mount of the original's `models/`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import WeightsDamaged
from lipsyncd.settings import load
from lipsyncd.storage.files import read_json
from lipsyncd.weights import Store, pull, store_of
from tests.kits.faults.faulty_renderers import NAMES
from tests.kits.hub_kit import noise, put, running_hub, weight, write_lock
from tests.kits.installation import Installation
from tests.kits.machine.container_kit import cannot_run

EYES, EARS = noise(300_000, 1), noise(50_000, 2)
EYES_ENTRY, EARS_ENTRY = weight("eyes", EYES), weight("ears", EARS)

needs_mounts = pytest.mark.skipif(bool(cannot_run("mount")), reason=cannot_run("mount") or "-")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """`models/` with one weight, mounted read-only."""
    folder = tmp_path / "models"
    put(folder, EYES_ENTRY, EYES)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@needs_mounts
def test_a_job_uses_the_files_of_a_read_only_mount_and_fetches_the_rest(tmp_path: Path, mounted: Path) -> None:
    lock = write_lock(tmp_path / "lock.json", [EYES_ENTRY, EARS_ENTRY])
    installation = Installation(
        tmp_path,
        changes={
            "render": {"renderers": [*NAMES, "musetalk=tests.kits.faults.faulty_renderers:Flat"]},
            "weights": {"lock": str(lock), "dir": str(mounted)},
        },
    )
    with running_hub() as hub, installation.running(HF_ENDPOINT=hub.url):
        hub.has(EARS_ENTRY, EARS)
        installation.drop_manifest("anna", image="anna.png", audio="anna.wav", renderer="musetalk")
        installation.drop_pair("anna", with_face=True)
        installation.until_done("anna")
        assert not hub.ranges(EYES_ENTRY)
    own = tmp_path / "storage" / "weights"
    assert (own / EYES_ENTRY.file).readlink() == mounted / EYES_ENTRY.file
    assert (own / EARS_ENTRY.file).read_bytes() == EARS
    assert [path.name for path in mounted.rglob("*") if path.is_file()] == ["eyes.bin"]
    listed = installation.cli("models", "list")
    assert str(own) in listed.stdout
    assert listed.stdout.count(" verified ") == 2


@needs_mounts
def test_before_the_first_job_the_files_are_unlinked_and_the_doctor_reports_it(tmp_path: Path, mounted: Path) -> None:
    lock = write_lock(tmp_path / "lock.json", [EYES_ENTRY])
    installation = Installation(
        tmp_path,
        changes={
            "weights": {"lock": str(lock), "dir": str(mounted), "auto_pull": False},
            "render": {"renderer": "musetalk"},
        },
    )
    [present] = store_of(installation.settings).status()
    assert (present.state, present.path) == ("unlinked", mounted / EYES_ENTRY.file)
    assert "eyes unlinked" in installation.cli("doctor").stdout
    assert installation.cli("models", "pull").returncode == 0
    [present] = store_of(installation.settings).status()
    assert present.state == "verified"


def test_a_pickle_in_a_read_only_folder_is_converted_into_our_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"up.weight": torch.ones(2, 3)}, tmp_path / "saved")
    content = (tmp_path / "saved").read_bytes()
    entry = weight("net", content, becomes="net/net.safetensors", dtype="float16")
    put(tmp_path / "given", entry, content)
    store = Store(tmp_path / "own", [entry], read_only=tmp_path / "given")
    assert [present.state for present in store.status()] == ["unlinked"]
    pull(store, [entry])
    store.require()
    assert store.path("net") == tmp_path / "own" / "net" / "net.safetensors"
    assert [path.name for path in (tmp_path / "given" / "net").iterdir()] == ["net.bin"]


def test_a_wrong_file_in_a_read_only_folder_is_refused_by_name(tmp_path: Path) -> None:
    file = put(tmp_path / "given", EYES_ENTRY, EYES[:-1] + b"?")
    store = Store(tmp_path / "own", [EYES_ENTRY], read_only=tmp_path / "given")
    with pytest.raises(WeightsDamaged) as refused:
        pull(store, [EYES_ENTRY])
    assert str(file) in str(refused.value)
    assert f"take it out of {tmp_path / 'given'}" in refused.value.remedy
    assert file.exists()
    assert not store.path("eyes").exists()


def test_a_folder_that_can_be_written_is_filled_itself(tmp_path: Path) -> None:
    installation = Installation(tmp_path, changes={"weights": {"dir": str(tmp_path / "models")}})
    for _ in "before", "after":
        store = store_of(load(installation.config, environ={"HOME": str(tmp_path)}))
        assert (store.folder, store.read_only) == (tmp_path / "models", None)
        (tmp_path / "models").mkdir(exist_ok=True)


def test_a_file_that_changes_in_a_read_only_folder_is_hashed_again(tmp_path: Path) -> None:
    file = put(tmp_path / "given", EYES_ENTRY, EYES)
    store = Store(tmp_path / "own", [EYES_ENTRY], read_only=tmp_path / "given")
    pull(store, [EYES_ENTRY])
    store.require()
    file.write_bytes(EYES[:-1] + b"?")
    with pytest.raises(WeightsDamaged):
        store.require()
    assert file.exists()
    assert (read_json(store.folder / "eyes" / ".eyes.bin.proof") or {})["from"] == EYES_ENTRY.sha256
