"""The lock list and the folder of weights: which files are trusted, hashed again, or renamed as damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lipsyncd.errors import ConfigError, WeightsDamaged, WeightsMissing
from lipsyncd.settings import Settings
from lipsyncd.weights import Store, pull, read_lock, store_of
from tests.kits.core_kit import as_nobody
from tests.kits.hub_kit import noise, put, weight, write_lock

CONTENT = noise(3_000_000)
ENTRY = weight("eyes", CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder with one good weight that has no proof yet."""
    put(tmp_path / "models", ENTRY, CONTENT)
    return Store(tmp_path / "models", [ENTRY])


def state_of(store: Store) -> str:
    [present] = store.status()
    return present.state


def bytes_read(store: Store) -> int:
    """How many bytes a check reads."""
    read = [0]
    store.check(ENTRY, read.append)
    return read[-1]


# -- the lock list -----------------------------------------------------------------------------------------------------


def test_the_built_in_list_pins_everything_that_the_renderer_opens() -> None:
    weights = {w.name: w for w in read_lock()}
    assert set(weights) == {
        *("unet", "unet-float32", "unet-config", "vae", "vae-config", "whisper", "whisper-config", "dwpose", "bisenet")
    }
    assert {w.name for w in weights.values() if w.optional} == {"bisenet", "unet-float32"}
    assert {w.name for w in weights.values() if w.becomes} == {"unet", "unet-float32", "bisenet"}
    assert all(w.used_file.endswith((".safetensors", ".onnx", ".json")) for w in weights.values())
    assert weights["unet"].sha256 == "7ebf6c98c181e20838e4c0054e96e944ac60d5d692cc01db42839fe11b787007"
    assert sum(w.size_bytes for w in weights.values() if not w.extra) == 4_073_471_729


def test_the_settings_name_the_packages_list_or_the_operators(tmp_path: Path) -> None:
    assert store_of(Settings()).weights == read_lock()
    own = write_lock(tmp_path / "own.json", [ENTRY])
    settings = Settings()
    settings = replace(settings, weights=replace(settings.weights, lock=own))
    assert store_of(settings).weights == (ENTRY,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("revision", "main"),
        ("sha256", "A" * 64),
        ("size_bytes", 0),
        ("size_bytes", True),
        ("file", "../eyes.bin"),
        ("file", "/etc/passwd"),
        ("file", ".hidden/eyes.bin"),
        ("path", "a/../b"),
        ("repository", "https://elsewhere/x"),
        ("name", "Eyes!"),
        ("licence", " "),
        ("becomes", "eyes.pth"),
        ("dtype", "float64"),
        ("dtype", "float16"),
        ("only_for", ["mask"]),
        ("extra", "speed"),
        ("colour", "blue"),
    ],
)
def test_a_lock_list_with_a_wrong_field_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    path = write_lock(tmp_path / "lock.json", [ENTRY])
    [entry] = json.loads(path.read_text())
    path.write_text(json.dumps([{**entry, field: value}]))
    with pytest.raises(ConfigError, match=rf"entry 1: .*{field}"):
        read_lock(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", "[{}]"])
def test_a_file_that_is_no_lock_list_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"lock\.json"):
        read_lock(path)


def test_two_weights_cannot_share_a_name_or_a_file(tmp_path: Path) -> None:
    for other in (weight("eyes", CONTENT, file="b"), weight("ears", CONTENT, file=ENTRY.file)):
        with pytest.raises(ConfigError, match="twice"):
            read_lock(write_lock(tmp_path / "lock.json", [ENTRY, other]))


# -- the folder --------------------------------------------------------------------------------------------------------


def test_an_empty_folder_misses_everything_and_the_error_gives_the_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", [ENTRY])
    assert state_of(store) == "missing"
    with pytest.raises(WeightsMissing, match=r"eyes; run `lipsyncd models pull`"):
        store.require()
    assert not store.folder.exists()


def test_optional_weights_are_needed_by_the_options_that_name_them(tmp_path: Path) -> None:
    mask = weight("mask", b"m", only_for={"mask": "parsing"})
    store = Store(tmp_path, [ENTRY, mask])
    put(tmp_path, ENTRY, CONTENT)
    store.require({"mask": "landmarks"})
    with pytest.raises(WeightsMissing, match="mask"):
        store.require({"mask": "parsing"})


def test_a_weight_is_hashed_once_and_then_trusted(store: Store) -> None:
    assert state_of(store) == "unverified"
    assert bytes_read(store) == len(CONTENT)
    assert state_of(store) == "verified"
    assert bytes_read(Store(store.folder, [ENTRY])) == 0


def test_a_touched_file_is_hashed_again(store: Store) -> None:
    store.require()
    os.utime(store.path("eyes"))
    assert state_of(store) == "unverified"
    assert bytes_read(store) == len(CONTENT)
    assert state_of(store) == "verified"


def test_a_change_that_keeps_size_and_date_is_seen(store: Store) -> None:
    store.require()
    path = store.path("eyes")
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"?")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert state_of(store) == "unverified"
    with pytest.raises(WeightsDamaged):
        store.require()


def test_a_damaged_file_is_named_with_both_hashes_and_renamed(store: Store) -> None:
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    path = put(store.folder, ENTRY, wrong)
    with pytest.raises(WeightsDamaged) as caught:
        store.require()
    found = weight("eyes", wrong).sha256
    for text in (str(path), found, ENTRY.sha256, "eyes.bin.damaged", "lipsyncd models pull"):
        assert text in str(caught.value)
    assert not path.exists()
    assert path.with_name("eyes.bin.damaged").read_bytes() == wrong


def test_verify_hashes_a_file_that_has_a_proof(store: Store) -> None:
    store.require()
    read = [0]
    store.check(ENTRY, read.append, again=True)
    assert read[-1] == len(CONTENT)


def test_a_proof_for_another_entry_of_the_list_does_not_count(store: Store) -> None:
    store.require()
    other = replace(ENTRY, sha256="0" * 64)
    with pytest.raises(WeightsDamaged, match="0" * 64):
        Store(store.folder, [other]).require()


def test_a_copied_folder_is_hashed_again_and_verified(store: Store, tmp_path: Path) -> None:
    store.require()
    copied = Store(Path(shutil.copytree(store.folder, tmp_path / "copy")), [ENTRY])
    assert state_of(copied) == "unverified"
    copied.require()
    assert state_of(copied) == "verified"


def test_a_link_into_a_cache_is_hashed_like_a_file(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(CONTENT)
    store = Store(tmp_path / "models", [ENTRY])
    store.path("eyes").parent.mkdir(parents=True)
    store.path("eyes").symlink_to(blob)
    store.require()
    blob.write_bytes(CONTENT[::-1])
    with pytest.raises(WeightsDamaged):
        store.require()
    assert blob.exists()


def test_proofs_for_a_folder_that_cannot_be_written_go_into_the_state_folder(tmp_path: Path) -> None:
    models, proofs = tmp_path / "models", tmp_path / "state"
    put(models, ENTRY, CONTENT)
    proofs.mkdir()
    proofs.chmod(0o777)
    for folder in (models, models / "eyes"):
        folder.chmod(0o555)

    def twice() -> tuple[int, int, list[str]]:
        store = Store(models, [ENTRY], proofs=proofs / "weights")
        return bytes_read(store), bytes_read(store), os.listdir(models / "eyes")

    assert as_nobody(twice, tmp_path) == (len(CONTENT), 0, ["eyes.bin"])


def test_a_pull_into_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir(mode=0o555)

    def pull_error() -> str:
        try:
            pull(Store(models, [ENTRY]), [ENTRY])
        except WeightsMissing as error:
            return str(error)
        return "no error"

    message = as_nobody(pull_error, tmp_path)
    assert re.search(r"models cannot be filled: .*Permission denied.*; make it writable", message), message
