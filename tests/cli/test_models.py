"""`lipsyncd models` as a user runs it: real processes, the real client, a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kits.hub_kit import Hub, Trouble, lock_of, noise, put, running_hub, weight, write_lock
from tests.kits.installation import Installation

EYES, MASK = noise(2_000_000), noise(700, seed=1)
EYES_ENTRY = weight("eyes", EYES)
MASK_ENTRY = weight("mask", MASK, only_for={"mask": "parsing"})


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    """An installation with a lock list of its own: `eyes` is needed, `mask` is optional."""
    lock = write_lock(tmp_path / "lock.json", [EYES_ENTRY, MASK_ENTRY])
    return Installation(tmp_path, changes={"weights": {"lock": str(lock)}})


@pytest.fixture
def hub(installation: Installation) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        hub.has(EYES_ENTRY, EYES)
        hub.has(MASK_ENTRY, MASK)
        yield hub


def models(installation: Installation, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return installation.cli("models", *arguments, HF_HOME=str(installation.root / "hf"), **environment)


def states(installation: Installation) -> dict[str, str]:
    listed = json.loads(models(installation, "list", "--json").stdout)
    return {entry["name"]: entry["state"] for entry in listed["weights"]}


def test_pull_fetches_required_weights_and_optional_ones_by_name(installation: Installation, hub: Hub) -> None:
    pulled = models(installation, "pull", HF_ENDPOINT=hub.url)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"ready in {installation.path('models')}: eyes\n"
    assert "eyes, 2.0 MB: ready 100%" in pulled.stderr.splitlines()
    assert states(installation) == {"eyes": "verified", "mask": "missing"}
    assert models(installation, "pull", "mask", HF_ENDPOINT=hub.url).returncode == 0
    assert states(installation) == {"eyes": "verified", "mask": "verified"}


def test_in_a_terminal_a_bar_shows_the_progress_of_a_pull(installation: Installation, hub: Hub) -> None:
    terminal, theirs = os.openpty()
    command = [sys.executable, "-m", "lipsyncd", "--config", str(installation.config), "models", "pull"]
    environment = installation.environment(
        HF_ENDPOINT=hub.url, HF_HOME=str(installation.root / "hf"), TERM="xterm", COLUMNS="120"
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as pulling:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal is closed when the command ends
            while output := os.read(terminal, 65536):
                shown += output
    os.close(terminal)
    assert pulling.returncode == 0, shown
    assert "━━━━━━━━" in shown.decode()
    assert "100%" in shown.decode()
    assert states(installation)["eyes"] == "verified"


def test_pull_from_a_folder_needs_no_hub(installation: Installation, tmp_path: Path) -> None:
    put(tmp_path / "given", EYES_ENTRY, EYES)
    pulled = models(installation, "pull", "--from", tmp_path / "given", HF_HUB_OFFLINE="1")
    assert pulled.returncode == 0, pulled.stderr
    assert states(installation)["eyes"] == "verified"


def test_other_weights_need_a_lock_list_and_no_hub(tmp_path: Path) -> None:
    given = tmp_path / "trained"
    (given / "musetalkV15").mkdir(parents=True)
    (given / "musetalkV15" / "unet.safetensors").write_bytes(EYES)
    (given / "musetalkV15" / "musetalk.json").write_bytes(b"{}")
    lock = write_lock(tmp_path / "lock.json", lock_of(given))
    installation = Installation(tmp_path, changes={"weights": {"lock": str(lock), "dir": str(given)}})
    assert states(installation) == {"w0": "unverified", "w1": "unverified"}
    assert models(installation, "pull", HF_HUB_OFFLINE="1").returncode == 0
    assert states(installation) == {"w0": "verified", "w1": "verified"}


def test_a_failed_pull_prints_one_line_with_the_remedy(installation: Installation, hub: Hub, tmp_path: Path) -> None:
    hub.troubles["eyes.bin"] = Trouble(status=404, code="RepoNotFound")
    for environment, message in (
        ({"HF_HUB_OFFLINE": "1"}, "--from DIR"),
        ({"HF_ENDPOINT": hub.url}, "RepositoryNotFoundError"),
    ):
        failed = models(installation, "pull", **environment)
        assert failed.returncode == 1
        [line] = [line for line in failed.stderr.splitlines() if line.startswith("lipsyncd: ")]
        assert message in line
        assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "ears"], "choose from eyes, mask"),
        (["pull", "--from", "/nonexistent"], "/nonexistent"),
        (["no"], "no"),
    ],
    ids=["name", "folder", "command"],
)
def test_wrong_usage_ends_with_2(installation: Installation, arguments: list[str], message: str) -> None:
    wrong = models(installation, *arguments)
    assert wrong.returncode == 2
    assert message in wrong.stderr


def test_verify_finds_damaged_and_missing_files(installation: Installation) -> None:
    assert models(installation, "verify").returncode == 1
    put(installation.path("models"), EYES_ENTRY, EYES)
    good = models(installation, "verify")
    assert good.returncode == 0, good.stdout
    first, second = good.stdout.splitlines()
    assert first == "eyes: verified"
    assert second.startswith("mask: optional, ")
    put(installation.path("models"), weight("old", b"of an earlier version", file="old/detector.onnx"), b"anything")
    assert models(installation, "verify").stdout == good.stdout  # what the list does not name is left alone
    put(installation.path("models"), MASK_ENTRY, MASK[::-1])
    bad = models(installation, "verify")
    assert bad.returncode == 1
    assert f"{weight('mask', MASK[::-1]).sha256}, not {MASK_ENTRY.sha256}" in bad.stdout


def test_list_shows_every_weight_of_the_package_with_its_licence(tmp_path: Path) -> None:
    shown = models(Installation(tmp_path), "list")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0] == str(tmp_path / "storage" / "models")
    assert [line.split()[0] for line in lines[1:]] == [
        *("unet", "unet-float32", "unet-config", "vae", "vae-config", "whisper", "whisper-config", "dwpose", "bisenet")
    ]
    assert all("missing" in line for line in lines[1:])
    assert "3.4 GB" in lines[1]
    assert "research only" in lines[-1]


def test_list_in_json_has_the_fields_that_a_mirror_needs(installation: Installation) -> None:
    listed = json.loads(models(installation, "list", "--json").stdout)
    assert listed["weights"][0] == {
        "name": "eyes",
        "state": "missing",
        "path": None,
        "size_bytes": 0,
        "optional": False,
        "only_for": {},
        "purpose": "is eyes",
        "licence": "MIT",
        "repository": "example/eyes",
        "revision": EYES_ENTRY.revision,
        "source_file": "eyes.bin",
        "source_size_bytes": len(EYES),
        "source_sha256": EYES_ENTRY.sha256,
    }


def test_a_lock_list_that_is_wrong_stops_with_78(installation: Installation, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("[{}]")
    wrong = models(installation, "list")
    assert wrong.returncode == 78
    assert "entry 1" in wrong.stderr
