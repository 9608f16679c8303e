"""The pointer by which a second terminal finds a daemon: believed only where nobody else can have written it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.monitor.running_daemon import find_daemon, leave_pointer
from lipsyncd.settings import Settings, load
from lipsyncd.storage.locks import InstanceLock
from tests.kits.installation import ROOT, Installation
from tests.kits.machine.users_kit import DAEMON, MEMBER, STRANGER, User, needs_users, python

NAME = "lipsyncd-daemon.json"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def settings_in(home: Path, name: str = "talking", **more: str) -> Settings:
    return load(environ={"HOME": str(home), "STORAGE_DIR": str(home / name), **more}, cwd=home, system_file=home / "no")


@pytest.fixture
def held(home: Path) -> Iterator[Settings]:
    """Settings whose lock is held, as by a running daemon."""
    settings = settings_in(home)
    settings.paths.state.mkdir(parents=True)
    lock = InstanceLock(settings.paths.state)
    lock.acquire(command="lipsyncd run")
    yield settings
    lock.release()


def found_in(home: Path) -> Path | None:
    found = find_daemon({"XDG_RUNTIME_DIR": str(home)}, home / "no-system-folder")
    return None if found is None else found.paths["storage"]


def test_a_running_daemon_is_found_and_one_that_has_stopped_is_not(home: Path, held: Settings) -> None:
    pointer = leave_pointer(held, {"XDG_RUNTIME_DIR": str(home)})
    assert pointer is not None
    assert found_in(home) == home / "talking"
    pointer.remove()
    assert not (home / NAME).exists()
    assert found_in(home) is None


def test_a_pointer_without_a_daemon_counts_for_nothing(home: Path) -> None:
    """After kill -9 the file is still there, and its lock is free."""
    settings = settings_in(home)
    settings.paths.state.mkdir(parents=True)
    (settings.paths.state / "lock").touch()
    leave_pointer(settings, {"XDG_RUNTIME_DIR": str(home)})
    assert (home / NAME).exists()
    assert found_in(home) is None


def test_the_first_of_two_daemons_keeps_the_pointer(home: Path, held: Settings) -> None:
    first = leave_pointer(held, {"XDG_RUNTIME_DIR": str(home)})
    second = leave_pointer(settings_in(home, "other"), {"XDG_RUNTIME_DIR": str(home)})
    assert (first is not None, second) == (True, None)
    assert found_in(home) == home / "talking"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda home: (home / NAME).chmod(0o666),
        lambda home: (home / NAME).chmod(0o664),
        lambda home: home.chmod(0o777),
        lambda home: home.chmod(0o770),
        lambda home: ((home / NAME).rename(home / "real"), (home / NAME).symlink_to(home / "real")),
        lambda home: ((home / NAME).unlink(), os.mkfifo(home / NAME)),
        lambda home: (home / NAME).write_text("{"),
        lambda home: (home / NAME).write_text("[]"),
        lambda home: (home / NAME).write_text('{"paths": {"storage": 3}, "queues": []}'),
        lambda home: (home / NAME).write_text((home / NAME).read_text().replace('"queues": []', '"queues": 3')),
        lambda home: (home / NAME).write_text((home / NAME).read_text().replace(f'"{home}/talking/inbox"', '"inbox"')),
        lambda home: (home / NAME).write_text(" " * 100_000 + (home / NAME).read_text()),
    ],
    ids=[
        *("others write", "group writes", "open folder", "group's folder", "link", "fifo"),
        *("torn", "list", "odd path", "odd queues", "relative", "long"),
    ],
)
def test_a_pointer_that_others_may_have_written_or_that_is_damaged_is_not_followed(
    home: Path, held: Settings, spoil: Callable[[Path], object]
) -> None:
    leave_pointer(held, {"XDG_RUNTIME_DIR": str(home)})
    assert found_in(home) is not None
    spoil(home)
    assert found_in(home) is None


def test_nothing_is_left_in_a_folder_that_others_may_write(home: Path, held: Settings) -> None:
    home.chmod(0o777)
    assert leave_pointer(held, {"XDG_RUNTIME_DIR": str(home)}) is None
    assert not (home / NAME).exists()


# -- two users ---------------------------------------------------------------------------------------------------------

_LOOK = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from lipsyncd.monitor import running_daemon as rd
rd._service_user = lambda: int(sys.argv[4]) if sys.argv[4] else None
found = rd.find_daemon({"XDG_RUNTIME_DIR": sys.argv[2]}, Path(sys.argv[3]))
print(found.paths["storage"] if found else "none")
"""


@needs_users
@pytest.mark.parametrize(
    ("writer", "reader", "service", "system", "is_found"),
    [
        (MEMBER, MEMBER, None, False, True),
        (STRANGER, MEMBER, None, False, False),  # a variable that names another's folder
        (STRANGER, MEMBER, None, True, False),
        (DAEMON, MEMBER, DAEMON, True, True),
        (DAEMON, MEMBER, None, True, False),
        (DAEMON, MEMBER, DAEMON, False, False),  # only in the system's folder
        (None, MEMBER, None, True, True),  # root
        (None, MEMBER, None, False, True),
    ],
)
def test_a_pointer_is_followed_only_if_its_writer_is_oneself_root_or_the_service(
    writer: User | None, reader: User, service: User | None, system: bool, is_found: bool
) -> None:
    root = Path(tempfile.mkdtemp(prefix="lipsyncd-pointer-"))
    try:
        root.chmod(0o755)
        folder, other = root / "run", root / "other"
        for made in (folder, other):
            made.mkdir(mode=0o755)
        settings = settings_in(root)
        settings.paths.state.mkdir(parents=True)
        lock = InstanceLock(settings.paths.state)
        lock.acquire(command="lipsyncd run")
        (settings.paths.state / "lock").chmod(0o644)
        leave_pointer(settings, {"XDG_RUNTIME_DIR": str(folder)})
        if writer is not None:
            for path in (folder, folder / NAME):
                os.chown(path, writer.uid, writer.gid)
        places = (other, folder) if system else (folder, other)
        uid = "" if service is None else str(service.uid)
        done = reader.run(python(), "-P", "-c", _LOOK, ROOT, *places, uid)
        lock.release()
    finally:
        shutil.rmtree(root)
    assert done.stdout.strip() == (str(root / "talking") if is_found else "none"), done.stderr


# -- a second terminal -------------------------------------------------------------------------------------------------


def in_a_second_terminal(installation: Installation, *arguments: str, **environment: str) -> str:
    """A command with neither a settings file nor a variable that names folders; both streams."""
    kept = {k: v for k, v in installation.environment().items() if not k.startswith("LIPSYNCD")} | environment
    done = subprocess.run(
        [sys.executable, "-m", "lipsyncd", *arguments],
        capture_output=True, text=True, timeout=60, env=kept, cwd=installation.root, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_commands_in_a_second_terminal_find_the_daemon_and_its_folders(installation: Installation) -> None:
    installation.root.chmod(0o700)
    installation.changes["queue.fast"] = {}
    with installation.running():
        installation.drop_pair("anna")
        installation.until_done("anna")
        (installation.root / "lipsyncd.toml").rename(installation.root / "elsewhere.toml")
        assert "anna" in in_a_second_terminal(installation, "status")
        job_id = in_a_second_terminal(
            installation, "submit", str(ROOT / "tests/kits/media/grace_hopper.jpg"), "--text", "Good day.",
            "--queue", "fast", "--name", "grace", "--renderer", "flat",
        ).strip()  # fmt: skip
        assert installation.until_state("grace", *JobState).id == job_id
        origin = json.loads(in_a_second_terminal(installation, "doctor", "--json"))
        assert str(installation.path("inbox")) in json.dumps(origin)
        home = str(installation.root / "home")
        assert "anna" not in in_a_second_terminal(installation, "status", STORAGE_DIR=home)
        assert "anna" not in in_a_second_terminal(installation, "status", LIPSYNCD_PATHS_STATE=home)
        (installation.root / "elsewhere.toml").rename(installation.root / "lipsyncd.toml")
    assert not (installation.root / NAME).exists()
