"""`lipsyncd models`: fetch the weights, verify them, list them. Imports wait until a command runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lipsyncd.cli.app import Invocation, json_option

if TYPE_CHECKING:
    from lipsyncd.weights import Present, Step, Store, Weight


@click.group()
def models() -> None:
    """Fetch, verify or list the weights of the musetalk renderer."""


@models.command()
@click.argument("names", nargs=-1)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Copy from this folder first (same layout as the original's models/), then ask the hub.",
)
@click.option("--keep-pickles", is_flag=True, help="Keep downloaded pickles beside the safetensors made of them.")
@click.option(
    "--parity", is_flag=True, help="Also what the option parity uses: bisenet, and the unet in float32 (3.4 GB more)."
)
@click.pass_obj
def pull(invocation: Invocation, names: tuple[str, ...], source: Path | None, keep_pickles: bool, parity: bool) -> None:
    """Fetch missing weights: NAMES, or all that every render needs.

    An interrupted download is resumed the next time. HF_ENDPOINT names a mirror of the hub; with HF_HUB_OFFLINE=1 only
    --from is used.
    """
    from lipsyncd import weights

    store = weights.store_of(invocation.settings)
    chosen = _chosen(store, names)
    if parity:
        chosen += [weight for weight in store.wanted_for("parity") if weight not in chosen]
    with contextlib.closing(_PullProgress()) as progress:
        weights.pull(
            store,
            chosen,
            source=source,
            report=progress.show,
            keep_pickles=keep_pickles,
            min_free_mb=invocation.settings.paths.min_free_mb,
        )
    click.echo(f"ready in {store.folder}: {', '.join(weight.name for weight in chosen)}")


def _chosen(store: Store, names: Sequence[str]) -> list[Weight]:
    from lipsyncd.errors import UsageError

    known = {weight.name: weight for weight in store.weights}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"no weights are named {unknown[0]!r}", remedy=f"choose from {', '.join(known)}")
    return [known[name] for name in names] or store.needed()


class _PullProgress:
    """The progress of each weight in turn: a bar in a terminal, else a line for each quarter of each step."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._weight: Weight | None = None

    def show(self, step: Step) -> None:
        from lipsyncd.cli.display import progress
        from lipsyncd.weights.auto_pull import size_text

        if step.weight != self._weight:
            self.close()
            self._weight = step.weight
            self._bar = self._stack.enter_context(progress(f"{step.weight.name}, {size_text(step.weight.size_bytes)}"))
        fraction = 1.0 if step.doing == "ready" else step.done_bytes / max(step.total_bytes, 1)
        self._bar.show(step.doing, "", min(fraction, 1.0))

    def close(self) -> None:
        self._stack.close()
        self._weight = None


@models.command()
@click.pass_obj
def verify(invocation: Invocation) -> None:
    """Hash every file again. Exits with 1 when a file is damaged or a required one is missing."""
    from lipsyncd.errors import WeightsDamaged, WeightsMissing
    from lipsyncd.weights import store_of

    store = store_of(invocation.settings)
    bad = False
    for weight in store.weights:
        try:
            store.check(weight, again=True)
        except WeightsMissing as error:
            bad = bad or not weight.optional
            click.echo(f"{weight.name}: {'optional, ' if weight.optional else ''}{error.message}")
        except WeightsDamaged as error:
            bad = True
            click.echo(f"{weight.name}: {error}")
        else:
            click.echo(f"{weight.name}: verified")
    sys.exit(1 if bad else 0)


@models.command("list")
@json_option
@click.pass_obj
def show(invocation: Invocation, as_json: bool) -> None:
    """List the weights: name, state, size, purpose and licence."""
    from lipsyncd.cli.display import print_json
    from lipsyncd.weights import store_of
    from lipsyncd.weights.auto_pull import size_text

    store = store_of(invocation.settings)
    status = store.status()
    if as_json:
        print_json({"folder": str(store.folder), "weights": [_as_json(present) for present in status]})
        return
    rows = [
        (w.name, present.state, size_text(w.size_bytes), w.purpose + (" (optional)" if w.optional else ""), w.licence)
        for present in status
        for w in [present.weight]
    ]
    click.echo(store.folder)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, state, size, purpose, licence in rows:
        cells = [name.ljust(widths[0]), state.ljust(widths[1]), size.rjust(widths[2]), purpose.ljust(widths[3])]
        click.echo("  ".join([*cells, licence]))


def _as_json(present: Present) -> dict[str, object]:
    weight = present.weight
    return {
        "name": weight.name,
        "state": present.state,
        "path": None if present.path is None else str(present.path),
        "size_bytes": present.size_bytes,
        "optional": weight.optional,
        "only_for": dict(weight.only_for),
        "purpose": weight.purpose,
        "licence": weight.licence,
        "repository": weight.repository,
        "revision": weight.revision,
        "source_file": weight.path,
        "source_size_bytes": weight.size_bytes,
        "source_sha256": weight.sha256,
    }
