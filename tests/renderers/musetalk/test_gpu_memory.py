"""MuseTalk with too little memory, through inbox and daemon: failed allocations, and kills by the kernel."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from lipsyncd.media.mp4 import inspect
from lipsyncd.renderers.musetalk.gpu_memory import UnusedMemory
from tests.kits.installation import Installation, put
from tests.kits.media.media_kit import encoded, wav
from tests.kits.media.musetalk_kit import hum, portrait, write_lock, write_weights

LARGE = 64  # frames at a time: more than a gigabyte, in few large pieces
SPARE_BYTES = 500_000_000  # a large piece fails, and small ones have room: libraries end the process when theirs fail


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of small weights, with a lock list of their own."""
    folder = write_weights(tmp_path_factory.mktemp("weights"), vae_channels=8)
    return {"dir": str(folder), "lock": str(write_lock(folder)), "auto_pull": False}


@pytest.fixture
def installation(installation: Installation, weights: dict[str, Any]) -> Installation:
    installation.changes = {"render": {"renderer": "musetalk"}, "weights": weights}
    return installation


def drop(installation: Installation, name: str, *, frames: int = 5, **options: object) -> None:
    """Drop a job that differs from every other and has no pauses."""
    pixels = portrait().copy()
    pixels[-1, -1] = np.frombuffer(name.encode()[:3].ljust(3), np.uint8)
    put(installation.path("inbox"), f"{name}-face.png", encoded(Image.fromarray(pixels), "PNG"))
    put(installation.path("inbox"), f"{name}-voice.wav", wav((hum(frames / 25) * 24_000).astype("<i2").tobytes()))
    installation.drop_manifest(name, image=f"{name}-face.png", audio=f"{name}-voice.wav", lipsyncd=options)


def child_of(installation: Installation) -> int:
    return int(installation.log.rsplit("render child for cpu started, pid ", 1)[1].split()[0])


def data_bytes(pid: int) -> int:
    """The memory that the kernel counts for RLIMIT_DATA."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


def notes_of(installation: Installation, name: str) -> list[str]:
    job = installation.job(name)
    assert job is not None
    return [event.note for event in installation.view.events(job.id)]


@pytest.mark.parametrize(
    ("wanted", "free_gb", "after"),
    [
        (True, 60, ["job", "job", "rest", "given back"]),
        (True, 5, ["job", "given back", "job", "given back", "rest"]),
        (True, None, ["job", "job", "rest", "given back"]),
        (False, 5, ["job", "job", "rest"]),
    ],
    ids=str,
)
def test_unused_memory_is_given_back_at_rest_or_when_others_need_it(
    wanted: bool, free_gb: int | None, after: list[str]
) -> None:
    """With 80 GB; a rest without a job before it gives nothing back."""
    did: list[str] = []
    unused = UnusedMemory(
        wanted,
        release=lambda: did.append("given back"),
        room=lambda: None if free_gb is None else (free_gb * 10**9, 80 * 10**9),
    )
    unused.rest()
    for _ in range(2):
        did.append("job")
        unused.end_job()
    did.append("rest")
    unused.rest()
    unused.rest()
    assert did == after


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_remembered_after_a_restart(
    installation: Installation,
) -> None:
    with installation.running(OMP_NUM_THREADS="1"):
        drop(installation, "first")
        installation.until_done("first")
        child = child_of(installation)
        soft, hard = resource.prlimit(child, resource.RLIMIT_DATA)
        assert soft == 14 * 10**9, "render.max_vram_gb holds a CPU's renders too"
        resource.prlimit(child, resource.RLIMIT_DATA, (data_bytes(child) + SPARE_BYTES, hard))
        drop(installation, "tight", frames=LARGE, batch=LARGE)
        job = installation.until_done("tight")
        assert child_of(installation) == child, "the child did not end for it"
    assert job.attempt == 1
    assert inspect(installation.path("outbox") / "tight.mp4").video.frames == LARGE
    fitted = installation.sidecar("tight")["notes"]["batch"]
    assert fitted < LARGE
    note = f"{2 * fitted} frames at a time did not fit into memory, {fitted} are tried"
    assert note in notes_of(installation, "tight")
    assert f"job {job.id}: {note}" in installation.log
    [ceiling] = json.loads((installation.path("state") / "ceilings.json").read_text()).values()
    assert ceiling["most"] == fitted

    with installation.running(OMP_NUM_THREADS="1"):  # another child of another daemon, without a limit
        drop(installation, "later", batch=LARGE)
        installation.until_done("later")
    assert installation.sidecar("later")["notes"]["batch"] == fitted
    assert not any("did not fit" in note for note in notes_of(installation, "later"))
