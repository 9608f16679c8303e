"""Pickles: each is read once, in the jail, after its hash was checked; how it is converted, and which are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from lipsyncd.errors import WeightsDamaged, WeightsMissing  # noqa: E402
from lipsyncd.renderers.musetalk.convert import Refused, load, write  # noqa: E402
from lipsyncd.weights import AutoPull, Store, Weight, pull  # noqa: E402
from lipsyncd.weights.store import hash_file  # noqa: E402
from tests.kits.hub_kit import put, running_hub, weight  # noqa: E402

TENSORS = {
    "up.weight": torch.linspace(-3, 3, 24).reshape(2, 3, 4),
    "up.bias": torch.tensor([65504.0, 1e-8, -0.1]),
    "turned": torch.arange(12.0).reshape(3, 4).t(),
    "counted": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}
BOTH_FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["archive", "before torch 1.6"])


def saved(path: Path, value: object, *, archive: bool = True) -> bytes:
    torch.save(value, path, _use_new_zipfile_serialization=archive)
    return path.read_bytes()


def entry_of(content: bytes) -> Weight:
    return weight("unet", content, file="unet/unet.pth", becomes="unet/unet.safetensors", dtype="float16")


def given(tmp_path: Path, content: bytes) -> Store:
    """A folder with a pickle whose hash is in the lock list."""
    entry = entry_of(content)
    put(tmp_path / "models", entry, content)
    return Store(tmp_path / "models", [entry])


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Such a folder after a pull. Tests must not change it."""
    folder = tmp_path_factory.mktemp("converted")
    store = given(folder, saved(folder / "x", TENSORS))
    assert store.status()[0].state == "unconverted"
    pull(store, store.weights)
    return store


@pytest.fixture
def copied(converted: Store, tmp_path: Path) -> Store:
    """A copy of it, without the pickle."""
    store = Store(Path(shutil.copytree(converted.folder, tmp_path / "copied")), converted.weights)
    store.original_path(store.weights[0]).unlink()
    return store


# -- the conversion ----------------------------------------------------------------------------------------------------


def test_a_pickle_becomes_safetensors_of_half_precision(converted: Store) -> None:
    assert converted.status()[0].state == "verified"
    found = load_file(converted.path("unet"))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        wanted = tensor.half() if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted)
    with safetensors.safe_open(converted.path("unet"), "pt") as file:
        assert file.metadata() == {"format": "pt", "sha256_of_source": converted.weights[0].sha256}


def test_a_pickle_that_was_there_before_stays_and_nothing_else_does(converted: Store) -> None:
    assert sorted(os.listdir(converted.folder / "unet")) == [".unet.safetensors.proof", "unet.pth", "unet.safetensors"]


@BOTH_FORMATS
def test_both_formats_of_torch_are_read(tmp_path: Path, archive: bool) -> None:
    saved(tmp_path / "x", TENSORS, archive=archive)
    found = load(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_full_precision_is_kept_if_the_list_requires_it_and_the_bytes_are_reproducible(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
        write(TENSORS, tmp_path / name, dtype=torch.float32, made_from="f" * 64)
    assert torch.equal(load_file(tmp_path / "a")["up.bias"], TENSORS["up.bias"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_header_gives_the_offsets_of_each_tensor(converted: Store) -> None:
    data = converted.path("unet").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    ends = [entry["data_offsets"][1] for name, entry in sorted(header.items()) if name != "__metadata__"]
    assert ends == sorted(ends)
    assert 8 + length + ends[-1] == len(data)


def test_a_fetched_pickle_stays_if_pickles_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    content = saved(tmp_path / "x", TENSORS)
    entry = entry_of(content)
    store = Store(tmp_path / "models", [entry])
    with running_hub() as hub:
        hub.has(entry, content)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        pull(store, [entry], keep_pickles=True)
    assert load_file(store.path("unet")).keys() == TENSORS.keys()
    assert store.original_path(entry).read_bytes() == content


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    torch.save({f"layer{n}": torch.full((2 << 20,), float(n)) for n in range(36)}, tmp_path / "x")  # 36 of 8 MB
    target = tmp_path / "y"
    target.touch()
    grown_kb = peak_of_anonymous_kb(lambda: write(load(tmp_path / "x"), target, dtype=torch.float16, made_from=""))
    assert grown_kb < 40_000
    assert target.stat().st_size > 36 << 22


def peak_of_anonymous_kb(work: Callable[[], None]) -> int:
    """How much anonymous memory `work` needs at most, beyond what this process has."""
    before, peak, done = anonymous_kb(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous_kb() - before)

    with_it = threading.Thread(target=look)
    with_it.start()
    work()
    done.set()
    with_it.join()
    return peak[0]


def anonymous_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


# -- refused pickles ---------------------------------------------------------------------------------------------------


class Evil:
    """Runs a command when it is unpickled without limits."""

    def __init__(self, done: Path) -> None:
        self.done = done

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.done}",))


def test_an_evil_pickle_is_refused_although_its_hash_is_right(tmp_path: Path) -> None:
    store = given(tmp_path, saved(tmp_path / "x", {"w": Evil(tmp_path / "done")}))
    with pytest.raises(WeightsDamaged, match=r"but was refused: .*unsupported GLOBAL posix.system") as caught:
        pull(store, store.weights)
    assert "weights_only" not in str(caught.value)  # torch's advice to turn safety off is not passed on
    assert not (tmp_path / "done").exists()
    assert os.listdir(store.folder / "unet") == ["unet.pth"]
    torch.load(tmp_path / "x", weights_only=False)
    assert (tmp_path / "done").exists()  # it was evil indeed


def test_an_evil_pickle_of_the_older_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "x", {"w": Evil(tmp_path / "done")}, archive=False)
    with pytest.raises(Refused, match=r"nsupported"):
        load(tmp_path / "x")
    assert not (tmp_path / "done").exists()


def test_a_pickle_with_a_wrong_hash_is_not_opened(tmp_path: Path) -> None:
    store = given(tmp_path, saved(tmp_path / "x", TENSORS))
    store.original_path(store.weights[0]).write_bytes(b"another")
    with pytest.raises(WeightsDamaged, match=f"not {store.weights[0].sha256}"):
        pull(store, store.weights)
    assert not store.path("unet").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "it holds a list"),
        ({}, "it holds a dict"),
        ({"a": {"b": torch.zeros(1)}}, "'a' in it"),
        ({"a": torch.zeros(1, dtype=torch.complex64)}, "'a' in it"),
        ({1: torch.zeros(1)}, "1 in it"),
    ],
    ids=["list", "nothing", "nested", "complex", "number"],
)
def test_a_pickle_that_is_not_a_mapping_to_tensors_is_refused(tmp_path: Path, value: object, message: str) -> None:
    saved(tmp_path / "x", value)
    with pytest.raises(Refused, match=message):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "torch.save"),
        (bytes(1000), "torch.save"),
        (b"cposix\nsystem\n(S'true'\ntR.", "torch.save"),
        (b"PK\x03\x04" + bytes(1000), "not a plain archive"),
    ],
    ids=["empty", "zeros", "bare pickle", "no zip"],
)
def test_a_file_that_torch_has_not_written_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Refused, match=message):
        load(tmp_path / "x")


def test_a_pickle_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    for archive in (True, False):
        (tmp_path / "y").write_bytes(saved(tmp_path / "x", TENSORS, archive=archive)[:-60])
        with pytest.raises(Refused):
            load(tmp_path / "y")


# -- converted files ---------------------------------------------------------------------------------------------------


def test_a_changed_converted_file_is_found_by_its_recorded_hash(copied: Store) -> None:
    path = copied.path("unet")
    copied.require()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(WeightsDamaged, match=r"has sha256 \w{64}, not \w{64}, and was renamed"):
        copied.require()


def test_a_machine_without_a_network_copies_a_converted_file_whose_hash_the_list_has(
    copied: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    here = Store(tmp_path / "here", [with_hash(copied)])
    pull(here, here.weights, source=copied.folder)
    here.require()
    assert here.path("unet").read_bytes() == copied.path("unet").read_bytes()


def with_hash(store: Store) -> Weight:
    """The entry of its only weight, with the hash of the converted file."""
    return replace(store.weights[0], becomes_sha256=hash_file(store.path("unet"))[0])


def forged(store: Store) -> bytes:
    """Change the converted file of a folder, and write the proof that belongs to the changed one."""
    path = store.path("unet")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    store.save_proof(store.weights[0], *hash_file(path))
    store.require()
    return path.read_bytes()


def test_a_proof_in_the_source_folder_proves_nothing(
    copied: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = with_hash(copied)
    forged(copied)
    listed = Store(tmp_path / "listed", [entry])
    with pytest.raises(WeightsDamaged, match=f"not {entry.becomes_sha256}"):
        pull(listed, listed.weights, source=copied.folder)
    unlisted = Store(tmp_path / "unlisted", copied.weights)
    with pytest.raises(WeightsMissing, match=r"unet\.safetensors cannot be checked, since .* no hash of it; copy unet"):
        pull(unlisted, unlisted.weights, source=copied.folder)
    for store in (listed, unlisted):
        assert not store.path("unet").exists()


def test_the_pickle_of_the_source_folder_is_converted_if_the_list_has_no_other_hash(
    converted: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = Store(Path(shutil.copytree(converted.folder, tmp_path / "given")), converted.weights)
    changed = forged(given)
    here = Store(tmp_path / "here", given.weights)
    pull(here, here.weights, source=given.folder)
    assert here.path("unet").read_bytes() == converted.path("unet").read_bytes() != changed


def test_a_conversion_that_gives_another_file_than_the_list_has_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "x", TENSORS)
    entry = replace(entry_of(content), becomes_sha256="0" * 64)
    put(tmp_path / "models", entry, content)
    store = Store(tmp_path / "models", [entry])
    with pytest.raises(WeightsDamaged, match=rf"was converted to a file with sha256 \w+, not {'0' * 64}; correct"):
        pull(store, [entry])
    assert os.listdir(store.folder / "unet") == ["unet.pth"]


def test_a_converted_file_without_a_proof_is_converted_again_although_pulling_is_off(tmp_path: Path) -> None:
    store = given(tmp_path, saved(tmp_path / "x", TENSORS))
    path = store.path("unet")
    path.write_bytes(b"from somewhere")
    auto = AutoPull(store, allowed=False)
    with pytest.raises(WeightsDamaged, match="was made from an unknown file"):
        auto.require()
    with pytest.raises(WeightsMissing, match="being pulled"):
        auto.require()
    while auto.busy:
        time.sleep(0.02)
    auto.require()
    assert load_file(path).keys() == TENSORS.keys()
    assert path.with_name("unet.safetensors.damaged").read_bytes() == b"from somewhere"
