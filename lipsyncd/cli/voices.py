"""`lipsyncd voices`: list who can speak a text, and let them try. Imports wait until the command runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipsyncd.cli.app import Invocation, json_option

if TYPE_CHECKING:
    from lipsyncd.prepare.voices.catalogue import Listed
    from lipsyncd.settings import Speech

_LONGEST_NAME, _LONGEST_LANGUAGE = 30, 22
_LEAST_COLUMNS = 60


@click.command()
@click.argument("names", nargs=-1)
@click.option("--say", metavar="TEXT", help="Speak TEXT with each of NAMES, or with speech.voice, into NAME.wav.")
@click.option("--ssml", is_flag=True, help="TEXT is SSML.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    help="Folder for the sounds of --say, in place of the current one.",
)
@click.option("--force", is_flag=True, help="Replace sounds of the same names.")
@json_option
@click.pass_obj
def voices(
    invocation: Invocation, names: tuple[str, ...], say: str | None, ssml: bool, out: Path, force: bool, as_json: bool
) -> None:
    """List the voices that speak text, or let them try.

    NAMES are names of voices (en_US-joe-medium, en-gb+f3), languages (de), or names of other services
    (de-DE-KatjaNeural), which get the voice that would speak for them.
    """
    rules = invocation.settings.speech
    if say is None:
        _list(rules, names, as_json)
        return
    spoken = [_try(rules, name, say, ssml, out, force, quiet=as_json) for name in names or (rules.voice,)]
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json(spoken)


def _list(rules: Speech, names: Sequence[str], as_json: bool) -> None:
    from lipsyncd.cli.display import print_json
    from lipsyncd.prepare.voices.catalogue import catalogue

    found = catalogue(rules.voices)
    shown = [voice for name in names for voice in found.matching(name)] if names else list(found.voices)
    shown = list(dict.fromkeys(shown))
    if as_json:
        print_json([_fields(voice) for voice in shown])
        return
    for line in table(shown, max(shutil.get_terminal_size((80, 24)).columns, _LEAST_COLUMNS)):
        click.echo(line)
    if len(shown) == 1 and shown[0].speaker_names:
        click.echo(f"speakers, each used as {shown[0].name}+SPEAKER: {', '.join(shown[0].speaker_names)}")
    notes = [*found.notes, *(f"{voice.name} cannot speak: {voice.fault}" for voice in shown if voice.fault)]
    if rules.command:
        notes.append(f"speech.command speaks all texts in their place: {rules.command[0]}")
    if not names:
        notes.append(f"voices of Piper are looked for in {rules.voices}; the default is {rules.voice}")
    for note in notes:
        click.echo(note, err=True)


def _fields(voice: Listed) -> dict[str, object]:
    return {
        "name": voice.name,
        "language": voice.language,
        "source": voice.source,
        "gender": voice.gender,
        "speakers": voice.speakers,
        "speaker_names": voice.speaker_names,
        "fault": voice.fault,
    }


def table(shown: Sequence[Listed], columns: int) -> list[str]:
    """Lines of at most so many columns."""
    rows = [("NAME", "LANGUAGE", "ABOUT"), *((one.name, one.language, one.about) for one in shown)]
    name = min(max(len(row[0]) for row in rows), _LONGEST_NAME)
    language = min(max(len(row[1]) for row in rows), _LONGEST_LANGUAGE)
    widths = (name, language, columns - name - language - 4)
    return ["  ".join(_cell(*pair) for pair in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else f"{text[: width - 1]}…"


def _try(rules: Speech, name: str, text: str, ssml: bool, out: Path, force: bool, *, quiet: bool) -> dict[str, object]:
    """Speak the text with one voice, as a job would, into a file of its name."""
    import time
    import wave

    from lipsyncd.errors import UsageError
    from lipsyncd.prepare.inputs import speak_as

    target = out / f"{name.replace('/', '-')}.wav"
    if target.exists() and not force:
        raise UsageError(f"{target} exists already", remedy="move it away, or use --force")
    begun = time.monotonic()
    spoken = speak_as(rules, text, target, voice=name, ssml=ssml)
    took_s = time.monotonic() - begun
    with wave.open(str(target)) as sound:
        seconds = sound.getnframes() / sound.getframerate()
    if not quiet:
        click.echo(f"{target}  {seconds:.1f} s of sound in {took_s:.1f} s")
        for note in spoken.notes:
            click.echo(note, err=True)
    return {"file": str(target), "voice": spoken.voice, "seconds": round(seconds, 2), "notes": spoken.notes}
