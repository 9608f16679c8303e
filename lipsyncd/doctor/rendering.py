"""What a render needs: its packages, its weights, a device, and a voice for jobs that bring a text."""

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
    """Are the packages of the default renderer there?"""
    render = installation.settings.render
    if fault := packages.fault(render):
        extra = "pip install 'lipsyncd[musetalk]'" if render.renderer == weighing.RENDERER else "install it"
        return Finding(
            Verdict.FAULT, fault, f"{extra}, or choose another one with render.renderer ({RendererNotInstalled.code})"
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
    """Are all files there that every render opens, and are they what the lock list says?"""
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
            return Finding(Verdict.NOTE, f"{seen}; the first job pulls them", "`lipsyncd models pull` does so now")
        why = "HF_HUB_OFFLINE is set" if weighing.offline() else "weights.auto_pull is off"
        return Finding(Verdict.FAULT, f"{seen}, and {why}", WeightsMissing.default_remedy)
    size = size_text(sum(present.size_bytes for present in there))
    if lying := [f"{present.weight.name} {present.state}" for present in there if present.state in NOT_READY]:
        seen = f"{len(there)} files, {size}, for {store.folder}: {', '.join(lying)}"
        return Finding(Verdict.NOTE, seen, "the first job takes them over; `lipsyncd models pull` does so now")
    unproved = [present.weight.name for present in there if present.state == "unverified"]
    if unproved and not installation.full:
        seen = f"{len(there)} files, {size}, in {store.folder}; not hashed yet: {', '.join(unproved)}"
        return Finding(Verdict.NOTE, seen, "the next render hashes them; `lipsyncd models verify` does so now")
    how = "hashed just now" if installation.full else "verified"
    return Finding(Verdict.OK, f"{len(there)} files, {size}, {how}, in {store.folder}")


def _damaged(store: Store, there: list[Present], *, full: bool) -> Iterator[str]:
    """What is wrong with the files that are there: their size, or with `full` their hash. Sets nothing aside."""
    for present in there:
        weight, path = present.weight, present.path
        if path is None or present.state in NOT_READY:
            continue
        expected_bytes = store.expected_bytes(weight)
        if expected_bytes is not None and present.size_bytes != expected_bytes:
            yield f"{weight.name} has {present.size_bytes} bytes of {expected_bytes}"
        elif full and hash_file(path)[0] != store.expected_sha256(weight):
            yield f"{weight.name} has another hash than the lock list says"


# -- the device --------------------------------------------------------------------------------------------------------


def device(installation: Installation) -> Finding:
    """Are the devices there that are asked for? A GPU is seen through its driver; no context is made on it."""
    render = installation.settings.render
    looked = [_device(render, name) for name in render.devices[: render.max_concurrent_jobs]]
    worst = max(looked, key=lambda found: found.verdict.severity)
    return Finding(worst.verdict, "; ".join(found.seen for found in looked), worst.remedy)


def _device(render: Render, name: str) -> Finding:
    heavy = render.renderer == weighing.RENDERER
    if name.startswith("cpu"):
        if heavy:
            return Finding(Verdict.NOTE, f"{name}: musetalk needs seconds for each frame there")
        return Finding(Verdict.OK, name)
    seen = gpu.look(name)
    if seen is None and (heavy or name != "auto"):
        held = "its device files are there and the driver does not answer" if os.path.exists("/dev/nvidiactl") else ""  # noqa: PTH110
        return Finding(Verdict.FAULT, f"{name}: no such GPU{f', {held}' if held else ''}", DeviceMissing.default_remedy)
    if seen is None:
        return Finding(Verdict.OK, f"{name}: no GPU, and {render.renderer} works without one")
    free_gb = seen.memory.total_gb - seen.memory.used_gb
    told = f"{name}: {seen.name}, driver {seen.driver}, {free_gb:.1f} of {seen.memory.total_gb:.1f} GB free"
    if heavy and _torch().endswith("+cpu"):
        remedy = "install a torch with CUDA: pip install --force-reinstall 'torch' from PyTorch's own index"
        return Finding(Verdict.FAULT, f"{told}; torch {_torch()} is a build without CUDA", remedy)
    if heavy and free_gb < _WANTED_GB:
        remedy = "other programs hold memory there (`nvidia-smi`), or render.unload_idle_s may be shorter"
        return Finding(Verdict.NOTE, f"{told}: under {_WANTED_GB:g} GB, batches are halved", remedy)
    return Finding(Verdict.OK, told)


# -- text --------------------------------------------------------------------------------------------------------------


def speech(installation: Installation) -> Finding:
    """Can jobs that bring a text be spoken?"""
    speech = installation.settings.speech
    if speech.command:
        program = speech.command[0]
        if shutil.which(program) is None:
            return Finding(Verdict.FAULT, f"{program} is no program that can be run", "correct speech.command")
        return Finding(Verdict.OK, program)
    if importlib.util.find_spec("espeakng_loader") is None:
        return Finding(Verdict.NOTE, "none: jobs that bring a text wait", "pip install 'lipsyncd[tts]'")
    return Finding(Verdict.OK, f"espeak-ng, voice {speech.voice}")
