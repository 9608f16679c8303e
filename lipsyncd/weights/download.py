"""Download one file from the hub, in a process of its own that may be killed at any time.

    python -m lipsyncd.weights.download REQUEST

REQUEST is a JSON object: `repository`, `revision`, `path` and `size_bytes` as in the lock list, `part`, the file to
write, and `parent`, the id of the process that started this one. Bytes that `part` already holds are kept, and only the
rest is requested. The answer on standard output is one line of JSON: {} or {"error": ...}.

It uses huggingface_hub's own transport, so HF_ENDPOINT, HF_TOKEN, proxies and retries work as usual. It does not use
`hf_hub_download`, whose partial files have random names, so that each call begins at byte 0. The only home of
huggingface_hub. Does not check the content: `pull` hashes it.
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

_SMALLEST_LIMIT_BYTES = 1 << 20  # a smaller limit would also cut short Python's own files
_SET_PARENT_DEATH_SIGNAL = 1


def fetch(request: dict[str, Any]) -> None:
    """Complete `part` to the size in the lock list. Raises OSError and huggingface_hub's own errors."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    expected = request["size_bytes"]
    url = hf_hub_url(request["repository"], request["path"], revision=request["revision"])
    with _open_part(Path(request["part"]), expected) as part:
        http_get(
            url,
            part,
            resume_size=part.tell(),
            headers=build_hf_headers(library_name="lipsyncd"),
            expected_size=expected,
            displayed_filename=request["path"],
        )


def _open_part(part: Path, expected: int) -> BinaryIO:
    """The partial file, at its end. One that is too long has wrong content and is truncated to nothing."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    file = os.fdopen(descriptor, "r+b")
    if file.seek(0, os.SEEK_END) > expected:
        file.truncate(0)
        file.seek(0)
    return file


def main(request: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != request["parent"]:  # the parent died before the line above
        sys.exit(1)
    # A hub that sends too many bytes cannot fill the disk.
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
