"""Fixtures that many tests share."""

from __future__ import annotations

import compileall
import fcntl
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import lipsyncd
from tests.kits.installation import Installation
from tests.kits.machine import container_kit, inotify_kit

SYSTEM = Path(__file__).with_name("system")

# On a busy machine one example may take long, which says nothing about us. Under CI hypothesis has its own profile,
# with the same examples each time.
settings.register_profile("busy", deadline=None, print_blob=True)
if not os.environ.get("CI"):
    settings.load_profile("busy")


# Under nohup in a background shell SIGINT is ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """A scratch installation. A daemon that a test leaves running is ended."""
    installation = Installation(tmp_path)
    yield installation
    if installation.daemon is not None:
        installation.daemon.kill()
        installation.daemon.wait(10)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package once: jailed programs write no bytecode, so each of many would compile its modules again."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(lipsyncd.__file__).parent, quiet=2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-system` runs in any case."""
    for item in items:
        if SYSTEM in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def debian_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A small Debian, made once for all test processes. Copy it (`container_kit.copy_root`) before you change it."""
    if reason := container_kit.cannot_run("mmdebstrap"):
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # each process has a folder in the common one
    with (shared / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, unfinished = shared / "debian", shared / "debian.part"
        if not made.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            container_kit.make_root(unfinished).rename(made)
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _skipped_without_inotify(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _skipped_without_inotify(item))


def _skipped_without_inotify(item: pytest.Item) -> Generator[None, object, object]:
    """A test with the marker `inotify` that fails while other programs hold all instances is skipped."""
    try:
        return (yield)
    except Exception:
        if item.get_closest_marker("inotify") and (reason := inotify_kit.taken_by_others()):
            pytest.skip(reason)
        raise
