"""The pitch of a voice, held against librosa's measure of the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from lipsyncd.renderers import SPEECH_RATE
from lipsyncd.renderers.voice.analysis import HOP, analyse
from tests.kits.media.preview_kit import voice


@pytest.mark.slow  # librosa takes 20 s to import, since it compiles
@pytest.mark.parametrize("speaker", ["en-us", "en-us+f3"])
def test_the_pitch_is_that_of_librosa(speaker):
    import librosa

    speech = voice("How are you? I am very well, and all of us are at home.", speaker)
    measured = analyse(speech)
    theirs = librosa.yin(
        speech / np.float32(32768), fmin=70, fmax=400, sr=SPEECH_RATE, frame_length=1024, hop_length=HOP, center=True
    )
    steps = min(len(theirs), len(measured.pitch_hz))
    voiced = measured.periodicity[:steps] > 0.8
    apart = np.abs(12 * np.log2(measured.pitch_hz[:steps] / theirs[:steps]))[voiced]
    assert voiced.sum() > 80
    assert np.mean(apart < 1.0) > 0.85
