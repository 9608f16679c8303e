"""Names of voices: whose they are, and which voice another service's name gets."""

from __future__ import annotations

import pytest

from lipsyncd.prepare.voices.names import Voice, espeak_for, is_piper_name, nearest, piper_for

OFFERED = [
    Voice(f"Name of {tag}", tag, "") for tag in ("de", "en", "en-gb", "en-us", "en-gb-scotland", "nb", "no", "e")
]
INSTALLED = [
    "de_DE-thorsten-high",
    "en_GB-alan-low",
    "en_US-amy-low",
    "en_US-joe-medium",
    "glados",
    "pt_BR-faber-medium",
]


@pytest.mark.parametrize(
    ("wanted", "language"),
    [
        ("en-US-JennyNeural", "en-us"),
        ("en_GB", "en-gb"),
        ("de-DE-KatjaNeural", "de"),
        ("de", "de"),
        ("xx-YY-Unknown", None),
        ("english", None),
        ("", None),
    ],
)
def test_the_nearest_voice_is_that_of_the_longest_language_tag(wanted: str, language: str | None) -> None:
    found = nearest(wanted, OFFERED)

    assert (found and found.language) == language


@pytest.mark.parametrize(
    ("wanted", "language"),
    [
        ("en-us", "en-us"),
        ("EN-US", "en-us"),
        ("name of de", "de"),
        ("en-gb-scotland", "en-gb-scotland"),
        ("en_GB", "en-gb"),
        ("de-DE", "de"),
        ("en-GB-SoniaNeural", "en-gb"),
        ("en-US-Wavenet-A", "en-us"),
        ("en-us-jennyneural", "en-us"),
        ("en-IN-NeerjaNeural", "en"),
        ("no-such-voice", None),  # no name of another service, although it begins like Norwegian
        ("de-typo", None),
        ("de-de-typo", None),
        ("Joanna", None),
    ],
)
def test_espeak_knows_its_own_names_and_those_of_other_services(wanted: str, language: str | None) -> None:
    found = espeak_for(wanted, OFFERED)

    assert (found and found.language) == language


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("de-DE-KatjaNeural", "de_DE-thorsten-high"),
        ("en-US-JennyNeural", "en_US-joe-medium"),  # of the same region, and better than amy
        ("en-us-jennymultilingualneural", "en_US-joe-medium"),
        ("en-GB-SoniaNeural", "en_GB-alan-low"),
        ("en-AU-NatashaNeural", "en_US-joe-medium"),  # none of the region: the best of the language
        ("de-AT-IngridNeural", "de_DE-thorsten-high"),
        ("pt-PT-Wavenet-A", "pt_BR-faber-medium"),
        ("sr-Latn-RS-NicholasNeural", None),
        ("fr-FR-DeniseNeural", None),
        ("en-us", None),
        ("en-gb-scotland", None),
        ("de", None),
        ("Joanna", None),
        ("glados", None),
    ],
)
def test_a_name_of_another_service_gets_the_best_voice_of_its_language(wanted: str, name: str | None) -> None:
    assert piper_for(wanted, lambda: INSTALLED) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("en_US-joe-medium", True), ("sr_RS-serbski_institut-medium", True), ("ar_JO-kareem-x_low", True),
     ("en-us", False), ("en_US", False), ("en-US-JennyNeural", False), ("glados", False), ("en_US-joe-huge", False)],
)  # fmt: skip
def test_a_name_of_pipers_form_is_recognised_without_its_file(name: str, expected: bool) -> None:
    assert is_piper_name(name) is expected
