"""A WAV file that grows sentence by sentence and gets an even level at its end."""

from __future__ import annotations

import wave
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 44
_LOUDEST = 0.9  # of the whole file, which some voices are far below
_MOST_GAIN = 8.0
_BLOCK_SAMPLES = 1 << 16


class GrowingWav:
    """A 16-bit mono WAV at `path`, which exists. Leaving the block writes its header; `level` may follow."""

    def __init__(self, path: Path, rate: int) -> None:
        self._path = path
        self._rate = rate
        self._peak = 0.0
        self.samples = 0
        self._file = wave.open(str(path), "wb")  # noqa: SIM115 - closed by __exit__
        self._file.setparams((1, 2, rate, 0, "NONE", ""))

    def __enter__(self) -> GrowingWav:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def seconds(self) -> float:
        return self.samples / self._rate

    def add(self, sound: NDArray[np.float32]) -> None:
        """Append samples from -1 to 1."""
        self._peak = max(self._peak, float(np.abs(sound).max(initial=0)))
        self._write(sound)

    def rest(self, seconds: float) -> None:
        """Append silence."""
        self._write(np.zeros(round(seconds * self._rate), np.float32))

    def _write(self, sound: NDArray[np.float32]) -> None:
        self._file.writeframes(np.rint(sound * 32767).astype("<i2").tobytes())
        self.samples += len(sound)

    def level(self) -> bool:
        """After the block: bring the loudest sample to 90 %; False when there is no sound at all."""
        if self._peak * 32767 < 1:
            return False
        gain = min(_LOUDEST / self._peak, _MOST_GAIN)
        with self._path.open("r+b") as file:
            file.seek(_HEADER_BYTES)
            while block := file.read(2 * _BLOCK_SAMPLES):
                louder = np.rint(np.frombuffer(block, "<i2") * gain).clip(-32768, 32767).astype("<i2")
                file.seek(-len(block), 1)
                file.write(louder.tobytes())
        return True
