"""`lipsyncd bench`: the speed of MuseTalk on this machine, as a table; or the lag of a video. Imports wait.

Owns the table. Leaves the measuring to a child process, which loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipsyncd.cli.app import Invocation, json_option

if TYPE_CHECKING:
    from lipsyncd.settings import Settings

_MODULE = "lipsyncd.renderers.musetalk.bench.run"
_LAG_MODULE = "lipsyncd.renderers.lag"
_LAG_RATE = 100  # `lag.RATE`
_MOST_LAG_S = 600
_HEADINGS = ("stage", "per", "per s", "ms", "GFLOP", "TFLOP/s", "% of ceiling")
_WIDTHS = (18, 10, 9, 10, 8, 8, 12)


@click.command()
@click.option("--random-weights", is_flag=True, help="Use random weights of the real sizes; none need to be installed.")
@click.option("--device", default="auto", show_default=True, help="auto (the first GPU), a GPU such as cuda:1, or cpu.")
@click.option("--batch", type=click.IntRange(1, 64), help="Frames per batch; default: 16 on a GPU, 1 on a CPU.")
@click.option(
    "--seconds", type=click.FloatRange(0.04, 600), help="Length of the sound; default: 30 on a GPU, 0.2 on a CPU."
)
@click.option(
    "--lag",
    "video",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure by how much the lips of this video come after its voice, and nothing else.",
)
@click.option("--small", is_flag=True, hidden=True, help="Tiny networks, to test the command itself.")
@json_option
@click.pass_obj
def bench(
    invocation: Invocation,
    random_weights: bool,
    device: str,
    batch: int | None,
    seconds: float | None,
    video: Path | None,
    small: bool,
    as_json: bool,
) -> None:
    """Measure the speed of musetalk on this machine.

    Times each stage and a whole job; the ceiling is the fastest matrix product or convolution. Needs the extra
    `musetalk`. A frame takes 800 GFLOP, some seconds on a CPU, so a CPU is used only with --device cpu.

    With --lag FILE.mp4: lips against voice, in milliseconds. It needs neither the extra nor a GPU.
    """
    from lipsyncd.media import ffmpeg

    settings = invocation.settings
    if video is not None:
        _print_lag(video, ffmpeg.find(settings.render.ffmpeg), as_json=as_json)
        return
    request = {
        "device": device,
        "ffmpeg": str(ffmpeg.find(settings.render.ffmpeg)),
        "weights": "" if random_weights or small else _verified_weights(settings),
        "batch": batch or 0,
        "seconds": seconds or 0.0,
        "max_vram_gb": settings.render.max_vram_gb,
        "small": small,
    }
    result: dict[str, Any] = {"stages": []}
    for line in _measured(request):
        if "stage" in line:
            result["stages"].append(line["stage"])
        else:
            result |= line
        if not as_json:
            _print(line)
    if as_json:
        from lipsyncd.cli.display import print_json

        print_json(result)


def _print_lag(video: Path, ffmpeg: Path, *, as_json: bool) -> None:
    """Decode a video and its sound in the jail, measure it in a child, and print the lag."""
    import tempfile
    from dataclasses import asdict
    from fractions import Fraction

    from lipsyncd.cli.display import print_json
    from lipsyncd.errors import ImageNotRecognised
    from lipsyncd.jobs.prepared import Video
    from lipsyncd.media import examine, video_frames
    from lipsyncd.prepare.decode_sound import decode_sound
    from lipsyncd.prepare.decode_video import screen

    with tempfile.TemporaryDirectory(prefix="lipsyncd-lag-") as scratch:
        folder = Path(scratch)
        with video.open("rb") as opened:
            kind = examine(opened.fileno(), video.stat().st_size).kind
        if kind is None or not kind.is_video:
            raise ImageNotRecognised(f"{video} is no MP4, MOV or WebM with pictures")
        sound = decode_sound(video.resolve(), kind, folder, ffmpeg=ffmpeg, max_s=_MOST_LAG_S)
        rate = Fraction(_LAG_RATE)
        frames = int(sound.duration * rate)
        seen = screen(video.resolve(), kind, folder, ffmpeg=ffmpeg, fps=rate, frames=frames)
        size = (seen.picture.width, seen.picture.height)
        decoded = Video(str(video.resolve()), kind.value, *size, str(rate), seen.frames, video_frames.CUT)
        request: dict[str, object] = {
            "folder": str(folder),
            "ffmpeg": str(ffmpeg),
            "speech": sound.speech_file,
            "samples": sound.speech_samples,
            "video": asdict(decoded),
        }
        (line,) = _lines_of(_LAG_MODULE, request)
    if as_json:
        print_json(line)
        return
    lag_ms = line["lag_ms"]
    where = "after" if lag_ms > 0 else "before"
    click.echo(f"the lips move {abs(lag_ms):.0f} ms {where} the voice (correlation {line['correlation']:.2f})")
    if line["correlation"] < 0.4:
        click.echo("a correlation below 0.4 means little: use a video of one voice without music")


def _verified_weights(settings: Settings) -> str:
    """The folder of the weights, all of them hashed. Raises `WeightsMissing`, `WeightsDamaged`."""
    from lipsyncd.weights import store_of

    store = store_of(settings)
    for weight in store.needed():
        store.check(weight)
    return str(store.folder)


def _measured(request: dict[str, object]) -> Iterator[dict[str, Any]]:
    """The child's results, one by one. Raises the error that it reports; `RenderCrashed` if it fails without one."""
    from importlib.util import find_spec

    from lipsyncd.errors import RendererNotInstalled
    from lipsyncd.extras import how_to_install
    from lipsyncd.monitor.packages import NEEDS

    if missing := [name for name in NEEDS["musetalk"] if find_spec(name) is None]:
        raise RendererNotInstalled(
            f"musetalk needs {', '.join(missing)}, which is not installed", remedy=how_to_install("musetalk")
        )
    yield from _lines_of(_MODULE, request)


def _lines_of(module: str, request: dict[str, object]) -> Iterator[dict[str, Any]]:
    import json
    import subprocess
    import sys

    from lipsyncd.errors import RenderCrashed, from_reason
    from lipsyncd.processes import exit_text

    command = [sys.executable, "-m", module, json.dumps(request)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for text in child.stdout:
            line = json.loads(text)
            if "error" in line:
                raise from_reason(line["error"])
            yield line
    if child.returncode != 0:
        raise RenderCrashed(
            f"the measuring process {exit_text(child.returncode)}", remedy="its own output above says why"
        )


def _print(line: dict[str, Any]) -> None:
    if "stage" in line:
        stage = line["stage"]
        numbers = (stage["per_s"], stage["ms"], stage["gflop"], stage["tflops"], stage["percent_of_ceiling"])
        click.echo(_row((stage["stage"], stage["per"], *map(_number, numbers))))
    elif "device" in line:
        loaded = f"{line['load_s']:.2f} s: {line['loaded_gb']:.2f} GB {line['memory']}"
        versions = ", ".join(f"{name} {number}" for name, number in line["versions"].items())
        click.echo(
            f"{line['device_name']} ({line['device']}), {line['precision']}, batch {line['batch']}\n{versions}\n"
            f"weights {line['weights']}, loaded in {loaded}\n"
            f"{line['frames']} frames, {line['seconds']:g} s, of a picture of {line['source']} as {line['video']}\n"
            f"ceiling: {_number(line['ceiling_tflops'])} TFLOP/s in {line['ceiling_of']}\n"
        )
        click.echo(_row(_HEADINGS))
    else:
        ended = f"{line['precision']}, batch {line['batch']}, {line['kernels']}"
        click.echo(f"\nwhole job {line['job_s']:.2f} s without loading ({ended}), at most {line['peak_gb']:.2f} GB")


def _row(cells: tuple[str, ...]) -> str:
    columns = enumerate(zip(cells, _WIDTHS, strict=True))
    return "  ".join(cell.ljust(width) if n < 2 else cell.rjust(width) for n, (cell, width) in columns).rstrip()


def _number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
