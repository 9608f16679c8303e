"""Turn a pickle of tensors into safetensors: run once for each of two files, in the jail, never while rendering.

    python lipsyncd/renderers/musetalk/convert.py REQUEST

REQUEST is a JSON object: `pickle`, `target` (an empty file), `dtype` of the floating-point tensors, and `from`, the
pickle's hash, which is written into the target's metadata. For a file that is no mapping of names to tensors it exits
with 3 and prints the reason to stderr.

Reads with `weights_only=True`, which builds tensors and nothing else. One tensor at a time is in memory: the pickle is
memory-mapped where its format allows it, and the target is written from front to back, in the order of the names. The
target consists of eight bytes of length, a JSON header of that length, and the bytes of the tensors.
Source: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

REFUSED = 3
_NEWER = b"PK\x03\x04"  # since torch 1.6 a ZIP archive of plain arrays, which can be mapped
_OLDER = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9\x20j\xa8P\x19."  # a pickled number; the even older tar format is refused
_ALIGN_BYTES = 8
_LONGEST_REASON = 200  # characters
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Refused(Exception):
    """The file is not a mapping of names to tensors."""


def load(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a pickle, on the CPU, memory-mapped where the file has torch's newer format.

    Raises `Refused` for a file that torch's safe reader does not accept, and for anything but named tensors.
    """
    with path.open("rb") as file:
        head = file.read(len(_OLDER))
    if not head.startswith((_NEWER, _OLDER)):
        raise Refused("it was not written by torch.save")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(_NEWER))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise Refused(f"it is not a plain archive of tensors: {_reason(error)}") from None
    if not isinstance(found, Mapping) or not found:
        raise Refused(f"it holds a {type(found).__name__} instead of named tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.dtype not in _NAMES:
            raise Refused(f"{name!r} in it is not a tensor that safetensors can hold")
    return found


def _reason(error: Exception) -> str:
    """Torch's error message without its advice to disable `weights_only`."""
    text = str(error)
    fact = re.search(r"^.*unsupported.*$", text, re.IGNORECASE | re.MULTILINE)
    return (fact.group() if fact else text.partition(". ")[0]).strip()[:_LONGEST_REASON] or type(error).__name__


def write(tensors: Mapping[str, torch.Tensor], target: Path, *, dtype: torch.dtype, made_from: str) -> None:
    """Write the tensors in the order of their names, floating-point ones as `dtype`, and fsync. Raises OSError."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "sha256_of_source": made_from}}
    at = 0
    for name, tensor in sorted(tensors.items()):
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * kept.itemsize
        header[name] = {"dtype": _NAMES[kept], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % _ALIGN_BYTES)
    with target.open("r+b") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, tensor in sorted(tensors.items()):
            stored = tensor.to(dtype) if tensor.is_floating_point() else tensor
            file.write(stored.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def main(request: Mapping[str, str]) -> int:
    try:
        tensors = load(Path(request["pickle"]))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return REFUSED
    write(tensors, Path(request["target"]), dtype=getattr(torch, request["dtype"]), made_from=request["from"])
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
