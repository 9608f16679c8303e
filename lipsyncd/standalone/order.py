"""What is to be made: the options of a command line or of a Python call, as the job that a daemon would accept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lipsyncd.errors import NotAllowed, RendererNotInstalled, UnknownRenderer
from lipsyncd.extras import how_to_install
from lipsyncd.jobs import options
from lipsyncd.jobs.job import AUDIO, IMAGE, JobSpec, new_id, now_ms
from lipsyncd.jobs.manifest import Manifest, with_manifest
from lipsyncd.jobs.values import nearest, quoted
from lipsyncd.monitor import packages
from lipsyncd.settings import Settings
from lipsyncd.weights import RENDERER, store_of

PREVIEW = "use the renderer that needs no weights (--renderer preview, in Python renderer='preview')"


def spec_of(manifest: Manifest, name: str, settings: Settings) -> JobSpec:
    """The job of a manifest, with the settings' values for what it leaves open.

    Its `image` and `audio` may be paths of this machine; they are no part of the spec.
    """
    spec = JobSpec(id=new_id(), name=name, out_name=name, accepted_ms=now_ms(), **settings.queue().of_a_job)
    return replace(with_manifest(spec, manifest), out_name=name, name=name)


def require_renderer(spec: JobSpec, settings: Settings) -> None:
    """Return if this machine has what the job's renderer needs: its packages, and its verified weights.

    Nothing is pulled and no other renderer takes its place. Raises `UnknownRenderer`, `RendererNotInstalled`,
    `WeightsMissing`, `WeightsDamaged`; and `BadOption` for an option that the renderer does not have.
    """
    render = replace(settings.render, renderer=spec.renderer)
    known = [*packages.NEEDS, *options.names_of(render.renderers)]
    if spec.renderer not in known:
        raise UnknownRenderer(
            f"there is no renderer {quoted(spec.renderer)}",
            remedy=f"did you mean {nearest(spec.renderer, known)}? There are: {', '.join(sorted(known))}",
        )
    options.check(spec.renderer, spec.options, of_users=options.names_of(render.renderers))
    if fault := packages.fault(render):
        install = (
            f"{how_to_install(RENDERER)}, then run `lipsyncd models pull`"
            if spec.renderer == RENDERER
            else "install it"
        )
        raise RendererNotInstalled(fault, remedy=f"{install}, or {PREVIEW}")
    if spec.renderer == RENDERER:
        try:
            store_of(settings).require(spec.options)
        except PermissionError as error:  # those of a service, which are closed to others
            raise NotAllowed(
                f"this user cannot read the weights in {settings.weights.dir}: {error.strerror}",
                remedy=f"pull your own (MODELS_DIR=FOLDER lipsyncd models pull), or {PREVIEW}",
            ) from error


def weights_folder(renderer: str, settings: Settings) -> Path:
    """The folder that a child opens its weights in; where it needs none, it is not looked at."""
    return store_of(settings).folder if renderer == RENDERER else settings.weights.dir


def local_files(manifest: Manifest, spec: JobSpec) -> dict[str, Path]:
    """The files of this machine that a manifest names, by their role in the job. A link stands for its file."""
    named = {IMAGE: (manifest.image, spec.image_url), AUDIO: (manifest.audio, spec.audio_url)}
    paths = {role: Path(source) for role, (source, url) in named.items() if source is not None and url is None}
    return {role: path.resolve() if path.is_symlink() else path for role, path in paths.items()}
