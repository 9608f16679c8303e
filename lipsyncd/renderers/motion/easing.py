"""A step without corners, for weights over a picture and for curves over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def smoothstep(value: NDArray[Any] | float) -> Values:
    """0 up to 0, 1 from 1 on, and a cubic with level ends between."""
    held = np.clip(np.asarray(value, np.float64), 0.0, 1.0)
    return held * held * (3.0 - 2.0 * held)
