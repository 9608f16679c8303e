"""Which channel the renderer listens to when the sum of both is nearly silent.

A stereo recording with one microphone connected the wrong way round holds the same voice twice, in opposite phase: each
channel is heard, and their sum is not. Owns that measurement. Leaves decoding to `decode_sound`.
"""

from __future__ import annotations

from array import array
from operator import mul
from pathlib import Path
from typing import BinaryIO

LEAST_LOSS_DB = 12.0  # of the sum against the louder channel; one silent channel costs 6 dB, different sounds 3 dB
_BLOCK_S = 0.02
_MOST_BLOCKS = 2000  # spread over a longer sound: 40 s tell as much as 10 minutes
_SAMPLE_BYTES = 2
_LEAST_SQUARE = 1.0  # below one step of 16 bits there is nothing to hear


def heard_channel(speech: Path, rate: int, sound: Path, sound_rate: int) -> int | None:
    """0 or 1, the louder channel, when mono `speech` has lost it; None when `speech` is right.

    speech  mono int16 at `rate` samples per second, the sum of both channels
    sound   the same in two channels, int16 at `sound_rate`, interleaved
    """
    block, sound_block = round(rate * _BLOCK_S), round(sound_rate * _BLOCK_S)
    blocks = max(1, speech.stat().st_size // (block * _SAMPLE_BYTES))
    step = -(-blocks // _MOST_BLOCKS)
    summed, channels = 0.0, [0.0, 0.0]
    with speech.open("rb") as mono, sound.open("rb") as stereo:
        for number in range(0, blocks, step):
            summed += _square(_values(mono, number * block, block)) / block
            both = _values(stereo, number * sound_block * 2, sound_block * 2)
            for channel in (0, 1):
                channels[channel] += _square(both[channel::2]) / sound_block
    louder = max(channels)
    if louder < _LEAST_SQUARE * len(range(0, blocks, step)) or summed * 10 ** (LEAST_LOSS_DB / 10) > louder:
        return None
    return channels.index(louder)


def _values(file: BinaryIO, first: int, count: int) -> array[int]:
    file.seek(first * _SAMPLE_BYTES)
    data = file.read(count * _SAMPLE_BYTES)
    return array("h", data[: len(data) // _SAMPLE_BYTES * _SAMPLE_BYTES])


def _square(values: array[int]) -> float:
    return float(sum(map(mul, values, values)))
