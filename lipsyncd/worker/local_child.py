"""The render child for one device, as the settings want it: for the daemon, and for a render without one."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from lipsyncd.results.recipe import kernel_cache
from lipsyncd.settings import CurrentSettings, Render, Settings
from lipsyncd.worker.child_process import LocalChild, Timeouts


def local_child(settings: CurrentSettings, device: str, weights: Path, *, preload: str = "") -> LocalChild:
    """A child that is not started yet. Its time limits follow the settings; all else is as they are now.

    weights  the folder that holds them
    preload  a renderer to load at the start instead of with its first job
    """
    render = settings.now.render
    return LocalChild(
        device,
        partial(timeouts_of, settings),
        renderers=render.renderers,
        preload=preload,
        environment=render.environment,
        variables={**variables_of(render), **places_of(weights, settings.now)},
    )


def variables_of(render: Render) -> dict[str, str]:
    """What a child reads of the settings from its environment, on whatever machine it runs."""
    return {
        "LIPSYNCD_RENDER_MAX_VRAM_GB": f"{render.max_vram_gb:g}",
        "LIPSYNCD_RENDER_CLEAR_CACHE": str(render.clear_cache).lower(),
        "LIPSYNCD_RENDER_KERNELS": render.kernels,
        "LIPSYNCD_RENDER_CPU_PRECISION": render.cpu_precision,
        "LIPSYNCD_RENDER_THREADS": str(render.threads),
    }


def places_of(weights: Path, settings: Settings) -> dict[str, str]:
    """The variables that name folders of the machine on which the child runs."""
    return {
        "LIPSYNCD_WEIGHTS_DIR": str(weights),
        "LIPSYNCD_RENDER_CACHE_DIR": str(kernel_cache(settings)),
        # What Triton has compiled: its own place may be lost at a restart, or not be writable for a service.
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR") or str(kernel_cache(settings) / "triton"),
    }


def timeouts_of(settings: CurrentSettings) -> Timeouts:
    """The time limits of a render, as the settings are now."""
    render = settings.now.render
    return Timeouts(render.start_timeout_s, render.job_timeout_s, render.stall_timeout_s)
