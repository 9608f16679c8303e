"""What a render needs: its packages, its weights, a device, and a voice for jobs with a text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator

from lipsyncd import weights as weighing
from lipsyncd.doctor.findings import Finding, Installation, Verdict
from lipsyncd.errors import DeviceMissing, RendererNotInstalled, WeightsDamaged, WeightsMissing
from lipsyncd.monitor import gpu, packages
from lipsyncd.settings import Render
from lipsyncd.weights.auto_pull import size_text
from lipsyncd.weights.store import NOT_READY, Present, Store, hash_file, total_bytes

_WANTED_GB = 6.0  # of GPU memory for batches of 16


def renderer(installation: Installation) -> Finding:
    """Are the packages of the default renderer installed?"""
    render = installation.settings.render
    if fault := packages.fault(render):
        extra = "pip install 'lipsyncd[musetalk]'" if render.renderer == weighing.RENDERER else "install it"
        return Finding(
            Verdict.FAULT,
            fault,
            f"{extra}, or choose another renderer with render.renderer ({RendererNotInstalled.code})",
        )
    version = f", torch {_torch()}" if render.renderer == weighing.RENDERER else ""
    return Finding(Verdict.OK, f"{render.renderer}{version}")


def _torch() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


# -- weights -----------------------------------------------------------------------------------------------------------


def weights(installation: Installation) -> Finding:
    """Does every file exist that a render opens, and is it the one in the lock list?"""
    settings = installation.settings
    if settings.render.renderer != weighing.RENDERER:
        return Finding(Verdict.OK, f"{settings.render.renderer} needs none")
    store = weighing.store_of(settings)
    there = [present for present in store.status() if not present.weight.optional or present.path is not None]
    if damaged := list(_damaged(store, there, full=installation.full)):
        return Finding(Verdict.FAULT, f"{store.folder}: {'; '.join(damaged)}", WeightsDamaged.default_remedy)
    missing = [present.weight for present in there if present.state == "missing"]
    if missing:
        names = ", ".join(weight.name for weight in missing)
        seen = f"{store.folder}: missing {names} ({size_text(total_bytes(missing))})"
        if settings.weights.auto_pull and not weighing.offline():
            return Finding(Verdict.NOTE, f"{seen}; the first job downloads them", "`lipsyncd models pull` does it now")
        why = "HF_HUB_OFFLINE is set" if weighing.offline() else "weights.auto_pull is off"
        return Finding(Verdict.FAULT, f"{seen}, and {why}", WeightsMissing.default_remedy)
    size = size_text(sum(present.size_bytes for present in there))
    if not_ready := [f"{present.weight.name} {present.state}" for present in there if present.state in NOT_READY]:
        seen = f"{len(there)} files, {size}, for {store.folder}: {', '.join(not_ready)}"
        return Finding(Verdict.NOTE, seen, "the first job makes them ready; `lipsyncd models pull` does it now")
    unverified = [present.weight.name for present in there if present.state == "unverified"]
    if unverified and not installation.full:
        seen = f"{len(there)} files, {size}, in {store.folder}; not hashed yet: {', '.join(unverified)}"
        return Finding(Verdict.NOTE, seen, "the next render hashes them; `lipsyncd models verify` does it now")
    how = "hashed just now" if installation.full else "verified"
    return Finding(Verdict.OK, f"{len(there)} files, {size}, {how}, in {store.folder}")


def _damaged(store: Store, there: list[Present], *, full: bool) -> Iterator[str]:
    """Files with a wrong size, or with `full` a wrong hash. Renames none of them."""
    for present in there:
        weight, path = present.weight, present.path
        if path is None or present.state in NOT_READY:
            continue
        expected_bytes = store.expected_bytes(weight)
        if expected_bytes is not None and present.size_bytes != expected_bytes:
            yield f"{weight.name} has {present.size_bytes} bytes instead of {expected_bytes}"
        elif full and hash_file(path)[0] != store.expected_sha256(weight):
            yield f"{weight.name} does not have the hash in the lock list"


# -- the device --------------------------------------------------------------------------------------------------------


def device(installation: Installation) -> Finding:
    """Do the configured devices exist? The driver is asked about a GPU; no context is created on it."""
    render = installation.settings.render
    looked = [_device(render, name) for name in render.devices[: render.max_concurrent_jobs]]
    worst = max(looked, key=lambda found: found.verdict.severity)
    return Finding(worst.verdict, "; ".join(found.seen for found in looked), worst.remedy)


def _device(render: Render, name: str) -> Finding:
    heavy = render.renderer == weighing.RENDERER
    if name.startswith("cpu"):
        if heavy:
            return Finding(Verdict.NOTE, f"{name}: musetalk takes seconds for each frame on a CPU")
        return Finding(Verdict.OK, name)
    seen = gpu.find(name)
    if seen is None and (heavy or name != "auto"):
        held = "there are device files, but the driver does not answer" if os.path.exists("/dev/nvidiactl") else ""  # noqa: PTH110
        return Finding(Verdict.FAULT, f"{name}: no such GPU{f', {held}' if held else ''}", DeviceMissing.default_remedy)
    if seen is None:
        return Finding(Verdict.OK, f"{name}: no GPU, and {render.renderer} needs none")
    free_gb = seen.memory.total_gb - seen.memory.used_gb
    text = f"{name}: {seen.name}, driver {seen.driver}, {free_gb:.1f} of {seen.memory.total_gb:.1f} GB free"
    if heavy and _torch().endswith("+cpu"):
        remedy = "install a torch with CUDA: pip install --force-reinstall 'torch' from PyTorch's own index"
        return Finding(Verdict.FAULT, f"{text}; torch {_torch()} is a build without CUDA", remedy)
    if heavy and free_gb < _WANTED_GB:
        remedy = "other programs may hold GPU memory (`nvidia-smi`), or lower render.unload_idle_s"
        return Finding(Verdict.NOTE, f"{text}; with less than {_WANTED_GB:g} GB, batches are halved", remedy)
    return Finding(Verdict.OK, text)


# -- text --------------------------------------------------------------------------------------------------------------


def speech(installation: Installation) -> Finding:
    """Can the text of a job be spoken?"""
    speech = installation.settings.speech
    if speech.command:
        program = speech.command[0]
        if shutil.which(program) is None:
            return Finding(Verdict.FAULT, f"{program} is not an executable program", "correct speech.command")
        return Finding(Verdict.OK, program)
    if importlib.util.find_spec("espeakng_loader") is None:
        return Finding(Verdict.NOTE, "none: jobs with a text wait", "pip install 'lipsyncd[tts]'")
    return Finding(Verdict.OK, f"espeak-ng, voice {speech.voice}")
