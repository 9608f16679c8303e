"""The program that speaks one text with espeak-ng: `python -m lipsyncd.prepare.espeak_child`, jailed by `speech`.

The text is read from stdin; the voice that spoke is printed as JSON, and so are the voices of `--voices`. The exit
status is 65 when the text or the voice cannot be spoken, 69 without a library that works.

The callback that takes the samples is made with `memfd_create`, by ctypes. Before the text is read, the process gives
up that call, and `execve` with it: a file in memory lies in no folder, so that Landlock would let it run.

The samples go into the file as they come. Leaves the library's C interface to `voices.espeak`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import wave
from dataclasses import asdict
from pathlib import Path

from lipsyncd.errors import SpeechFailed, SpeechNotInstalled
from lipsyncd.prepare.speech import DEFAULT_VOICE, DEFAULT_WORDS_PER_MINUTE, MAX_SOUND_S
from lipsyncd.prepare.spoken_text import MAX_CHARS, check_text, without_styles
from lipsyncd.prepare.voices.espeak import Library
from lipsyncd.sandbox import seccomp


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lipsyncd.prepare.espeak_child", description="Speak UTF-8 text from stdin."
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, metavar="FILE.wav")
    task.add_argument("--voices", action="store_true", help="print the voices as JSON")
    parser.add_argument("--voice", default=DEFAULT_VOICE)
    parser.add_argument("--wpm", type=int, default=DEFAULT_WORDS_PER_MINUTE)
    parser.add_argument("--ssml", action="store_true")
    options = parser.parse_args(arguments)
    try:
        library = Library(speaks=not options.voices)
        if options.voices:
            print(json.dumps([asdict(voice) for voice in library.voices()]))
            return 0
        with contextlib.suppress(OSError):  # a kernel without seccomp filters
            seccomp.give_up("execve", "memfd_create")
        text = sys.stdin.buffer.read(4 * MAX_CHARS + 1).decode()
        text = without_styles(text) if options.ssml else text
        check_text(text, ssml=options.ssml)
        voice = library.choose(options.voice)
        with wave.open(str(options.out), "wb") as file:
            file.setparams((1, 2, library.rate, 0, "NONE", ""))
            most = MAX_SOUND_S * library.rate
            library.speak(text.encode(), options.wpm, file.writeframes, ssml=options.ssml, most_samples=most)
        print(json.dumps({"voice": voice}))
    except (SpeechFailed, OSError, UnicodeDecodeError) as error:
        print(getattr(error, "message", error), file=sys.stderr)
        return os.EX_DATAERR
    except SpeechNotInstalled as error:
        print(error.message, file=sys.stderr)
        return os.EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
