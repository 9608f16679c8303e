"""`lipsyncd bench` as a user runs it, and its count of the work against the published one."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lipsyncd.errors import DeviceMissing, UsageError  # noqa: E402
from lipsyncd.renderers.musetalk import renderer  # noqa: E402
from lipsyncd.renderers.musetalk.bench import random_inputs  # noqa: E402
from lipsyncd.renderers.musetalk.bench.run import find_device  # noqa: E402
from lipsyncd.renderers.musetalk.bench.timing import Clock, ceiling_of, work_gflop  # noqa: E402
from tests.kits.installation import Installation  # noqa: E402

STAGES = [
    ("whisper", "30 s block"),
    ("VAE encode", "picture"),
    ("UNet", "frame"),
    ("decoder", "frame"),
    ("decoder, published", "frame"),
    ("uint8, scale, copy", "frame"),
    ("blend, cut", "frame"),
    ("encode to MP4", "frame"),
    ("whole job", "frame"),
]


def bench(installation: Installation, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    one_core = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return installation.cli("bench", *arguments, **{**one_core, **environment})


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def test_the_work_of_full_size_networks_is_the_published_one() -> None:
    counted = work_gflop(random_inputs.published_configs())
    published = {"unet": 177.82, "decoder": 622.19, "encoder": 545.4, "whisper": 36.94}
    fused = {"fused unet": counted["fused unet"], "fused decoder": 525.6}
    assert counted == pytest.approx({**published, **fused}, abs=0.6)
    assert {name: counted[name] for name in published} == pytest.approx(published, abs=0.05)
    assert 165 < counted["fused unet"] < counted["unet"]


def test_every_stage_is_listed_and_its_numbers_agree(installation: Installation) -> None:
    done = bench(
        installation, "--random-weights", "--small", "--device", "cpu", "--seconds", "0.08", "--batch", "2", "--json"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    stages = {stage["stage"]: stage for stage in result["stages"]}
    assert [(stage["stage"], stage["per"]) for stage in result["stages"]] == STAGES
    for stage in stages.values():
        assert stage["ms"] > 0
        assert stage["per_s"] * stage["ms"] == pytest.approx(1000)
        if stage["gflop"] is None:
            assert stage["tflops"] is stage["percent_of_ceiling"] is None
        else:
            assert stage["tflops"] == pytest.approx(stage["gflop"] / stage["ms"])
            assert stage["percent_of_ceiling"] == pytest.approx(100 * stage["tflops"] / result["ceiling_tflops"])
            assert 0 < stage["percent_of_ceiling"] < 120  # above 100 only because other programs run meanwhile
    assert (result["frames"], result["batch"], result["precision"], result["device"]) == (2, 2, "float32", "cpu")
    job = stages["whole job"]
    assert job["ms"] * result["frames"] / 1000 == pytest.approx(result["job_s"])
    once = stages["whisper"]["gflop"] + stages["VAE encode"]["gflop"]
    assert job["gflop"] == pytest.approx(once / 2 + stages["UNet"]["gflop"] + stages["decoder"]["gflop"])
    assert 0.1 < result["loaded_gb"] <= result["peak_gb"] < 4
    assert result["load_s"] > 0
    assert result["kernels"] == "fused decoder, channels last, float32"
    assert result["versions"]["torch"] == torch.__version__


def test_without_json_the_output_is_a_table(installation: Installation) -> None:
    done = bench(installation, "--random-weights", "--small", "--device", "cpu", "--seconds", "0.04")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("stage "))
    rows = [line.split("  ")[0] for line in lines[heading + 1 :] if line]
    assert rows[: len(STAGES)] == [stage for stage, _ in STAGES]
    assert lines[-1].startswith("whole job ")


def test_a_missing_gpu_is_reported_and_not_replaced_by_the_cpu(installation: Installation) -> None:
    done = bench(installation, "--random-weights", "--small")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no device 'auto'" in done.stderr
    assert "--device cpu" in done.stderr


def test_a_missing_device_is_reported_by_name() -> None:
    with pytest.raises(DeviceMissing, match="'cuda:99'"):
        find_device("cuda:99")
    with pytest.raises(UsageError, match="'abacus'"):
        find_device("abacus")


def test_without_random_weights_the_weights_have_to_be_installed(installation: Installation) -> None:
    done = bench(installation, "--device", "cpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert "lipsyncd models pull" in done.stderr


def test_random_weights_are_the_same_files_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        random_inputs.write_weights(tmp_path / name, random_inputs.small_configs())
    for file in (renderer.UNET, renderer.VAE, renderer.WHISPER):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_clock_measures_the_time_of_one_call() -> None:
    calls = []
    clock = Clock(torch.device("cpu"), rounds_s=0.05)
    took_s = clock.mean(lambda: calls.append(torch.rand(300, 300).exp().sum().item()), most=40)
    assert 2 <= len(calls) <= 41
    assert 0 < took_s < 1


def test_calls_in_turn_are_timed_by_their_fastest_round() -> None:
    turns = []
    clock = Clock(torch.device("cpu"), rounds_s=0.01)
    slow, fast = clock.in_turn((lambda: (turns.append("slow"), time.sleep(0.02)), lambda: turns.append("fast")), 5)
    assert turns[:4] == ["slow", "fast"] * 2
    assert slow >= 0.02 > fast > 0


def test_the_ceiling_is_a_plausible_rate() -> None:
    torch.set_num_threads(1)
    ceiling = ceiling_of(Clock(torch.device("cpu")), torch.device("cpu"), torch.float32)
    assert 1e-4 < ceiling.tflops < 50 and math.isfinite(ceiling.tflops) and ceiling.of
