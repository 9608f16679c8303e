"""Pulling weights: the real huggingface_hub client, in its real process, against a hub with every kind of fault."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.errors import Blocked, DiskLow, WeightsDamaged, WeightsMissing, WeightsUnreachable
from lipsyncd.weights import AutoPull, PullStopped, Step, Store, pull
from tests.kits.core_kit import Clock
from tests.kits.hub_kit import Hub, Trouble, noise, put, running_hub, weight
from tests.kits.installation import ROOT
from tests.kits.machine.processes import children_of, command_of

pytest.importorskip("huggingface_hub")

CHUNK = 10 << 20  # what huggingface_hub reads before it writes: a broken download loses at most that
EYES, EARS = noise(24_000_000), noise(40, seed=1)
EYES_ENTRY, EARS_ENTRY = weight("eyes", EYES), weight("ears", EARS)
BOTH = (EYES_ENTRY, EARS_ENTRY)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has both files, and an environment that names this hub only."""
    with running_hub() as hub:
        hub.has(EYES_ENTRY, EYES)
        hub.has(EARS_ENTRY, EARS)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models", BOTH)


def left_over(store: Store) -> list[str]:
    """Files in the folder other than weights, proofs and the lock."""
    names = [path.name for path in store.folder.rglob("*") if path.is_file()]
    return sorted(n for n in names if not n.endswith(".proof") and n not in (".pull.lock", "eyes.bin", "ears.bin"))


def part_of(store: Store) -> Path:
    """The partial file of the download of `eyes`."""
    return store.path("eyes").with_name(f".eyes.bin.{EYES_ENTRY.sha256[:12]}.part")


def wait_for(done: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- from the hub ------------------------------------------------------------------------------------------------------


def test_a_pull_fetches_and_verifies_everything_and_leaves_nothing_else(hub: Hub, store: Store) -> None:
    steps: list[Step] = []
    pull(store, BOTH, report=steps.append)
    assert store.path("eyes").read_bytes() == EYES
    assert store.path("ears").read_bytes() == EARS
    assert [present.state for present in store.status()] == ["verified", "verified"]
    assert left_over(store) == []
    assert [s.weight.name for s in steps if s.doing == "ready"] == ["eyes", "ears"]
    assert all(0 <= s.done_bytes <= s.weight.size_bytes for s in steps)


def test_a_second_pull_sends_no_request(hub: Hub, store: Store) -> None:
    pull(store, BOTH)
    hub.asked.clear()
    pull(store, BOTH)
    assert hub.asked == []


def test_a_broken_download_resumes_where_it_broke(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(cut_at=15_000_000)
    pull(store, [EYES_ENTRY])
    assert hub.ranges(EYES_ENTRY) == ["", f"bytes={CHUNK}-"]
    assert store.path("eyes").read_bytes() == EYES


def test_a_redirected_download_does_not_get_our_token(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.troubles["eyes.bin"] = Trouble(moved=True)
    part_of(store).parent.mkdir(parents=True)
    part_of(store).write_bytes(EYES[:1000])
    pull(store, [EYES_ENTRY])
    assert store.path("eyes").read_bytes() == EYES
    assert hub.ranges(EYES_ENTRY) == ["bytes=1000-", "bytes=1000-"]
    assert hub.tokens == ["Bearer hf_secret", ""]


def test_a_download_inherits_the_way_to_the_hub_and_no_secret(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ("LIPSYNCD_API_KEY", "CREDENTIALS_DIRECTORY", "AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET", "LD_PRELOAD")
    wanted = ("NO_PROXY", "no_proxy", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
    for name in (*secrets, *wanted):
        monkeypatch.setenv(name, f"of {name}")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SSL_CERT_DIR", "/etc/ssl/certs")
    hub.troubles["eyes.bin"] = Trouble(hold_at=0)
    found: dict[str, str] = {}

    def look(step: Step) -> None:
        if step.doing == "fetching" and hub.held.is_set():
            found.update(environment_of_the_download())

    with pytest.raises(PullStopped):
        pull(store, [EYES_ENTRY], report=look, stop=lambda: bool(found))
    assert [name for name in secrets if name in found] == []
    assert [name for name in (*wanted, "HF_ENDPOINT", "PYTHONPATH") if name not in found] == []


def environment_of_the_download() -> dict[str, str]:
    """Of the child of this process that downloads."""
    [pid] = [pid for pid in children_of() if b"lipsyncd.weights.download" in command_of(pid)]
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_a_stopped_pull_is_resumed(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(hold_at=0)
    part = part_of(store)
    part.parent.mkdir(parents=True)
    part.write_bytes(EYES[:1_234_567])
    with pytest.raises(PullStopped):
        pull(store, [EYES_ENTRY], stop=hub.held.is_set)
    assert part.read_bytes() == EYES[:1_234_567]
    assert not store.path("eyes").exists()
    hub.troubles.clear()
    hub.asked.clear()
    pull(store, [EYES_ENTRY])
    assert hub.ranges(EYES_ENTRY) == ["bytes=1234567-"]
    assert store.path("eyes").read_bytes() == EYES


def test_the_download_of_a_killed_pull_ends_with_it_and_the_next_pull_resumes_it(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(hold_at=15_000_000)
    code = (
        "from tests.weights.test_pull import *; import sys, pathlib\n"
        "pull(Store(pathlib.Path(sys.argv[1]), BOTH), [EYES_ENTRY])"
    )
    part = part_of(store)
    with subprocess.Popen([sys.executable, "-c", code, str(store.folder)], env=os.environ) as killed:
        wait_for(lambda: part.exists() and part.stat().st_size == CHUNK)
        killed.kill()
    hub.troubles.clear()
    hub.asked.clear()
    pull(store, [EYES_ENTRY])
    assert hub.ranges(EYES_ENTRY) == [f"bytes={CHUNK}-"]
    assert store.path("eyes").read_bytes() == EYES
    assert left_over(store) == []


def test_a_second_pull_waits_for_the_first(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(hold_at=15_000_000)
    first = threading.Thread(target=pull, args=(store, BOTH))
    first.start()
    assert hub.held.wait(60)
    doing: list[str] = []
    with pytest.raises(PullStopped):
        pull(store, BOTH, report=lambda step: doing.append(step.doing), stop=lambda: len(doing) > 2)
    assert doing == ["waiting"] * 3
    hub.troubles.clear()
    hub.closing.set()  # the first one's connection breaks, and it resumes
    first.join()
    store.require()


def test_two_pulls_at_once_fetch_each_file_once(hub: Hub, store: Store) -> None:
    threads = [threading.Thread(target=pull, args=(store, BOTH)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [present.state for present in store.status()] == ["verified", "verified"]
    assert sorted(path.rpartition("/")[2] for path, _ in hub.asked) == ["ears.bin", "eyes.bin"]


def test_a_download_with_a_wrong_hash_is_removed_and_both_hashes_are_named(hub: Hub, store: Store) -> None:
    wrong = EYES[:-1] + bytes([EYES[-1] ^ 1])
    hub.has(EYES_ENTRY, wrong)
    with pytest.raises(WeightsDamaged) as caught:
        pull(store, [EYES_ENTRY])
    for text in ("eyes.bin of example/eyes", weight("eyes", wrong).sha256, EYES_ENTRY.sha256, "models pull"):
        assert text in str(caught.value)
    assert not store.path("eyes").exists()
    assert left_over(store) == []
    hub.has(EYES_ENTRY, EYES)
    pull(store, [EYES_ENTRY])
    assert store.path("eyes").read_bytes() == EYES


def test_a_file_that_is_shorter_on_the_hub_is_refused(hub: Hub, store: Store) -> None:
    hub.has(EYES_ENTRY, EYES[:-1])
    with pytest.raises(WeightsUnreachable, match=r"23999999 of 24000000 bytes\): OSError: Consistency check failed"):
        pull(store, [EYES_ENTRY])
    assert not store.path("eyes").exists()


@pytest.mark.parametrize(("entry", "content"), [(EYES_ENTRY, EYES), (EARS_ENTRY, EARS)], ids=["large", "small"])
def test_a_hub_that_sends_too_many_bytes_cannot_fill_the_disk(
    hub: Hub, store: Store, entry: object, content: bytes
) -> None:
    hub.has(entry, content + noise(5_000_000))  # type: ignore[arg-type]
    with pytest.raises(WeightsUnreachable):
        pull(store, [entry])  # type: ignore[list-item]
    assert left_over(store) == []
    assert not store.path(entry.name).exists()  # type: ignore[attr-defined]


def test_stale_partial_files_are_removed(hub: Hub, store: Store) -> None:
    pull(store, [EYES_ENTRY])
    part_of(store).write_bytes(EYES)  # as after a power cut between the last two steps
    part_of(store).with_name(".eyes.bin.0123456789ab.part").write_bytes(b"of another revision")
    pull(store, [EYES_ENTRY])
    assert left_over(store) == []


def test_a_hub_without_ranges_sends_the_whole_file_again(hub: Hub, store: Store) -> None:
    part = part_of(store)
    part.parent.mkdir(parents=True)
    part.write_bytes(EYES[:1000])
    hub.troubles["eyes.bin"] = Trouble(as_whole=True)
    pull(store, [EYES_ENTRY])
    assert store.path("eyes").read_bytes() == EYES


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (Trouble(status=404, code="RevisionNotFound"), "RevisionNotFoundError"),
        (Trouble(status=404, code="EntryNotFound"), "EntryNotFoundError"),
        (Trouble(status=403, code="GatedRepo"), "GatedRepoError"),
        (Trouble(status=500), "500"),
    ],
    ids=["revision", "entry", "gated", "broken"],
)
def test_an_error_of_the_hub_is_quoted(hub: Hub, store: Store, trouble: Trouble, error: str) -> None:
    hub.troubles["eyes.bin"] = trouble
    with pytest.raises(WeightsUnreachable) as caught:
        pull(store, [EYES_ENTRY])
    assert error in caught.value.message
    assert "eyes.bin of example/eyes at 555555555555" in caught.value.message
    assert left_over(store) == []


def test_a_revision_that_the_hub_does_not_have_is_named(hub: Hub, store: Store) -> None:
    other = weight("eyes", EYES, revision="6" * 40)
    with pytest.raises(WeightsUnreachable, match=r"at 666666666666 .*RevisionNotFoundError"):
        pull(store, [other])


# -- without the hub ---------------------------------------------------------------------------------------------------


def test_offline_no_request_is_sent_and_the_remedy_is_named(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsMissing, match=r"eyes is missing .* HF_HUB_OFFLINE .*models pull --from DIR"):
        pull(store, BOTH)
    assert hub.asked == []


def test_offline_a_complete_folder_is_enough(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pull(store, BOTH)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pull(store, BOTH)
    store.require()


def test_a_source_folder_is_used_first_and_stays_unchanged(hub: Hub, store: Store, tmp_path: Path) -> None:
    given = put(tmp_path / "given", EYES_ENTRY, EYES)
    pull(store, BOTH, source=tmp_path / "given")
    assert [present.state for present in store.status()] == ["verified", "verified"]
    assert hub.ranges(EYES_ENTRY) == []
    assert hub.ranges(EARS_ENTRY) == [""]
    assert given.read_bytes() == EYES
    assert os.listdir(given.parent) == ["eyes.bin"]


def test_a_wrong_file_in_the_source_folder_is_named_and_neither_used_nor_removed(
    hub: Hub, store: Store, tmp_path: Path
) -> None:
    given = put(tmp_path / "given", EYES_ENTRY, EYES[::-1])
    with pytest.raises(WeightsDamaged) as caught:
        pull(store, BOTH, source=tmp_path / "given")
    assert str(given) in str(caught.value)
    assert EYES_ENTRY.sha256 in str(caught.value)
    assert given.exists()
    assert not store.path("eyes").exists()
    assert left_over(store) == []


def test_a_damaged_file_is_renamed_and_fetched_again(hub: Hub, store: Store) -> None:
    put(store.folder, EYES_ENTRY, EYES[::-1])
    pull(store, BOTH)
    assert store.path("eyes").read_bytes() == EYES
    assert left_over(store) == ["eyes.bin.damaged"]


def test_a_disk_that_is_too_small_is_reported_before_any_download(hub: Hub, store: Store) -> None:
    with pytest.raises(DiskLow, match=r"MB free; \d+ MB are needed: 24 MB for the weights, and \d+ MB have to stay"):
        pull(store, BOTH, min_free_mb=1e12)
    assert hub.asked == []


# -- in the background -------------------------------------------------------------------------------------------------


def test_the_first_job_starts_a_pull_and_its_reason_gives_the_progress(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(hold_at=15_000_000)
    auto = AutoPull(store, allowed=True)
    with pytest.raises(WeightsMissing, match=r"weights are being pulled: eyes"):
        auto.require()
    assert hub.held.wait(60)
    wait_for(lambda: auto.progress() == "eyes fetching, 43 % of 24.0 MB")
    with pytest.raises(WeightsMissing, match=r"eyes fetching, 43 % of 24.0 MB; the job goes on by itself"):
        auto.require()
    assert len(hub.ranges(EYES_ENTRY)) == 1  # the second job started no second pull
    hub.troubles.clear()
    hub.closing.set()
    wait_for(lambda: not auto.busy)
    auto.require()
    assert auto.progress() == ""


def test_a_pull_in_the_background_ends_with_the_daemon(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(hold_at=15_000_000)
    auto = AutoPull(store, allowed=True)
    with pytest.raises(WeightsMissing):
        auto.require()
    assert hub.held.wait(60)
    started_s = time.monotonic()
    auto.stop()
    assert not auto.busy
    assert time.monotonic() - started_s < 10.0  # the server would hold it for a minute


def test_a_failed_pull_is_reported_and_tried_again_later(hub: Hub, store: Store) -> None:
    hub.troubles["eyes.bin"] = Trouble(status=500)
    clock = Clock()
    auto = AutoPull(store, allowed=True, clock=clock)
    with pytest.raises(WeightsMissing):
        auto.require()
    wait_for(lambda: not auto.busy)
    for _ in range(3):
        with pytest.raises(WeightsUnreachable, match="500") as caught:
            auto.require()
    assert isinstance(caught.value, Blocked)
    assert len(hub.asked) == 1
    hub.troubles.clear()
    clock.wait(61)
    with pytest.raises(WeightsMissing, match="being pulled"):
        auto.require()
    wait_for(lambda: not auto.busy)
    auto.require()


@pytest.mark.parametrize(("allowed", "environment"), [(False, ""), (True, "1")], ids=["not allowed", "offline"])
def test_where_pulling_is_not_allowed_the_job_waits_for_the_command(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, allowed: bool, environment: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", environment)
    auto = AutoPull(store, allowed=allowed)
    with pytest.raises(WeightsMissing) as caught:
        auto.require()
    assert ("weights.auto_pull is off" in str(caught.value)) is not allowed
    assert ("HF_HUB_OFFLINE" in str(caught.value)) is allowed
    assert "lipsyncd models pull" in str(caught.value)
    assert auto.fault() == str(caught.value), "health checks report it before the first job"
    assert not auto.busy
    assert hub.asked == []


def test_a_pull_that_does_not_fit_blocks_the_job_as_disk_low(hub: Hub, store: Store) -> None:
    auto = AutoPull(store, allowed=True, min_free_mb=1e12)
    with pytest.raises(Blocked):
        auto.require()
    wait_for(lambda: not auto.busy)
    with pytest.raises(DiskLow):
        auto.require()
