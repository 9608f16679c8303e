"""The same results as the original: networks, windows and latents against recorded values of its code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import WhisperConfig, WhisperModel  # noqa: E402

from lipsyncd.renderers.framing import Box  # noqa: E402
from lipsyncd.renderers.musetalk.audio_features import (  # noqa: E402
    BLOCK_STEPS,
    STEP_SAMPLES,
    STEPS_BEFORE,
    WINDOW_STEPS,
    AudioEncoder,
    AudioFeatures,
)
from lipsyncd.renderers.musetalk.painting import networks  # noqa: E402
from lipsyncd.renderers.musetalk.painting.bisenet import BiSeNet  # noqa: E402
from lipsyncd.renderers.musetalk.painting.latents import crop_face, latents_of  # noqa: E402
from lipsyncd.renderers.musetalk.painting.networks import (  # noqa: E402
    Painter,
    load_weights,
    positional_encoding,
    published_config,
    to_uint8,
)
from tests.kits.media.musetalk_kit import (  # noqa: E402
    GOLDENS,
    astronaut,
    fill,
    furthest,
    golden,
    hum,
    small_configs,
    small_unet,
    small_vae,
    small_whisper,
)

CPU = torch.device("cpu")
CLOSE = 1e-3
SECONDS, RATES = (3.3, 31.7), (25, 30, 24)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


# -- the networks as published -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tensors", "parameters"), [("unet", 686, 849_947_844), ("vae", 248, 83_653_863)])
def test_the_published_configurations_make_the_published_networks(name: str, tensors: int, parameters: int) -> None:
    network = getattr(networks, name)(published_config(name))

    assert len(network.state_dict()) == tensors
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert all(p.is_meta for p in network.parameters())  # no memory was allocated


def test_ambiguous_parts_of_the_published_configurations_are_read_as_intended() -> None:
    """Names and shapes do not show that `attention_head_dim` is the number of heads and that latents are scaled."""
    unet, vae = networks.unet(published_config("unet")), networks.vae(published_config("vae"))

    heads = {module.heads for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))}
    assert heads == {8}
    assert vae.config.scaling_factor == 0.18215


def test_the_encoder_is_a_part_of_the_published_whisper() -> None:
    with torch.device("meta"):
        whole = WhisperModel(WhisperConfig(**published_config("whisper")))
    ours = networks.whisper(published_config("whisper")).state_dict()

    assert sum(p.numel() for p in whole.parameters()) == 37_760_640
    assert {name: t.shape for name, t in ours.items()} == {
        networks.whisper_name(name): t.shape for name, t in whole.state_dict().items() if networks.whisper_name(name)
    }
    assert len(ours) == 67


def test_the_face_parser_has_the_names_and_shapes_of_its_checkpoint() -> None:
    wanted = json.loads((GOLDENS / "bisenet_state_dict.json").read_text())

    assert {name: list(tensor.shape) for name, tensor in BiSeNet().state_dict().items()} == wanted


def test_the_face_parser_computes_the_recorded_labels() -> None:
    wanted = golden("bisenet")
    picture = torch.from_numpy(astronaut()).permute(2, 0, 1).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    logits = fill(BiSeNet())(((picture - mean[:, None, None]) / deviation[:, None, None])[None])[0]

    assert np.abs(logits[:, ::32, ::32].numpy() - wanted["logits_sub"]).max() < 1e-3
    best, second = logits.topk(2, dim=0).values
    clear = (best - second).numpy() > 1e-3
    assert clear.mean() > 0.99
    assert np.array_equal(logits.argmax(0).numpy()[clear], wanted["labels"][clear])


# -- files -------------------------------------------------------------------------------------------------------------


def test_weights_of_half_precision_are_loaded_directly_from_the_file(tmp_path: Path) -> None:
    source = small_unet()
    save_file({name: t.half() for name, t in source.state_dict().items()}, tmp_path / "unet.safetensors")

    for dtype in (torch.float16, torch.float32):
        read = load_weights(
            networks.unet(small_configs()["unet"]), tmp_path / "unet.safetensors", device=CPU, dtype=dtype
        ).state_dict()
        assert {t.dtype for t in read.values()} == {dtype}
        assert all(torch.equal(read[name], t.half().to(dtype)) for name, t in source.state_dict().items())


def test_a_vae_file_with_old_names_loads_to_the_same_function(tmp_path: Path) -> None:
    source, picture = small_vae(), torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    new_to_old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state, renamed = {}, 0
    for name, tensor in source.state_dict().items():
        for new, old in new_to_old.items():
            renamed += f".attentions.0.{new}." in name
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        state[name] = tensor.clone()
    assert renamed == 16  # weight and bias of four layers in encoder and decoder
    save_file(state, tmp_path / "old.safetensors")

    read = load_weights(
        networks.vae(small_configs()["vae"]),
        tmp_path / "old.safetensors",
        device=CPU,
        dtype=torch.float32,
        rename=networks.vae_name,
    )

    assert torch.equal(read.encode(picture).latent_dist.mode(), source.encode(picture).latent_dist.mode())


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_encoder_is_loaded_from_a_file_of_the_whole_whisper(tmp_path: Path, prefix: str) -> None:
    source = small_whisper()
    state = {prefix + name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, tmp_path / "whisper.safetensors")

    read = load_weights(
        networks.whisper(small_configs()["whisper"]),
        tmp_path / "whisper.safetensors",
        device=CPU,
        dtype=torch.float32,
        rename=networks.whisper_name,
    )

    voice = hum(0.5)
    assert torch.equal(AudioEncoder(read).encode(voice), AudioEncoder(source.encoder).encode(voice))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")

    with pytest.raises(ValueError, match=r"other\.safetensors .* such as conv_in\.bias: None instead of .*32"):
        load_weights(
            networks.unet(small_configs()["unet"]), tmp_path / "other.safetensors", device=CPU, dtype=torch.float32
        )


# -- the painter -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(small_unet(), small_vae())


def test_the_crop_equals_the_recorded_one() -> None:
    wanted = golden("generator")
    x, y, right, bottom = (int(value) for value in wanted["face_box"])

    assert np.array_equal(crop_face(astronaut(), Box(x, y, right - x, bottom - y))[..., ::-1], wanted["crop_bgr"])


def test_latents_are_the_mode_of_the_posterior(painter: Painter) -> None:
    wanted = golden("generator")
    latents = latents_of(painter, wanted["crop_bgr"][..., ::-1])

    assert furthest(latents.numpy(), wanted["latents"]) < CLOSE
    assert torch.equal(latents, latents_of(painter, wanted["crop_bgr"][..., ::-1]))


def test_one_pass_of_the_painter(painter: Painter) -> None:
    wanted = golden("generator")
    tokens = torch.from_numpy(
        np.random.RandomState(int(wanted["audio_seed"])).standard_normal((3, 50, 384)).astype(np.float32)
    )

    assert furthest(positional_encoding(50, 384)[:4].numpy(), wanted["pe_row0"]) < CLOSE
    predicted = painter.predict(torch.from_numpy(wanted["latents"]).expand(3, -1, -1, -1), tokens)
    assert furthest(predicted.numpy(), wanted["pred"]) < CLOSE

    decoded = to_uint8(painter.decode(torch.from_numpy(wanted["pred"]))).permute(0, 2, 3, 1).numpy()
    off = np.abs(decoded[:, ::2, ::2, ::-1].astype(np.int16) - wanted["decoded_bgr"])
    assert off.max() <= 2 and off.mean() < 0.05


# -- audio features ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audio_encoder() -> AudioEncoder:
    return AudioEncoder(small_whisper().encoder)


def windows(track: AudioFeatures, frames: object) -> np.ndarray:
    return np.stack([track.window(int(frame)).numpy() for frame in np.atleast_1d(frames)])


@pytest.mark.parametrize("seconds", SECONDS)
def test_windows_in_parity_mode_are_those_of_the_original(audio_encoder: AudioEncoder, seconds: float) -> None:
    wanted, voice = golden("audio_chunks"), hum(seconds)
    for fps in RATES:
        key = f"s{seconds}_fps{fps}"
        assert wanted[f"{key}_nframes"] == len(voice) * fps // 16_000  # the original rounds down, `frame_count` up
        track = AudioFeatures(audio_encoder, voice, Fraction(fps), parity=True)
        assert furthest(windows(track, wanted[f"{key}_index"]), wanted[f"{key}_chunks"]) < CLOSE, key


def test_our_windows_are_the_same_up_to_thirty_seconds_and_right_where_the_original_is_not(
    audio_encoder: AudioEncoder,
) -> None:
    wanted, voice = golden("audio_chunks"), hum(3.3)
    for fps in (25, 30):
        track = AudioFeatures(audio_encoder, voice, Fraction(fps))
        assert furthest(windows(track, wanted[f"s3.3_fps{fps}_index"]), wanted[f"s3.3_fps{fps}_chunks"]) < CLOSE
    # At 24 frames per second the original is two steps of 20 ms late.
    states = 3
    ours = windows(AudioFeatures(audio_encoder, voice, Fraction(24)), wanted["s3.3_fps24_index"]).reshape(
        9, WINDOW_STEPS, states, -1
    )
    late = wanted["s3.3_fps24_chunks"].reshape(9, WINDOW_STEPS, states, -1)
    assert furthest(ours[1:-1, :-2], late[1:-1, 2:]) < CLOSE


@pytest.mark.parametrize("fps", [Fraction(n) for n in (1, 24, 25, 30, 50, 60, 120)] + [Fraction(30000, 1001)], ids=str)
def test_every_window_begins_four_steps_before_its_frame(audio_encoder: AudioEncoder, fps: Fraction) -> None:
    """Each window equals the states of the whole voice at its exact time."""
    voice = hum(2.0)
    states = audio_encoder.encode(voice).flatten(1)
    track, frames = AudioFeatures(audio_encoder, voice, fps), -(-2 * fps.numerator // fps.denominator)
    for frame in (0, 1, frames // 2, frames - 1):
        window = track.window(frame).reshape(WINDOW_STEPS, -1)
        first = int(frame * 50 / fps) - STEPS_BEFORE
        for offset, step in enumerate(range(first, first + WINDOW_STEPS)):
            expected = states[step] if 0 <= step < 100 else torch.zeros_like(states[0])
            assert torch.equal(window[offset], expected), (frame, step)


def test_a_rate_of_a_1001_fraction_does_not_drift(audio_encoder: AudioEncoder) -> None:
    """Frame 30,000 of a 1001 fraction begins at 1001 s exactly: the step there is 50,050."""
    beep = np.zeros(1002 * 16_000, np.int16)
    beep[1001 * 16_000 :] = 8_000
    fps = Fraction(30_000, 1001)
    track = AudioFeatures(audio_encoder, beep, fps)

    exact = track.window(30_000)

    assert track._block_of(50_050) == 35  # 28 s each
    block = audio_encoder.encode(beep[35 * (BLOCK_STEPS - 100) * STEP_SAMPLES :].astype(np.float32) / 32768)
    first = 50_050 - STEPS_BEFORE - 35 * (BLOCK_STEPS - 100)
    assert torch.equal(exact, block[first : first + WINDOW_STEPS].flatten(0, 1))


def test_at_the_joint_of_two_blocks_each_step_comes_from_the_better_block(audio_encoder: AudioEncoder) -> None:
    """At 29 s windows cross from one block to the next; each step comes from the block with its neighbours."""
    voice = hum(40.0)
    block_samples = BLOCK_STEPS * STEP_SAMPLES
    first = audio_encoder.encode(voice[:block_samples])
    second = audio_encoder.encode(voice[(BLOCK_STEPS - 100) * STEP_SAMPLES :][:block_samples])
    window = AudioFeatures(audio_encoder, voice, Fraction(25)).window(725)  # steps 1446 to 1455
    window = window.reshape(WINDOW_STEPS, -1)

    assert torch.equal(window[:4], first[1446:1450].flatten(1))
    assert torch.equal(window[4:], second[50:56].flatten(1))


def test_blocks_are_encoded_once_and_two_are_kept(audio_encoder: AudioEncoder) -> None:
    class Counting(AudioEncoder):
        calls = 0

        def encode(self, samples: np.ndarray) -> torch.Tensor:
            self.calls += 1
            return audio_encoder.encode(samples)

    counting = Counting(small_whisper().encoder)
    track = AudioFeatures(counting, np.zeros(130 * 16_000, np.int16), Fraction(5))
    for frame in range(650):
        track.window(frame)

    assert counting.calls == 5  # 0-30, 28-58, 56-86, 84-114, 112-130
    assert len(track._blocks) == 2


def test_silent_ranges_are_encoded_as_digital_silence(audio_encoder: AudioEncoder) -> None:
    noise = (np.random.default_rng(1).normal(0, 40, 32_000)).astype(np.int16)
    silenced = noise.copy()
    silenced[8_000:24_000] = 0

    features = AudioFeatures(audio_encoder, noise, Fraction(25), silent=[(8_000, 24_000)])

    assert torch.equal(features.window(25), AudioFeatures(audio_encoder, silenced, Fraction(25)).window(25))
    assert not torch.equal(features.window(25), AudioFeatures(audio_encoder, noise, Fraction(25)).window(25))
