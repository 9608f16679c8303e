"""Mistakes in a command line are found before anything is dropped, by the rules of the daemon that runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.client.over_storage import OverStorage
from lipsyncd.errors import BadOption, NameTaken, UnknownRenderer
from lipsyncd.inbox.order_rules import FILE, OrderRules, check_name, check_order, record, recorded
from lipsyncd.inbox.submit import manifest_of
from lipsyncd.settings import Intake, Settings
from lipsyncd.storage.locks import InstanceLock
from tests.kits.core_kit import as_nobody
from tests.kits.installation import Installation, picture, sound

MISTAKES = [
    (["--renderer", "nosuch"], "there is no renderer 'nosuch'", "choose one of: "),
    (["--renderer", "preview", "--option", "strength=9"], "option strength is 9", "a number from 0.5 to 1.5"),
    (["--renderer", "preview", "--option", "strenght=1"], "no option 'strenght'", "blink, face, strength, sway"),
    (["--renderer", "musetalk", "--option", "mode=soft"], "option mode is 'soft'", "one of: jaw, raw, neck"),
    (["--queue", "night", "--option", "sway=2"], "option sway is 2", "a number from 0 to 1"),
    (["--queue", "day"], "there is no queue 'day'", "queues are night"),
    (["--out", "{gone}/ada.mp4"], "there is no folder ", "make it"),
    (["--out", "{image}"], "is one of the inputs", "name another file"),
    (["--fps", "0"], "fps is '0', allowed is a rate", ""),
    (["--resolution", "65"], "resolution is 65, allowed is an even number", ""),
]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A daemon with a queue and with renderers of its own, which keeps the names of its videos."""
    changes = {"output": {"on_name_conflict": "fail"}, "queue.night": {"renderer": "preview"}}
    box = Installation(tmp_path_factory.mktemp("box"), changes=changes)
    with box.running():
        yield box


@pytest.fixture(scope="module")
def files(box: Installation) -> tuple[str, str]:
    image, voice = box.root / "ada.png", box.root / "ada.wav"
    image.write_bytes(picture())
    voice.write_bytes(sound(0.4))
    return str(image), str(voice)


def in_inbox(box: Installation) -> set[str]:
    return {path.name for path in box.path("inbox").rglob("*") if path.is_file() and ".lipsyncd" not in path.parts}


@pytest.mark.parametrize(("arguments", "message", "remedy"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_refused_before_anything_is_dropped(
    box: Installation, files: tuple[str, str], arguments: list[str], message: str, remedy: str
) -> None:
    filled = [text.format(gone=box.root / "gone", image=files[0]) for text in arguments]
    before = (in_inbox(box), len(box.view.jobs(limit=1000)))
    done = box.cli("submit", *files, *filled)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert remedy in done.stderr
    assert "manifest" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (in_inbox(box), len(box.view.jobs(limit=1000))) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "volapuek"], "no voice is called 'volapuek'"),
        (["--voice", "en_US-nobody-medium"], "en_US-nobody-medium"),
        (["--voice", "en-us+nobody/../x"], "voice is 'en-us+nobody/../x'"),
    ],
)
def test_a_voice_that_there_is_not_is_refused(
    box: Installation, files: tuple[str, str], arguments: list[str], message: str
) -> None:
    pytest.importorskip("espeakng_loader")
    before = in_inbox(box)
    done = box.cli("submit", files[0], "--text", "Good morning.", *arguments)
    assert (done.returncode, in_inbox(box)) == (2, before), done
    assert message in done.stderr


@pytest.mark.parametrize("voice", ["de", "en-gb+f3", "de-DE-KatjaNeural", "German"])
def test_every_voice_that_can_speak_is_taken(box: Installation, files: tuple[str, str], voice: str) -> None:
    pytest.importorskip("espeakng_loader")
    name = f"{voice} speaks"
    done = box.cli("submit", files[0], "--text", "Good morning.", "--voice", voice, "--name", name)
    assert done.returncode == 0, done.stderr
    box.until_done(name)


def test_a_name_that_is_taken_is_refused_where_names_are_kept(box: Installation, files: tuple[str, str]) -> None:
    assert box.cli("submit", *files, "--wait", "--name", "taken").returncode == 0
    before = in_inbox(box)
    done = box.cli("submit", *files, "--name", "taken")
    assert (done.returncode, in_inbox(box)) == (1, before)
    assert "the outbox has a file named taken.mp4 already" in done.stderr
    assert box.cli("submit", *files, "--name", "taken", "--queue", "night").returncode == 0


def test_options_of_the_operators_own_renderer_pass_unchecked(box: Installation, files: tuple[str, str]) -> None:
    done = box.cli("submit", *files, "--wait", "--name", "own", "--renderer", "flat", "--option", "anything=[1]")
    assert done.returncode == 0, done.stderr


def test_the_rules_are_the_running_daemons_and_not_the_callers(box: Installation, files: tuple[str, str]) -> None:
    """The caller's settings know the folders, and no renderer of the operator's own."""
    caller = Installation(box.root / "caller")
    caller.root.mkdir(exist_ok=True)
    caller.changes = {
        "paths": {"storage": str(box.root / "storage")},
        "render": {"renderer": "musetalk", "renderers": []},
        "intake": {"min_side_px": 1000},
    }
    done = caller.cli("submit", *files, "--name", "of another", "--option", "anything=1")
    assert done.returncode == 0, done.stderr
    box.until_done("of another")
    refused = caller.cli("submit", *files, "--name", "taken again", "--renderer", "nosuch")
    assert "choose one of: abort, " in refused.stderr
    assert ", flat, " in refused.stderr


def test_a_reload_records_the_new_rules(box: Installation) -> None:
    assert box.daemon is not None
    rules = recorded(box.path("state"))
    assert rules is not None
    assert (rules.renderers, rules.keeps_names) == ({"": "flat", "night": "preview"}, True)
    box.changes["render"] = {"renderer": "slow"}
    assert box.config.exists()  # written anew
    box.daemon.send_signal(signal.SIGHUP)

    def renderer() -> str:
        found = recorded(box.path("state"))
        return "" if found is None else found.renderers[""]

    box.until(lambda: renderer() == "slow", "the new rules")
    box.changes["render"] = {"renderer": "flat"}
    assert box.config.exists()
    box.daemon.send_signal(signal.SIGHUP)
    box.until(lambda: renderer() == "flat", "the old rules")


def test_a_client_in_python_learns_of_a_mistake_as_an_error(box: Installation, files: tuple[str, str]) -> None:
    client = OverStorage(box.root / "storage")
    before = in_inbox(box)
    for fields, kind in (
        ({"renderer": "nosuch"}, UnknownRenderer),
        ({"renderer": "preview", "options": {"strength": 9}}, BadOption),
    ):
        with pytest.raises(kind):
            client.submit(manifest_of(image=files[0], audio=files[1], text=None, **fields), None)
    assert in_inbox(box) == before


def test_render_finds_the_same_mistakes_before_it_works(box: Installation, files: tuple[str, str]) -> None:
    target = box.root / "never.mp4"
    done = box.cli("render", *files, "-o", target, "--renderer", "preview", "--option", "strength=9")
    assert (done.returncode, target.exists()) == (2, False)
    assert "option strength is 9; it must be a number from 0.5 to 1.5" in done.stderr
    assert box.cli("render", *files, "-o", target, "--renderer", "nosuch").returncode == 2


# -- the file ----------------------------------------------------------------------------------------------------------


def test_rules_count_only_while_their_daemon_runs(tmp_path: Path) -> None:
    settings = Installation(tmp_path).settings
    state = settings.paths.state
    state.mkdir(parents=True)
    record(settings)
    assert recorded(state) is None
    lock = InstanceLock(state)
    lock.acquire(command="a test")
    assert recorded(state) == OrderRules.of(settings)
    assert (state / FILE).stat().st_mode & 0o777 == 0o640
    for damaged in ("", "{", "[]", "{}", '{"limits": 7}', '{"limits": {}, "renderers": 3}'):
        (state / FILE).write_text(damaged)
        assert recorded(state) is None
    lock.release()


def test_rules_of_another_version_keep_the_limits_that_both_know(tmp_path: Path) -> None:
    settings = Installation(tmp_path).settings
    settings.paths.state.mkdir(parents=True)
    record(settings)
    file = settings.paths.state / FILE
    content = json.loads(file.read_text())
    content["limits"] = {"max_image_mb": 3, "of_a_later_version": 1}
    file.write_text(json.dumps(content))
    lock = InstanceLock(settings.paths.state)
    lock.acquire(command="a test")
    rules = recorded(settings.paths.state)
    lock.release()
    assert rules is not None
    assert rules.limits == Intake(max_image_mb=3)


def test_a_user_who_may_not_read_the_rules_has_none(tmp_path: Path) -> None:
    settings = Installation(tmp_path).settings
    settings.paths.state.mkdir(parents=True)
    record(settings)
    lock = InstanceLock(settings.paths.state)
    lock.acquire(command="a test")
    found = as_nobody(lambda: recorded(settings.paths.state), settings.paths.state)
    lock.release()
    assert found is None or os.geteuid() != 0


def test_the_inbox_has_its_own_renderer_and_each_queue_its_own() -> None:
    rules = OrderRules({"": "preview", "own": "mine"}, of_users=("mine",))
    order = manifest_of(image="a.png", audio="a.wav", text=None, options={"anything": 1})
    check_order(order, rules, queue="own")
    with pytest.raises(BadOption):
        check_order(order, rules)


def test_an_outbox_that_is_away_is_left_to_the_daemon(tmp_path: Path) -> None:
    box = Installation(tmp_path)
    box.folders.initialise()
    rules = OrderRules({"": "flat"}, keeps_names=True)
    (box.path("outbox") / "a.json").write_text("{}")
    with pytest.raises(NameTaken, match=r"a\.json"):
        check_name(box.folders, "a", rules)
    check_name(box.folders, "b", rules)
    check_name(box.folders, "a", rules, queue="night")  # that folder is not there yet
    check_name(box.folders, "a", OrderRules.of(Settings()))
    box.path("outbox").rename(tmp_path / "away")
    check_name(box.folders, "a", rules)
