"""`lipsyncd render`, as a person at a terminal runs it: real processes, no daemon but where the two are compared."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from lipsyncd.worker.gpu_lock import WAITING
from tests.kits.doc_pages import commands
from tests.kits.installation import Installation, face, picture, sound
from tests.kits.machine.machine_kit import COMPILER, needs_compiler, needs_root, tmpfs
from tests.kits.machine.processes import children_of, is_alive
from tests.kits.machine.users_kit import STRANGER, needs_users, python, shared_installation

NVML = Path(__file__).parents[1] / "kits" / "machine" / "nvml.c"


@pytest.fixture
def home(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An installation with a pair beside it, in whose temporary folder nothing may be left behind."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    (tmp_path / "ada.png").write_bytes(picture())
    (tmp_path / "ada.wav").write_bytes(sound(0.5))
    yield installation
    assert list(scratch.iterdir()) == []


def start(home: Installation, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lipsyncd", "--config", str(home.config), "render", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home.environment(**environment)
    )


def test_it_makes_the_very_video_that_the_daemon_makes(home: Installation, tmp_path: Path) -> None:
    pair = (tmp_path / "ada.png", tmp_path / "ada.wav")
    (tmp_path / "ada.png").write_bytes(face())
    options = ("--renderer", "preview", "--resolution", "96", "--fps", "12.5", "--motion", "lively")
    with home.running():
        submitted = home.cli("submit", *pair, *options, "--out", tmp_path / "daemon.mp4")
    assert submitted.returncode == 0, submitted.stderr
    done = home.cli("render", *pair, *options, "-o", tmp_path / "here.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/here.mp4\n"
    assert "here.mp4" not in done.stderr
    assert re.search(r"ada: 7 frames, 0\.6 s of video in \d", done.stderr)
    assert re.search(r"ada: the picture .*160", done.stderr)  # it is smaller than it should be
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "daemon.mp4").read_bytes()
    assert (tmp_path / "here.mp4").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_json_tells_the_facts_of_the_video_and_nothing_else(home: Installation, tmp_path: Path) -> None:
    done = home.cli("render", tmp_path / "ada.png", tmp_path / "ada.wav", "-o", tmp_path, "--json")
    facts = json.loads(done.stdout)
    assert facts["path"] == f"{tmp_path}/ada.mp4"
    assert (facts["frames"], facts["fps"], facts["width"], facts["renderer"]) == (13, "25", 64, "flat")
    assert facts["bytes"] == (tmp_path / "ada.mp4").stat().st_size
    assert facts["notes"]["made_by"] == "flat"


def test_a_target_that_exists_is_refused_before_the_render(home: Installation, tmp_path: Path) -> None:
    target = tmp_path / "ada.mp4"
    target.write_text("mine")
    pair = (tmp_path / "ada.png", tmp_path / "ada.wav")
    refused = home.cli("render", *pair, "-o", target)
    assert (refused.returncode, home.renders) == (1, 0)
    assert f"{str(target)!r} exists already; choose another name, or overwrite it (--force" in refused.stderr
    assert target.read_text() == "mine"
    assert home.cli("render", *pair, "-o", target, "--force").returncode == 0
    assert inspect(target).video.frames == 13


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ada.png", "ada.wav", "-o", "none/a.mp4"], "there is no folder 'none' for a.mp4; make it"),
        (["ada.png", "ada.wav", "-o", "ada.png", "--force"], "'ada.png' is one of the inputs"),
        (["ada.png"], "give either AUDIO or --text"),
        (["gone.png", "ada.wav"], "cannot read 'gone.png': No such file or directory"),
        (["ada.wav", "ada.wav"], "the picture 'ada.wav' is a sound (wav)"),
        (["ada.png", "ada.wav", "--renderer", "previw"], "there is no renderer 'previw'; did you mean preview?"),
        (["ada.png", "ada.wav", "--renderer", "missing"], "'missing' cannot be loaded: No module named"),
        (["ada.png", "ada.wav", "--fps", "500"], "fps is '500', allowed is a rate from 1 to 120"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_told_before_anything_is_rendered(
    home: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = home.cli("render", *arguments)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert words in done.stderr
    assert home.renders == 0


def test_weights_that_are_missing_are_not_replaced_by_another_renderer(home: Installation, tmp_path: Path) -> None:
    home.changes["render"] = {"renderer": "musetalk"}
    done = home.cli("render", tmp_path / "ada.png", tmp_path / "ada.wav", "-o", tmp_path / "a.mp4")
    assert done.returncode == 1
    assert "lipsyncd models pull" in done.stderr
    assert "--renderer preview" in done.stderr
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_nothing(home: Installation, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "ada.wav").write_bytes(sound(20))
    out = tmp_path / "out"
    out.mkdir()
    with start(home, tmp_path / "ada.png", tmp_path / "ada.wav", "--renderer", "slow", "-o", out) as process:
        home.until(lambda: home.renders, "the render")
        [child] = children_of(process.pid)
        process.send_signal(number)
        asked_s = time.monotonic()
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - asked_s < 10
    assert process.returncode == 128 + number
    assert "stopped; nothing is left behind" in said
    assert not is_alive(child)
    assert list(out.iterdir()) == []


def test_a_second_ctrl_c_does_not_break_off_the_cleaning_up(home: Installation, tmp_path: Path) -> None:
    (tmp_path / "ada.wav").write_bytes(sound(20))
    with start(home, tmp_path / "ada.png", tmp_path / "ada.wav", "--renderer", "slow", "-o", tmp_path) as process:
        home.until(lambda: home.renders, "the render")
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)  # at its very end Python itself takes signals no more


def test_its_child_does_not_outlive_a_kill(home: Installation, tmp_path: Path) -> None:
    (tmp_path / "ada.wav").write_bytes(sound(20))
    with start(home, tmp_path / "ada.png", tmp_path / "ada.wav", "--renderer", "slow", "-o", tmp_path) as process:
        home.until(lambda: home.renders, "the render")
        [child] = children_of(process.pid)
        process.kill()
    home.until(lambda: not is_alive(child), "the end of the child")
    for left in (tmp_path / "scratch").iterdir():  # nobody could remove it
        subprocess.run(["rm", "-r", left], check=True)


@needs_users
def test_a_user_who_may_not_read_the_service_renders_all_the_same() -> None:
    """The folders of the service, its weights too, are closed to a stranger; `preview` needs none of them."""
    with shared_installation() as service, tempfile.TemporaryDirectory() as own:
        service.changes["weights"] = {"dir": str(service.root / "storage" / "state" / "models")}
        os.chown(own, STRANGER.uid, STRANGER.gid)
        (Path(own) / "ada.png").write_bytes(face())
        (Path(own) / "ada.wav").write_bytes(sound())
        service.config.chmod(0o644)
        variables = [f"{name}={value}" for name, value in service.environment(HOME=own, TMPDIR=own).items()]
        command = [python(), "-m", "lipsyncd", "--config", service.root / "lipsyncd.toml", "render"]
        pair = [f"{own}/ada.png", f"{own}/ada.wav", "-o", f"{own}/a.mp4"]
        done = STRANGER.run(*variables, *command, *pair, "--renderer", "preview")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in Path(own).iterdir()} == {"ada.png", "ada.wav", "a.mp4"}
        assert (Path(own) / "a.mp4").stat().st_uid == STRANGER.uid
        refused = STRANGER.run(*variables, *command, *pair, "--renderer", "musetalk", "--force")
        assert refused.returncode in (1, 77)
        assert "--renderer preview" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_while_the_inputs_are_prepared(
    home: Installation, tmp_path: Path, number: signal.Signals
) -> None:
    with start(home, tmp_path / "ada.png", tmp_path / "ada.wav", "--renderer", "preview", "-o", tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith("preparing 0%\n")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, "nothing is left behind" in said) == (128 + number, True)
    assert not (tmp_path / "ada.mp4").exists()


@needs_root
@pytest.mark.parametrize(("full", "words"), [("scratch", "or set TMPDIR to"), ("out", "free space on the disk of")])
def test_a_full_disk_is_named_and_nothing_is_left(home: Installation, tmp_path: Path, full: str, words: str) -> None:
    (tmp_path / "ada.png").write_bytes(picture(0, 640, 640))
    (tmp_path / "out").mkdir()
    with tmpfs(tmp_path / full, "64k" if full == "out" else "1m"):
        (tmp_path / full / "ballast").write_bytes(bytes(60_000))
        done = home.cli("render", tmp_path / "ada.png", tmp_path / "ada.wav", "-o", tmp_path / "out" / "a.mp4")
        assert done.returncode == 1
        assert "no room on the disk" in done.stderr
        assert words in done.stderr
        assert str(tmp_path / full) in done.stderr
        assert [path.name for path in (tmp_path / full).iterdir()] == ["ballast"]
    assert list((tmp_path / "out").iterdir()) == []


def test_text_is_spoken(home: Installation, tmp_path: Path) -> None:
    done = home.cli("render", tmp_path / "ada.png", "--text", "One.", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/ada.mp4\n"
    assert inspect(tmp_path / "ada.mp4").audio.duration > 0.2


def test_addresses_are_fetched_under_the_rules_of_the_settings(home: Installation, tmp_path: Path) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        refused = home.cli("render", f"{base}/ada.png", f"{base}/ada.wav", "-o", tmp_path)
        home.changes["fetch"] = {"allow": ["127.0.0.1"]}
        done = home.cli("render", f"{base}/ada.png", f"{base}/ada.wav", "-o", tmp_path)
        server.shutdown()
    assert refused.returncode == 1
    assert "127.0.0.1" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert inspect(tmp_path / "ada.mp4").video.frames == 13


def test_the_first_video_takes_seconds_and_compiles_nothing(home: Installation, tmp_path: Path) -> None:
    """Three seconds of voice, an empty home, no cache. The processor's time counts, also on a busy machine the same."""
    (tmp_path / "ada.png").write_bytes(face())
    (tmp_path / "ada.wav").write_bytes(sound(3.0))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = home.cli("render", tmp_path / "ada.png", tmp_path / "ada.wav", "--renderer", "preview", "-o", tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert inspect(tmp_path / "ada.mp4").video.frames == 75
    assert 0.5 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 6
    assert not (tmp_path / ".cache").exists()  # where numba and its like keep what they have compiled


# -- a folder ----------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_a_folder_of_videos(home: Installation, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "videos"
    pairs.mkdir()
    for name, content in (
        *(("a.png", picture()), ("a.wav", sound(0.3)), ("b.png", picture(1)), ("b.wav", sound(0.3, 1))),
        *(("b.heic", picture(1)), ("c.png", picture()), ("d.wav", sound()), ("notes.txt", b"?"), (".hid.wav", b"?")),
        *(("e.png", b"no picture"), ("e.wav", sound())),
    ):
        (pairs / name).write_bytes(content)
    done = home.cli("render", pairs, "-o", out)
    assert done.returncode == 1
    assert done.stdout == f"{out}/a.mp4\n{out}/b.mp4\n"
    assert {path.name for path in out.iterdir()} == {"a.mp4", "b.mp4"}
    assert "lipsyncd: c: c.png has no sound of the same stem" in done.stderr
    assert "lipsyncd: d: d.wav has no picture of the same stem" in done.stderr
    assert "lipsyncd: e: " in done.stderr
    assert "2 of 5 videos made" in done.stderr
    assert home.renders == 2

    again = home.cli("render", pairs, "-o", out)
    assert (again.returncode, home.renders) == (1, 2)
    assert f"2 of the videos exist already, such as {out}/a.mp4" in again.stderr

    for name in ("c.png", "d.wav", "e.png", "e.wav"):
        (pairs / name).unlink()
    forced = home.cli("render", pairs, "-o", out, "--force", "--json")
    assert (forced.returncode, home.renders) == (0, 4)
    assert [row["path"] for row in json.loads(forced.stdout)] == [f"{out}/a.mp4", f"{out}/b.mp4"]


def test_a_folder_with_a_manifest_is_refused_and_so_are_orders_that_fit_no_folder(
    home: Installation, tmp_path: Path
) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "videos"
    pairs.mkdir()
    cases = {
        (pairs, "-o", out): "has no picture and no sound",
        (pairs,): "name one for its videos with -o FOLDER",
        (pairs, tmp_path / "ada.wav", "-o", out): "leave AUDIO out",
        (pairs, "--text", "Hi.", "-o", out): "leave --text out",
        (pairs, "-o", pairs): "cannot go to",
        (pairs, "-o", out / "deeper"): "there is no folder",
    }
    for arguments, words in cases.items():
        done = home.cli("render", *arguments)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    for name, content in (("a.png", picture()), ("a.wav", sound()), ("a.json", b"{}")):
        (pairs / name).write_bytes(content)
    refused = home.cli("render", pairs, "-o", out)
    assert (refused.returncode, home.renders, out.exists()) == (2, 0, False)
    assert "a.json is a manifest" in refused.stderr


def test_the_readme_makes_its_videos(home: Installation, tmp_path: Path) -> None:
    """The commands of the first quick start, but for the installation."""
    lines = [line for line in commands("README.md", "Quick start: one video").splitlines() if " render " in line]
    assert len(lines) == 3
    (tmp_path / "portraits").mkdir()
    for pair in (tmp_path / "anna", tmp_path / "portraits" / "bert"):
        pair.with_suffix(".png").write_bytes(face())
        pair.with_suffix(".wav").write_bytes(sound(0.3))
    program = f'lipsyncd() {{ "{sys.executable}" -m lipsyncd --config "{home.config}" "$@"; }}\n' + "\n".join(lines)
    subprocess.run(["sh", "-eu"], input=program, text=True, cwd=tmp_path, env=home.environment(), check=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4")} == {
        *("anna.mp4", "morning.mp4", "videos/bert.mp4")
    }


# -- beside a daemon, and in a terminal --------------------------------------------------------------------------------


@needs_compiler
def test_it_and_a_daemon_wait_for_each_other_on_the_same_gpu_and_say_so(home: Installation, tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    gpu = f"GPU-{uuid.uuid4()}"
    subprocess.run([COMPILER, "-shared", f'-DUUID="{gpu}"', "-o", library, NVML], check=True)
    home.changes["render"] = {"devices": ["auto"]}
    pair = (tmp_path / "ada.png", tmp_path / "ada.wav")
    with home.running(fresh=True, LD_LIBRARY_PATH=str(tmp_path)):
        assert home.daemon is not None
        home.drop_manifest("long", image="long.png", audio="long.wav", renderer="slow")
        home.drop_pair("long", seconds=20)
        home.until(lambda: home.renders, "the daemon's render")
        waiting = start(home, *pair, "-o", tmp_path / "a.mp4", LD_LIBRARY_PATH=str(tmp_path))
        assert waiting.stderr is not None
        seen = ""
        while "waits" not in seen:
            seen = waiting.stderr.readline()
            assert seen, "it did not wait"
        assert f"ada waits: {gpu} is in use by process {home.daemon.pid} (" in seen
        assert home.renders == 1
        home.cli("cancel", home.until_state("long", JobState.RUNNING).id)
        _, rest = waiting.communicate(timeout=60)
        assert waiting.returncode == 0, rest
        assert home.renders == 2

        (tmp_path / "ada.wav").write_bytes(sound(20))
        slow = start(home, *pair, "-o", tmp_path / "b.mp4", "--renderer", "slow", LD_LIBRARY_PATH=str(tmp_path))
        home.until(lambda: home.renders == 3, "the render without a daemon")
        home.drop_pair("next")
        home.until(lambda: (job := home.job("next")) and job.stage == WAITING, "the daemon's wait")
        assert f"waits: {gpu} is in use by process {slow.pid} (" in home.log
        assert home.renders == 3
        slow.send_signal(signal.SIGINT)
        slow.communicate(timeout=60)
        home.until_done("next")
    assert home.renders == 4


def test_a_bar_fits_into_80_columns(home: Installation, tmp_path: Path) -> None:
    (tmp_path / "ada.wav").write_bytes(sound(0.8))
    name = tmp_path / "Ada Lovelace, Countess of Lovelace.png"
    name.write_bytes(picture())
    command = [sys.executable, "-m", "lipsyncd", "--config", str(home.config), "render", str(name), "ada.wav"]
    master, terminal = pty.openpty()
    variables = home.environment(COLUMNS="80", TERM="xterm")
    arguments = [*command, "--renderer", "slow"]
    with subprocess.Popen(arguments, stderr=terminal, stdout=subprocess.PIPE, cwd=tmp_path, env=variables) as process:
        os.close(terminal)
        shown = b""
        while select.select([master], [], [], 30)[0]:
            try:
                shown += os.read(master, 4096)
            except OSError:
                break
        process.wait(30)
    os.close(master)
    assert process.returncode == 0
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    assert max(len(line) for line in lines if "━" in line) <= 80  # texts wrap
    rendering = [line for line in lines if "rendering" in line]
    assert any(
        re.search(r"^Ada Lovelace, Countess …\S* +━.* \d+% rendering +0:00:\d\d \d+ s left", line) for line in rendering
    ), lines
