"""Download one file from the hub: a process of its own, whose end leaves nothing but a longer partial file.

    python -m lipsyncd.weights.download REQUEST

REQUEST is a JSON object: repository, revision, path, size_bytes, `part`, the file to write, and `parent`, the number
of the process that started it. What `part` holds already is kept, and only the rest is asked for. The answer is one
line of JSON: {} or {"error": ...}.

Goes through huggingface_hub's own transport, so that HF_ENDPOINT, HF_TOKEN, proxies and retries work as everywhere. Not
through `hf_hub_download`: that begins at zero again each time it is called, since its partial files have random names.
The only home of huggingface_hub. Judges nothing: our own hash does that, in `pulling`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

_SMALLEST_LIMIT_BYTES = 1 << 20  # below, a limit would also cut short what Python itself writes
_SET_PARENT_DEATH_SIGNAL = 1


def fetch(request: dict[str, Any]) -> None:
    """Make `part` as long as the lock list says. Raises what huggingface_hub raises: OSError and its own classes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    expected = request["size_bytes"]
    url = hf_hub_url(request["repository"], request["path"], revision=request["revision"])
    with _opened(Path(request["part"]), expected) as part:
        http_get(
            url,
            part,
            resume_size=part.tell(),
            headers=build_hf_headers(library_name="lipsyncd"),
            expected_size=expected,
            displayed_filename=request["path"],
        )


def _opened(part: Path, expected: int) -> BinaryIO:
    """The partial file, at its end. One that is too long cannot be the beginning of ours and starts again."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    file = os.fdopen(descriptor, "r+b")
    if file.seek(0, os.SEEK_END) > expected:
        file.truncate(0)
        file.seek(0)
    return file


def main(request: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != request["parent"]:  # it died before the line above
        sys.exit(1)
    # A hub that sends more than it should fills no disk.
    largest = max(request["size_bytes"], _SMALLEST_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        fetch(request)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        print(json.dumps({"error": f"{type(error).__name__}: {text}"}), flush=True)
        sys.exit(1)
    print("{}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
