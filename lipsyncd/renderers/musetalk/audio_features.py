"""The audio features of each video frame: ten steps of Whisper's hidden states around it.

Whisper encodes blocks of 30 s independently of each other. So blocks overlap by two seconds here and only their middles
are used; with `parity` they are end to end, as in the original. A thread encodes the next block while one is used. Two
are kept and at most two wait, so memory does not grow with the length of the voice.

Owns features and windows. Leaves the encoder's weights to `painting.networks`, and what counts as silence to `silence`.
Source: MuseTalk 1.5, arXiv:2410.10122. Its windows at 24 and at 50 or more frames per second are off by 40 ms, and it
rounds 29.97 down to 29; both are correct here unless `parity` is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.audio import FULL_SCALE
from lipsyncd.renderers.musetalk.arithmetic import true_float32
from lipsyncd.renderers.musetalk.turn import Turn
from lipsyncd.renderers.prefetcher import Prefetcher

STEPS_PER_S = 50  # of Whisper's encoder
STEP_SAMPLES = SPEECH_RATE // STEPS_PER_S
BLOCK_STEPS = 30 * STEPS_PER_S  # steps that Whisper encodes at once
OVERLAP_STEPS = 2 * STEPS_PER_S  # steps that two blocks share; of each block the half nearer to its middle is used
WINDOW_STEPS = 10  # steps for each frame
STEPS_BEFORE = 4  # how many of these lie before the frame begins

Speech = NDArray[np.int16] | NDArray[np.float32]  # (N,) mono at 16 kHz; floats are -1..1


class AudioEncoder:
    """Whisper's encoder with its mel filters. Always float32: it is small, and half precision costs accuracy."""

    def __init__(self, encoder: WhisperEncoder, turn: Turn | None = None) -> None:
        """`turn`: of the device's networks, where other threads use them, too; None: they may run at the same time."""
        self._encoder, self._turn = encoder, turn
        self._filters = WhisperFeatureExtractor(feature_size=cast(Any, encoder.config).num_mel_bins)

    def encode(self, samples: NDArray[np.float32]) -> Tensor:
        """Hidden states of up to 30 s of sound: (1500, states, width) float32 on the CPU. Silence fills up the block.

        samples  (n,) float32, at most 480,000
        """
        mel = self._filters(samples, sampling_rate=SPEECH_RATE, return_tensors="pt").input_features
        device = next(self._encoder.parameters()).device
        with self._turn or nullcontext(), torch.inference_mode(), true_float32():
            states = self._encoder(mel.to(device, torch.float32), output_hidden_states=True).hidden_states
            return torch.stack(states, dim=2)[0].cpu()


class AudioFeatures:
    """The features of one voice: a window of tokens for each frame."""

    def __init__(
        self,
        audio_encoder: AudioEncoder,
        speech: Speech,
        fps: Fraction,
        *,
        silent: Sequence[tuple[int, int]] = (),
        parity: bool = False,
    ) -> None:
        """
        fps     exact frame rate; a Fraction, because 30000/1001 rounded down to 29 drifts by 2 s per minute
        silent  ranges of samples, (first, end), that are encoded as digital silence
        parity  compute the features as the original does, with its faults
        """
        self._audio_encoder, self._speech, self._silent = audio_encoder, speech, silent
        self._fps = Fraction(math.floor(fps)) if parity else fps
        self._hop = BLOCK_STEPS if parity else BLOCK_STEPS - OVERLAP_STEPS
        self._before = 2 * math.ceil(STEPS_PER_S / self._fps) if parity else STEPS_BEFORE
        self._steps = len(speech) // STEP_SAMPLES if parity else -(-len(speech) // STEP_SAMPLES)
        self._blocks: dict[int, Tensor] = {}
        self._latest = -1  # the last block that came from the thread, or was encoded without it
        self._coming: Iterator[tuple[int, Tensor]] = iter(())

    @contextmanager
    def ahead(self, frames: Iterable[int]) -> Iterator[None]:
        """Meanwhile a thread encodes the blocks of these frames, whose windows are asked for in this order.

        frames  rising numbers

        At most two blocks are encoded before they are needed. An error of the thread is raised by `window`.
        """
        self._latest = -1
        with closing(Prefetcher(self._encoded(frames, set(self._blocks)), most=1, name="sound")) as coming:
            self._coming = coming
            yield

    def _encoded(self, frames: Iterable[int], known: set[int]) -> Iterator[tuple[int, Tensor]]:
        """The blocks of these frames, each once, but for those that are known."""
        latest = -1
        for frame in frames:
            for block, _, _ in self._parts(frame):
                if block is not None and block > latest:
                    latest = block
                    if block not in known:
                        yield block, self._encode(block)

    def window(self, frame: int) -> Tensor:
        """The tokens of one frame, oldest first.

        returns  (10 x states, width) float32 on the CPU: 80 ms before the frame's start and 120 ms after it; zeros
                 where there is no sound
        """
        parts = list(self._parts(frame))
        states = {block: self._states_of(block) for block, _, _ in parts if block is not None}
        known = next(iter((states or self._blocks).values()), None)
        known = self._states_of(0) if known is None else known
        return torch.cat(
            [
                known.new_zeros(count, *known.shape[1:]) if block is None else states[block][start : start + count]
                for block, start, count in parts
            ]
        ).flatten(0, 1)

    def _parts(self, frame: int) -> Iterator[tuple[int | None, int, int]]:
        """The window of a frame, cut where another block begins: block, first step in it, steps.

        The block is None where there is no sound.
        """
        step = math.floor(frame * STEPS_PER_S / self._fps) - self._before
        end = step + WINDOW_STEPS
        while step < end:
            if 0 <= step < self._steps:
                block = self._block_of(step)
                stop = min(end, self._end_of(block))
                yield block, step - block * self._hop, stop - step
            else:
                stop = min(end, 0) if step < 0 else end
                yield None, 0, stop - step
            step = stop

    def _block_of(self, step: int) -> int:
        """The block whose states are used for a step."""
        margin = (BLOCK_STEPS - self._hop) // 2
        last = max(-(-(self._steps - BLOCK_STEPS) // self._hop), 0)
        return min(max((step - margin) // self._hop, 0), last)

    def _end_of(self, block: int) -> int:
        """The first step after those for which a block is used."""
        last = self._block_of(self._steps - 1)
        return self._steps if block >= last else (block + 1) * self._hop + (BLOCK_STEPS - self._hop) // 2

    def _states_of(self, block: int) -> Tensor:
        if block not in self._blocks:
            while len(self._blocks) > 1:
                del self._blocks[min(self._blocks)]
            self._blocks[block] = self._next_states(block)
        return self._blocks[block]

    def _next_states(self, block: int) -> Tensor:
        """The states of a block from the thread that encodes ahead, or computed now."""
        while self._latest < block and (coming := next(self._coming, None)) is not None:
            self._latest, states = coming
            if self._latest == block:
                return states
        self._latest = max(self._latest, block)
        return self._encode(block)

    def _encode(self, block: int) -> Tensor:
        return self._audio_encoder.encode(self._samples(block * self._hop * STEP_SAMPLES))

    def _samples(self, start: int) -> NDArray[np.float32]:
        """The sound of the block that begins at sample `start`: (n,) float32, with the silent ranges set to 0."""
        stretch = self._speech[start : start + BLOCK_STEPS * STEP_SAMPLES]
        samples = stretch.astype(np.float32)
        if stretch.dtype == np.int16:
            samples /= np.float32(FULL_SCALE)
        for first, end in self._silent:
            samples[max(first - start, 0) : max(end - start, 0)] = 0
        return samples
