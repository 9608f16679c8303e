"""The precision of each network: what is promised, what a job says about it, and what one job leaves to the next."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from lipsyncd.renderers.musetalk import arithmetic  # noqa: E402
from lipsyncd.renderers.musetalk import renderer as module  # noqa: E402
from lipsyncd.renderers.musetalk.painting.fused.gate import Verdict  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import Painter  # noqa: E402
from lipsyncd.renderers.musetalk.renderer import MuseTalk, RendererSettings  # noqa: E402
from tests.kits.media.musetalk_kit import scene, speech, write_weights  # noqa: E402


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), parser=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_each_network_computes_as_precisely_as_promised_on_a_gpu(weights: Path) -> None:
    """Whisper and the face parser in real float32, not in TF32; nothing tries cuDNN's kernels against one another."""
    given, parsing = scene(mask="parsing", fps=Fraction(5)), MuseTalk("cpu", RendererSettings(weights))
    assert parsing._gate is not None
    parsing._gate.verdict = Verdict("")  # the fused decoder is used without a comparison, in which both would run
    parsing.open(given)  # loads the parser
    assert parsing._parser is not None
    painter, seen = parsing._painter, dict[str, tuple[bool, bool, bool]]()
    parts = {
        "whisper": parsing._audio_encoder._encoder,
        "parser": parsing._parser,
        "encoder": painter.vae.encoder,
        "unet": painter.unet,
        "decoder": parsing._gate.fused.decoder,
    }

    def switches() -> tuple[bool, bool, bool]:
        """TF32 in convolutions, TF32 in products, trials of kernels."""
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        return cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark

    before = switches()
    hooks = [
        part.register_forward_pre_hook(lambda _module, _given, name=name: seen.update({name: switches()}))
        for name, part in parts.items()
    ]
    try:
        list(parsing.open(given).frames())
    finally:
        for hook in hooks:
            hook.remove()

    assert before == switches() == (True, False, False), "torch's own, and no trials"
    usual, true = (True, False, False), (False, False, False)
    assert seen == {"whisper": true, "parser": true, "encoder": usual, "unet": usual, "decoder": usual}
    assert torch.backends.cudnn.deterministic


def test_a_switch_of_torch_is_put_back_after_an_error() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(ZeroDivisionError), arithmetic.true_float32():
        assert before != (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        raise ZeroDivisionError
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_a_vae_that_overflows_is_an_event_of_its_job(weights: Path) -> None:
    """The first job overflows in the VAE's encoder, in half precision as on a GPU; the second job begins anew in it."""
    renderer = MuseTalk("cpu", RendererSettings(weights))
    painter = renderer._painter
    for parameter in painter.vae.encoder.conv_in.parameters():
        parameter.mul_(1e5)
    renderer._painter = Painter(painter.unet.half(), painter.vae.half())
    for _ in range(2):
        shot = renderer.open(scene(voice=speech(0.2), fps=Fraction(5)))
        assert len(list(shot.frames())) == 1
        [event] = shot.notes["events"]
        assert "the latents of the face were not finite" in event
        assert shot.notes["precision"] == "float16, VAE float32"
        assert renderer._painter.vae_dtype == torch.float16


def test_parity_on_a_cpu_uses_the_unet_that_was_never_rounded_or_says_that_it_has_none(
    weights: Path, tmp_path: Path
) -> None:
    folder, full = tmp_path / "weights", load_file(weights / module.UNET)
    shutil.copytree(weights, folder, copy_function=os.link)

    def unet_of(**options: Any) -> tuple[object, bool]:
        """What the sidecar says of the UNet, and whether the one that paints is the full one."""
        shot = MuseTalk("cpu", RendererSettings(folder)).open(scene(**options))
        painter = shot._pipeline._painter.now  # type: ignore[attr-defined]
        state = painter.unet.state_dict()
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        return shot.notes.get("unet"), all(torch.equal(state[name], tensor) for name, tensor in full.items())

    assert unet_of(parity=True) == (None, True), "a list of one's own may keep the unet in float32"
    (folder / module.UNET).unlink()
    save_file({name: tensor.half() for name, tensor in full.items()}, folder / module.UNET)
    text, is_full = unet_of(parity=True)
    assert "rounded to float16" in str(text) and "models pull --parity" in str(text) and not is_full
    os.link(weights / module.UNET, folder / module.UNET_FLOAT32)
    assert unet_of(parity=True) == ("float32", True)
    assert unet_of() == (None, False)
