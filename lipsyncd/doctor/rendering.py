"""What a render needs: its packages, its weights, a device, and a voice for jobs with a text."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator

from lipsyncd import weights as weighing
from lipsyncd.doctor.findings import Finding, Installation, Verdict
from lipsyncd.errors import DeviceMissing, LipsyncdError, RendererNotInstalled, WeightsDamaged, WeightsMissing
from lipsyncd.extras import ONNXRUNTIMES, how_to_install, how_to_install_package, how_to_keep_one_onnxruntime
from lipsyncd.monitor import gpu, packages
from lipsyncd.prepare.speech import find as find_voice
from lipsyncd.prepare.voices import piper_files
from lipsyncd.settings import Render
from lipsyncd.weights.auto_pull import size_text
from lipsyncd.weights.store import NOT_READY, Present, Store, hash_file, total_bytes

_WANTED_GB = 6.0  # of GPU memory for batches of 16


def renderer(installation: Installation) -> Finding:
    """Are the packages of the default renderer installed?"""
    render = installation.settings.render
    if fault := packages.fault(render):
        extra = how_to_install("musetalk") if render.renderer == weighing.RENDERER else "install it"
        return Finding(
            Verdict.FAULT,
            fault,
            f"{extra}, or choose another renderer with render.renderer ({RendererNotInstalled.code})",
        )
    both = [f"{name} {version}" for name in ONNXRUNTIMES if (version := _version(name))]
    if len(both) > 1:
        return Finding(
            Verdict.FAULT,
            f"{' and '.join(both)} are installed, and their files overwrite each other",
            how_to_keep_one_onnxruntime(),
        )
    versions = f", torch {_torch()}, {'onnxruntime of unknown version' if not both else both[0]}"
    return Finding(Verdict.OK, f"{render.renderer}{versions if render.renderer == weighing.RENDERER else ''}")


def _torch() -> str:
    return _version("torch") or "of unknown version"


def _version(package: str) -> str:
    """ "" without that package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# -- weights -----------------------------------------------------------------------------------------------------------


def weights(installation: Installation) -> Finding:
    """Does every file exist that a render opens, and is it the one in the lock list?"""
    settings = installation.settings
    if settings.render.renderer != weighing.RENDERER:
        return Finding(Verdict.OK, f"{settings.render.renderer} needs none")
    store = weighing.store_of(settings)
    there = [present for present in store.status() if _counts(present)]
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


def _counts(present: Present) -> bool:
    """Does a render open it? Of a file that no render waits for, a pickle is none yet."""
    if present.weight.extra:
        return present.state not in NOT_READY
    return not present.weight.optional or present.path is not None


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
        again = how_to_install_package("--force-reinstall torch")
        remedy = f"`pip config list` may show an index of CPU builds: take it out, then {again}"
        return Finding(Verdict.FAULT, f"{text}; torch {_torch()} is a build without CUDA", remedy)
    if heavy and render.kernels == "fused" and not _compiler():
        remedy = "install gcc and Python's headers, such as Debian's gcc and python3-dev"
        return Finding(Verdict.NOTE, f"{text}; no C compiler: Triton needs one for the fused networks", remedy)
    if heavy and free_gb < _WANTED_GB:
        remedy = "other programs may hold GPU memory (`nvidia-smi`), or lower render.unload_idle_s"
        return Finding(Verdict.NOTE, f"{text}; with less than {_WANTED_GB:g} GB, batches are halved", remedy)
    return Finding(Verdict.OK, text)


def _compiler() -> bool:
    """Is there a C compiler where Triton looks for one?"""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


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
        return Finding(Verdict.NOTE, "none: jobs with a text wait", how_to_install("tts"))
    try:
        files, voices = find_voice(speech.voice, speech.voices), piper_files.installed(speech.voices)
        if files is not None:
            files.hashes()  # reads both files whole
    except LipsyncdError as error:
        return Finding(Verdict.FAULT, f"speech.voice is {speech.voice}: {error.message}", error.remedy)
    if voices and importlib.util.find_spec("onnxruntime") is None:
        verdict = Verdict.NOTE if files is None else Verdict.FAULT
        seen = f"{len(voices)} voices of Piper in {speech.voices}, and onnxruntime is not installed"
        return Finding(verdict, seen, how_to_install("voices"))
    of_piper = f"; {len(voices)} of Piper in {speech.voices}" if voices else ""
    return Finding(Verdict.OK, f"{'espeak-ng' if files is None else 'Piper'}, voice {speech.voice}{of_piper}")
