"""The options that say what a video shall be like, the same for `submit` and for `render`, and their check.

Each function that takes them gets them as fields for `inbox.submit.manifest_of`. `check` finds the mistakes before a
job is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lipsyncd.inbox.order_rules import OrderRules
    from lipsyncd.jobs.manifest import Manifest
    from lipsyncd.storage.folders import Folders

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--text", help="Text to speak in place of AUDIO (extra `tts`)."),
    click.option("--voice", help="Voice for --text."),
    click.option("--stitch/--square", default=None, help="Show the whole picture, or the square around the face."),
    click.option("--resolution", type=int, help="Side of the square in pixels: even, 64 to 2048."),
    click.option("--fps", help="Frame rate, such as 25, 29.97 or 30000/1001."),
    click.option(
        "--motion", type=click.Choice(["none", "subtle", "lively"]), help="How much the head of a still moves."
    ),
    click.option("--av-offset-ms", type=int, help="Lips this much later than the sound: -200 to 200."),
    click.option("--renderer", help="Renderer, such as preview or musetalk."),
    click.option(
        "--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the renderer; VALUE is JSON."
    ),
)


def job_options(command: _F) -> _F:
    """Add them, in this order, to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check(order: Manifest, folders: Folders, rules: OrderRules, *, queue: str, out: Path | None) -> None:
    """Raise what is wrong: `UsageError`, `UnknownRenderer`, `BadOption`, `NameTaken`. Nothing is dropped or changed.

    out  where the video shall be copied
    """
    from lipsyncd.inbox.order_rules import check_name, check_order
    from lipsyncd.inbox.submit import natural_name
    from lipsyncd.standalone.target import check_target

    if out is not None:
        check_target(out, [Path(source) for source in (order.image, order.audio) if source], force=True)
    check_order(order, rules, queue=queue)
    if order.text is not None:
        _check_speech(order.text, order.voice, rules)
    check_name(folders, order.out_name or natural_name(order), rules, queue=queue)


def _check_speech(text: str, voice: str | None, rules: OrderRules) -> None:
    """Raise `UsageError` for a text that no voice could speak, or a voice that there is not.

    Where this user's installation has no speech, the daemon's decides.
    """
    from lipsyncd.errors import SpeechFailed, SpeechNotInstalled, UsageError, VoiceUnusable
    from lipsyncd.prepare import speech
    from lipsyncd.prepare.spoken_text import check_text
    from lipsyncd.prepare.voices.names import espeak_for, no_voice

    try:
        check_text(text, ssml=False)
        if voice is None or rules.any_voice or speech.find(voice, Path(rules.voices)) is not None:
            return
        if espeak_for(voice.partition("+")[0], speech.voices()) is None:
            raise no_voice(voice)
    except (SpeechFailed, VoiceUnusable) as error:
        raise UsageError(error.message, remedy=error.remedy) from error
    except SpeechNotInstalled:
        return
