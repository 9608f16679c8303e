"""One voice of Piper on onnxruntime: symbols in, samples out, on one thread and the same at each run.

The model may be a stranger's. It is read from memory, so that it finds no file beside it, and the jail allows no other.

Source: VITS (Kim et al., arXiv:2106.06103), as Piper exports it: `input`, `input_lengths`, `scales`, `sid`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lipsyncd.errors import VoiceUnusable
from lipsyncd.renderers.piper.config import END, PAD, START, VoiceConfig

Samples = NDArray[np.float32]

_SEED = 1  # of the noise that makes a voice lively: the same for each run
_FATAL_ONLY = 4
_NEEDED, _ALLOWED = {"input", "input_lengths", "scales"}, {"input", "input_lengths", "scales", "sid"}
_MOST_SECONDS = 120  # of one sentence: three times what the slowest pace gives
_MOST_SHOWN = 160


class PiperVoice:
    """A loaded model. Raises `VoiceUnusable` when it is none of Piper's.

    pace  how fast it speaks; 2 is twice as fast as it was trained
    """

    def __init__(self, model: bytes, config: VoiceConfig, *, speaker: int = 0, pace: float = 1.0) -> None:
        self.config = config
        self.missing: set[str] = set()  # symbols that the voice does not know, left out
        self._scales = np.array([config.noise, config.length / pace, config.noise_width], np.float32)
        self._session = _session(model)
        inputs = {one.name for one in self._session.get_inputs()}
        if not _NEEDED <= inputs <= _ALLOWED:
            raise VoiceUnusable(
                f"its model takes {', '.join(sorted(inputs))[:_MOST_SHOWN]!r}, and one of Piper takes "
                "'input, input_lengths, scales' and perhaps 'sid'"
            )
        self._more = {"sid": np.array([speaker], np.int64)} if "sid" in inputs else {}

    def speak(self, symbols: str) -> Samples:
        """The sound of one sentence: (N,) float32, about -1 to 1. Raises `VoiceUnusable`."""
        ids = self._numbers(symbols)
        if len(ids) <= 3:  # only start, pad and end
            return np.zeros(0, np.float32)
        feed = {
            "input": np.array([ids], np.int64),  # (1, n)
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": self._scales,
            **self._more,
        }
        try:
            made = self._session.run(None, feed)
        except Exception as error:  # onnxruntime has a class for each of its codes, and no common one
            raise VoiceUnusable(f"its model does not run: {shown(error)}") from error
        sound = made[0] if made else None
        if not isinstance(sound, np.ndarray) or sound.dtype not in (np.float32, np.float16, np.float64):
            raise VoiceUnusable("its model gives no sound")
        most = _MOST_SECONDS * self.config.rate
        samples = sound.reshape(-1)[:most].astype(np.float32, copy=False)  # (1, 1, 1, N) or (1, 1, N)
        if not np.isfinite(samples).all():
            raise VoiceUnusable("its model gives numbers that are no sound")
        return np.clip(samples, -1, 1)

    def _numbers(self, symbols: str) -> list[int]:
        """Start, each symbol with a pad before it, end."""
        ids, pad = list(self.config.ids[START]), self.config.ids[PAD]
        for symbol in symbols:
            known = self.config.ids.get(symbol)
            if known is None:
                self.missing.add(symbol)
            elif symbol not in (START, PAD, END):
                ids += [*pad, *known]
        return [*ids, *pad, *self.config.ids[END]]


def _session(model: bytes) -> Any:
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    onnxruntime.set_seed(_SEED)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL_ONLY
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see `speak`
        raise VoiceUnusable(f"its model does not load: {shown(error)}") from error


def shown(error: Exception) -> str:
    """The first line of what onnxruntime says."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rpartition(" : ")[2][:_MOST_SHOWN]
