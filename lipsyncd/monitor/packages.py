"""Which packages each renderer imports, and whether they are installed. Checking imports none of them.

The renderers are not imported either: they are heavy and run in a process of their own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from lipsyncd.settings import Render

NEEDS: Mapping[str, Sequence[str]] = {
    "preview": ("cv2",),
    "musetalk": ("cv2", "diffusers", "huggingface_hub", "onnxruntime", "safetensors", "torch", "transformers"),
}


def fault(render: Render) -> str:
    """Why the default renderer, which there is, lacks a package; "" if it lacks none."""
    places = dict(entry.split("=", 1) for entry in render.renderers)
    if render.renderer in places:
        needs: Sequence[str] = (places[render.renderer].partition(":")[0].partition(".")[0],)
    else:
        needs = NEEDS[render.renderer]
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    return f"{render.renderer} needs {', '.join(missing)}, which is not installed" if missing else ""
