"""The UNet of parity: a second file made of the same pickle, which no render waits for and none opens unverified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("huggingface_hub")

from safetensors.torch import load_file  # noqa: E402

from lipsyncd.errors import ConfigError, DiskLow, WeightsDamaged, WeightsMissing  # noqa: E402
from lipsyncd.results.recipe import recipe_of  # noqa: E402
from lipsyncd.settings import Settings  # noqa: E402
from lipsyncd.weights import Store, Weight, pull, read_lock  # noqa: E402
from tests.kits.hub_kit import Hub, Trouble, put, running_hub, weight, write_lock  # noqa: E402
from tests.kits.installation import Installation  # noqa: E402

TENSORS = {"up.weight": torch.linspace(-3, 3, 64) / 7, "steps": torch.tensor(3)}


@pytest.fixture(scope="module")
def pickle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("pickle") / "unet.pth"
    torch.save(TENSORS, file)
    return file.read_bytes()


@pytest.fixture
def entries(pickle: bytes) -> list[Weight]:
    rounded = weight("unet", pickle, file="unet/unet.pth", becomes="unet/unet.safetensors", dtype="float16")
    parser = weight("parser", b"parser", only_for={"mask": "parsing"})
    full = replace(
        rounded, name="unet-float32", becomes="unet/unet-float32.safetensors", dtype="float32", extra="parity"
    )
    return [rounded, full, parser]


@pytest.fixture
def store(tmp_path: Path, entries: list[Weight]) -> Store:
    return Store(tmp_path / "models", entries)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entries: list[Weight], pickle: bytes) -> Iterator[Hub]:
    with running_hub() as hub:
        for entry in entries:
            hub.has(entry, b"parser" if entry.name == "parser" else pickle)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


def names_in(store: Store) -> set[str]:
    """Of the weights' folder, without proofs."""
    return {path.name for path in (store.folder / "unet").iterdir() if not path.name.endswith(".proof")}


# -- the list ----------------------------------------------------------------------------------------------------------


def test_the_built_in_list_makes_two_files_of_one_pickle() -> None:
    rounded, full = (next(w for w in read_lock() if w.name == name) for name in ("unet", "unet-float32"))
    assert rounded.source == full.source
    assert (rounded.dtype, full.dtype, full.extra) == ("float16", "float32", "parity")
    assert {w.name for w in Store(Path("/x")).wanted_for("parity")} == {w.name for w in read_lock()}


@pytest.mark.parametrize(
    "changed", [{"sha256": "0" * 64}, {"path": "other.pth"}, {"becomes": "", "dtype": ""}], ids=str
)
def test_two_entries_for_one_file_have_one_source_and_are_both_converted(
    tmp_path: Path, entries: list[Weight], changed: dict[str, str]
) -> None:
    other = replace(entries[1], **changed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="twice"):
        read_lock(write_lock(tmp_path / "lock.json", [entries[0], other]))


def test_parity_needs_the_face_parser_and_only_welcomes_the_second_unet(entries: list[Weight]) -> None:
    rounded, full, parser = entries
    assert [w.needed({"parity": True}) for w in entries] == [True, False, True]
    assert [w.needed({"parity": False}) for w in entries] == [True, False, False]
    assert (full.welcome({"parity": True}), full.welcome({}), rounded.welcome({"parity": True})) == (True, False, False)
    assert full.optional and parser.optional and not rounded.optional


# -- pulling -----------------------------------------------------------------------------------------------------------


def test_both_are_made_of_one_download(hub: Hub, store: Store, entries: list[Weight]) -> None:
    pull(store, store.wanted_for("parity"))
    assert len(hub.ranges(entries[0])) == 1
    assert names_in(store) == {"unet.safetensors", "unet-float32.safetensors"}
    rounded, full = (load_file(store.path(name))["up.weight"] for name in ("unet", "unet-float32"))
    assert (rounded.dtype, full.dtype) == (torch.float16, torch.float32)
    assert torch.equal(full, TENSORS["up.weight"]) and not torch.equal(rounded.float(), full)
    assert {present.state for present in store.status()} == {"verified"}


def test_the_second_one_is_pulled_later_too_and_kept_pickles_save_the_download(
    hub: Hub, store: Store, entries: list[Weight]
) -> None:
    pull(store, store.needed(), keep_pickles=True)
    assert names_in(store) == {"unet.pth", "unet.safetensors"}
    pull(store, store.wanted_for("parity"))
    assert len(hub.ranges(entries[0])) == 1
    assert store.path("unet-float32").exists()


def test_what_an_interrupted_pull_for_parity_fetched_is_used_and_an_ordinary_pull_removes_it(
    hub: Hub, store: Store, entries: list[Weight], pickle: bytes
) -> None:
    pull(store, store.needed())
    hub.troubles["unet.bin"] = Trouble()
    part = store.original_path(entries[0]).with_name(f".unet.pth.{entries[0].sha256[:12]}.part")
    part.write_bytes(pickle)  # complete: killed before the conversion
    requests = len(hub.asked)
    pull(store, [entries[1]])
    assert len(hub.asked) == requests
    assert store.path("unet-float32").exists() and not part.exists()

    store.path("unet-float32").unlink()
    part.write_bytes(pickle[:100])
    pull(store, store.needed())
    assert not part.exists()


def test_a_download_counts_once_against_the_free_space(
    hub: Hub, store: Store, entries: list[Weight], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [replace(entry, size_bytes=10**15) for entry in entries[:2]]
    with pytest.raises(DiskLow, match=r": 2500000000 MB for the weights"):  # one download, half of it, all of it
        pull(Store(store.folder, large), large)


# -- renders -----------------------------------------------------------------------------------------------------------


def test_a_render_for_parity_waits_for_the_parser_and_opens_no_unverified_unet(hub: Hub, store: Store) -> None:
    pull(store, store.needed())
    with pytest.raises(WeightsMissing, match="parser"):
        store.require({"parity": True})
    pull(store, [store.weight("parser")])
    store.require({"parity": True})  # the second unet is not there
    store.path("unet-float32").write_bytes(b"of somebody")
    store.require({})
    with pytest.raises(WeightsDamaged, match=r"unet-float32\.safetensors .* was made from an unknown file"):
        store.require({"parity": True})
    assert not store.path("unet-float32").exists()
    store.require({"parity": True})


def test_videos_made_with_and_without_the_second_unet_are_different(tmp_path: Path, entries: list[Weight]) -> None:
    settings = Settings()
    lock = write_lock(tmp_path / "lock.json", entries)
    settings = replace(settings, weights=replace(settings.weights, lock=lock, dir=tmp_path / "models"))
    before = recipe_of(settings)
    put(tmp_path / "models", replace(entries[1], file=entries[1].used_file), b"anything")
    assert recipe_of(settings) != before


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_pulls_all_that_parity_opens_and_doctor_does_not_miss_it(
    installation: Installation, hub: Hub, entries: list[Weight]
) -> None:
    lock = write_lock(installation.root / "lock.json", entries)
    installation.changes["weights"] = {"lock": str(lock), "auto_pull": False}
    installation.changes["render"] = {"renderer": "musetalk"}
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(installation.root / "hf")}
    plain = installation.cli("models", "pull", "--keep-pickles", **environment)
    assert plain.stdout.endswith(": unet\n")
    doctor = installation.cli("doctor", "--json", **environment)
    assert "1 files, " in doctor.stdout and "unet-float32" not in doctor.stdout

    pulled = installation.cli("models", "pull", "--parity", **environment)
    assert pulled.stdout.endswith(": unet, unet-float32, parser\n")
    assert installation.cli("models", "verify").stdout.splitlines() == [
        "unet: verified",
        "unet-float32: verified",
        "parser: verified",
    ]
