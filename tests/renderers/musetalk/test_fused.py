"""The fused networks: the same function as the published ones, less work, used only where a comparison allows it."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lipsyncd.renderers.musetalk import arithmetic  # noqa: E402
from lipsyncd.renderers.musetalk import renderer as module  # noqa: E402
from lipsyncd.renderers.musetalk.painting import networks  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.decoder import FusedDecoder  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.gate import Gate, weights_identity  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.layers import folded_upsampling  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.painter import FusedPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.unet import FusedUNet  # noqa: E402
from lipsyncd.renderers.musetalk.painting.job_painter import PLAIN, JobPainter  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painter, positional_encoding, to_uint8  # noqa: E402
from lipsyncd.renderers.musetalk.renderer import MuseTalk, RendererSettings  # noqa: E402
from tests.kits.media.musetalk_kit import (  # noqa: E402
    furthest,
    golden,
    scene,
    small_unet,
    small_vae,
    speech,
    tiny_painter,
    write_weights,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def batch(frames: int = 2) -> tuple[Tensor, Tensor]:
    """Latents and tokens of a few different frames."""
    chance = torch.Generator().manual_seed(1)
    return torch.randn(frames, 8, 32, 32, generator=chance), torch.randn(frames, 20, 384, generator=chance)


# -- the same function -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 8)])
def test_doubling_and_convolution_fold_into_one_transposed_convolution(
    layout: torch.memory_format, height: int, width: int
) -> None:
    chance = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(7, 6, 3, 3, generator=chance) / 7, torch.randn(7, generator=chance)
    x = torch.randn(2, 6, height, width, generator=chance).contiguous(memory_format=layout)

    wanted = functional.conv2d(functional.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    got = functional.conv_transpose2d(x, folded_upsampling(weight), bias, stride=2, padding=1)

    assert got.shape == wanted.shape == (2, 7, 2 * height, 2 * width)
    assert float((got - wanted).abs().max()) < 1e-5


def test_taps_are_summed_in_float32() -> None:
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(3)).half()
    assert torch.equal(folded_upsampling(weight), folded_upsampling(weight.float()).half())


def test_the_fused_networks_give_what_the_published_ones_give() -> None:
    for plain in (Painter(small_unet(), small_vae()), tiny_painter()):
        latents, tokens = batch()
        wanted = plain.predict(latents, tokens)
        got = FusedUNet(plain.unet)(latents, tokens + positional_encoding(20, 384))
        assert furthest(got.numpy(), wanted.numpy()) < 1e-4
        pictures = FusedDecoder(plain.vae)(wanted)
        assert furthest(pictures.numpy(), plain.decode(wanted).numpy()) < 1e-4
        assert pictures.is_contiguous(memory_format=torch.channels_last)


def test_the_fused_networks_give_the_recorded_values() -> None:
    wanted, plain = golden("generator"), Painter(small_unet(), small_vae())
    drawn = np.random.RandomState(int(wanted["audio_seed"])).standard_normal((3, 50, 384)).astype(np.float32)
    tokens = torch.from_numpy(drawn) + positional_encoding(50, 384)

    predicted = FusedUNet(plain.unet)(torch.from_numpy(wanted["latents"]).expand(3, -1, -1, -1), tokens)
    assert furthest(predicted.numpy(), wanted["pred"]) < 1e-3
    decoded = to_uint8(FusedDecoder(plain.vae)(torch.from_numpy(wanted["pred"]))).permute(0, 2, 3, 1).numpy()
    off = np.abs(decoded[:, ::2, ::2, ::-1].astype(np.int16) - wanted["decoded_bgr"])
    assert off.max() <= 2 and off.mean() < 0.05


def test_of_full_size_the_fused_networks_do_a_sixth_less_in_the_decoder() -> None:
    unet, vae = (getattr(networks, name)(networks.published_config(name)) for name in ("unet", "vae"))
    decoder, predictor = FusedDecoder(vae), FusedUNet(unet)

    def gflop(network: nn.Module, *shapes: tuple[int, ...]) -> float:
        with FlopCounterMode(display=False) as counter:
            network(*(torch.empty(shape, device="meta") for shape in shapes))
        return counter.get_total_flops() / 1e9

    assert gflop(decoder, (1, 4, 32, 32)) == pytest.approx(525.6, abs=0.6)
    assert gflop(predictor, (1, 8, 32, 32), (1, 50, 384)) < 177.8


# -- the comparison ----------------------------------------------------------------------------------------------------


class Counting(Painter):
    """The published networks, which count how often they paint."""

    painted = 0

    def paint(self, latents: Tensor, tokens: Tensor) -> networks.Painted:
        Counting.painted += 1
        return super().paint(latents, tokens)


def counting() -> Painter:
    Counting.painted = 0
    tiny = tiny_painter()
    return Counting(tiny.unet, tiny.vae)


def gate_of(plain: Painter, folder: Path | None = None, **facts: str) -> Gate:
    return Gate(FusedPainter.of(plain), {"weights": "w", "torch": "t", "device": "d", **facts}, folder)


def spoiled(gate: Gate, factor: float) -> Gate:
    """The same gate, but what the fused decoder draws is off by `factor`."""
    gate.fused.decoder.conv_out = copy.deepcopy(gate.fused.decoder.conv_out)
    gate.fused.decoder.conv_out.weight.mul_(factor)
    return gate


def test_a_comparison_is_made_once_and_its_verdict_is_kept_for_these_weights_versions_and_device(
    tmp_path: Path,
) -> None:
    plain, given = counting(), batch()
    first = JobPainter(plain, gate=gate_of(plain, tmp_path))
    pixels = first.paint(*given).pixels
    assert Counting.painted == 1 and first.kernels == "fused decoder, channels last, float32"
    [file] = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert kept["fault"] == "" and kept["psnr_db"] > 60 and kept["latents"] == 0 and kept["levels"] <= 1
    assert kept["of"]["weights"] == "w" and kept["of"]["path"] == first.kernels

    later = JobPainter(plain, gate=gate_of(plain, tmp_path))
    assert torch.equal(later.paint(*given).pixels, pixels), "the first job and later ones differ"
    assert Counting.painted == 1

    JobPainter(plain, gate=gate_of(plain, tmp_path, device="another")).paint(*given)
    assert Counting.painted == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("factor", "reason"), [(1.5, "PSNR"), (float("nan"), "PSNR"), (1.012, "level")])
def test_fused_networks_that_differ_are_never_used_and_the_job_says_so(
    tmp_path: Path, factor: float, reason: str
) -> None:
    plain, given, events = counting(), batch(), list[str]()
    wanted = tiny_painter().paint(*given).pixels
    refused = JobPainter(plain, gate=spoiled(gate_of(plain, tmp_path), factor), report=events.append)

    for _ in range(2):
        assert torch.equal(refused.paint(*given).pixels, wanted)
    [event] = events
    assert "the fused ones are not used" in event and reason in event
    assert refused.kernels.startswith(PLAIN) and reason in refused.kernels
    assert Counting.painted == 3, "the comparison, then both batches"

    later = JobPainter(plain, gate=gate_of(plain, tmp_path), report=events.append)
    later.paint(*given)
    assert later.kernels == refused.kernels and len(events) == 1, "the verdict holds, and was said once"


def test_fused_networks_that_fail_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, events = counting(), list[str]()
    gate = gate_of(plain, tmp_path)
    gate.fused.decoder.conv_out = nn.Conv2d(1, 3, 3)
    job = JobPainter(plain, gate=gate, report=events.append)
    with caplog.at_level(logging.WARNING):
        assert bool(job.paint(*batch()).finite.all())
    assert "they fail" in events[0] and "they fail" in job.kernels
    assert "the fused networks fail on cpu" in caplog.text


def test_a_batch_that_overflows_decides_nothing(tmp_path: Path) -> None:
    plain = counting()
    latents, tokens = batch()
    gate = gate_of(plain, tmp_path)
    assert not bool(JobPainter(plain, gate=gate).paint(latents * torch.nan, tokens).finite.all())
    assert gate.verdict is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"fault": 3}', '{"fault": "", "of": {}}'])
def test_a_damaged_verdict_is_replaced_by_a_new_comparison(tmp_path: Path, text: str) -> None:
    plain = counting()
    JobPainter(plain, gate=gate_of(plain, tmp_path)).paint(*batch())
    [file] = tmp_path.iterdir()
    file.write_text(text)
    JobPainter(plain, gate=gate_of(plain, tmp_path)).paint(*batch())
    assert Counting.painted == 2 and json.loads(file.read_text())["of"]["device"] == "d"


def test_a_folder_that_cannot_be_written_costs_a_comparison_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plain = counting()
    for _ in range(2):
        gate = gate_of(plain, tmp_path / "file" / "kernels")
        for _ in range(2):
            JobPainter(plain, gate=gate).paint(*batch())
    assert Counting.painted == 2


def test_in_half_precision_pixels_may_be_one_level_further_from_float32_than_those_of_the_published_networks() -> None:
    tiny = tiny_painter()
    plain = Painter(tiny.unet.half(), tiny.vae.half())
    gate = gate_of(plain)
    verdict = gate.judge(plain, batch()[0].half(), batch()[1])
    assert verdict is not None and verdict.passed and not gate.fused.lower_precision
    assert gate.fused.path == "fused decoder, channels last, float16"


def test_the_identity_of_weights_changes_with_a_single_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a" * 3_000_000)
    two.write_bytes(b"b")
    before = weights_identity(one, two)
    assert weights_identity(one, two) == before
    two.write_bytes(b"c")
    assert weights_identity(one, two) != before


# -- a renderer --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), parser=True)


def rendered(renderer: MuseTalk, **options: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    shot = renderer.open(scene(voice=speech(0.2), fps=Fraction(10), **options))
    return np.array([frame.copy() for frame in shot.frames()]), dict(shot.notes)


def test_a_job_is_painted_by_the_fused_networks_and_one_of_parity_by_the_published_ones(weights: Path) -> None:
    fused = MuseTalk("cpu", RendererSettings(weights))
    published = MuseTalk("cpu", RendererSettings(weights, kernels="published"))
    ours, notes = rendered(fused)
    plain, plain_notes = rendered(published)
    assert notes["kernels"] == "fused decoder, channels last, float32" and plain_notes["kernels"] == PLAIN
    assert notes["threads"] == torch.get_num_threads() and "events" not in notes
    assert np.abs(ours.astype(np.int16) - plain).max() <= 1

    parity, parity_notes = rendered(fused, parity=True)
    assert parity_notes["kernels"] == PLAIN
    assert np.array_equal(parity, rendered(published, parity=True)[0])


@pytest.mark.skipif(not arithmetic.has_bfloat16(), reason="this processor has no bfloat16")
def test_bfloat16_is_for_the_decoder_where_it_is_asked_for(weights: Path, tmp_path: Path) -> None:
    usual, notes = rendered(MuseTalk("cpu", RendererSettings(weights, cache=tmp_path)))
    lower, lower_notes = rendered(MuseTalk("cpu", RendererSettings(weights, precision="bfloat16", cache=tmp_path)))
    assert lower_notes["kernels"] == "fused decoder, channels last, bfloat16"
    assert lower_notes["precision"] == notes["precision"] == "float32"
    off = np.abs(usual.astype(np.int16) - lower)
    assert off.max() > 0 and off.mean() < 1
    verdicts = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert sorted(verdict["of"]["path"] for verdict in verdicts) == sorted((notes["kernels"], lower_notes["kernels"]))
    assert all(verdict["fault"] == "" and verdict["psnr_db"] >= 40 for verdict in verdicts)


def test_networks_of_another_structure_are_computed_as_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_weights(tmp_path / "weights")
    config = json.loads((folder / module.VAE_CONFIG).read_text())
    (folder / module.VAE_CONFIG).write_text(json.dumps(config | {"act_fn": "mish"}))
    with caplog.at_level(logging.WARNING):
        frames, notes = rendered(MuseTalk("cpu", RendererSettings(folder)))
    assert len(frames) == 2 and notes["kernels"] == PLAIN
    assert "the networks are computed as published: the network has another structure" in caplog.text


def test_threads_follow_the_setting(weights: Path) -> None:
    before = torch.get_num_threads()
    try:
        MuseTalk("cpu", RendererSettings(weights, threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
