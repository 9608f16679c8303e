"""How long a job waits before its next attempt."""

from __future__ import annotations

BACK_OFF_S = (5, 30, 180)  # before the second, the third, and every later attempt
