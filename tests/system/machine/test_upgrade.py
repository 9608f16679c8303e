"""`make install` over an older version, `make uninstall`, and what is left when they are interrupted.

A real systemd, a real pip. The tests follow one service, from an installation of the time before versions to its end.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.kits.installation import ROOT, picture, sound
from tests.kits.machine import container_kit
from tests.kits.machine.virtual_machine import Machine, booted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # a busy machine installs packages for minutes

SETTINGS = "/etc/lipsyncd/lipsyncd.toml"
SOURCE = "usr/src/lipsyncd"
PROGRAM = "/opt/lipsyncd"
SHELL_FILES = {  # in the version, and where it is linked
    "man/man1/lipsyncd.1": "/usr/local/share/man/man1",
    "man/man1/lipsyncd-submit.1": "/usr/local/share/man/man1",
    "man/man5/lipsyncd.toml.5": "/usr/local/share/man/man5",
    "bash-completion/completions/lipsyncd": "/usr/local/share/bash-completion/completions",
    "zsh/site-functions/_lipsyncd": "/usr/local/share/zsh/site-functions",
    "fish/vendor_completions.d/lipsyncd.fish": "/etc/fish/completions",
}
LINKS = {name: f"{folder}/{Path(name).name}" for name, folder in SHELL_FILES.items()}
BEFORE_VERSIONS = f"""
python3 -m venv --without-pip {PROGRAM}
mkdir -p {PROGRAM}/share/lipsyncd/lipsyncd.service.d
printf '#!/bin/sh\\necho old\\n' > {PROGRAM}/bin/lipsyncd
chmod +x {PROGRAM}/bin/lipsyncd
ln -s {PROGRAM}/bin/lipsyncd /usr/local/bin/lipsyncd
"""
LATER_STEP = '\n\nSTEPS = (*STEPS, "CREATE TABLE of_the_next_version(x TEXT) STRICT;")\n'
FAILS_AFTERWARDS = """

_opened = open_engine


def open_engine(path, steps):
    _opened(path, steps).dispose()
    raise RuntimeError("as asked, after the migration")
"""
PROCESSES = """
for folder in /proc/[0-9]*; do
  tr '\\0' ' ' < $folder/cmdline 2>/dev/null | grep -q -e {pattern} && echo ${{folder#/proc/}}
done; true
"""


@pytest.fixture(scope="module")
def machine(debian_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with a checkout, the user alice, and an installation in which the program was a virtual environment."""
    if reason := container_kit.cannot_run("systemd-nspawn", "nsenter"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machine")
    root = container_kit.copy_root(debian_root, folder / "root")
    container_kit.checkout(root / SOURCE)
    with booted(root, folder / "boot.log") as machine:
        machine.run(f"useradd --create-home alice && {BEFORE_VERSIONS}")
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """A running service without a GPU and with a renderer of its own, slow enough to be interrupted."""
    output = machine.run(f"cd /{SOURCE} && make install").stdout
    assert f"is installed in {PROGRAM}, with tts." in output  # the old one had no musetalk
    machine.run("usermod --append --groups lipsyncd alice")
    shutil.copy(ROOT / "tests/kits/machine/service_renderers.py", machine.root / "opt/lipsyncd/own")
    settings = machine.root / SETTINGS.lstrip("/")
    own = 'renderers = ["slow=service_renderers:Slow"]\nstop_grace_s = 25'
    settings.write_text(
        settings.read_text().replace("[render]", f"[render]\n{own}").replace("[web]", "[web]\nport = 0")
    )
    machine.run("systemctl enable --now lipsyncd")
    return machine


def current(machine: Machine) -> str:
    return str((machine.root / "opt/lipsyncd/current").readlink())


def versions(machine: Machine) -> set[str]:
    return {path.name for path in (machine.root / "opt/lipsyncd/versions").iterdir()} - {".lock"}


def works(machine: Machine) -> None:
    """The service runs and answers, and a command of another user finds it."""
    assert machine.show("ActiveState") == "active"
    machine.run("cd && lipsyncd status --json", user="alice")


def processes(machine: Machine, pattern: str) -> list[str]:
    return machine.run(PROCESSES.format(pattern=shlex.quote(pattern))).stdout.split()


def interrupt(machine: Machine, *, when: str, kill: str) -> str:
    """Upgrade, send SIGKILL to processes as soon as a path of the new version exists; gives what `make` printed.

    kill  a pattern of the command lines of those processes
    """
    with ThreadPoolExecutor(1) as pool:
        upgrade = pool.submit(machine.run, f"cd /{SOURCE} && make install 2>&1", check=False)
        new = machine.root / "opt/lipsyncd/versions"
        machine.until(lambda: list(new.glob(when)) or upgrade.done(), f"{when} of the new version", seconds=600)
        assert not upgrade.done(), upgrade.result().stdout
        found = processes(machine, kill)
        assert found
        machine.run(f"kill -KILL {' '.join(found)}", check=False)
        done = upgrade.result()
    assert done.returncode != 0
    return done.stdout


# -- the installation --------------------------------------------------------------------------------------------------


def test_an_installation_without_versions_becomes_one_with_them(installed: Machine) -> None:
    works(installed)
    assert (current(installed), versions(installed)) == ("versions/1", {"1"})
    program = installed.root / "opt/lipsyncd"
    assert {path.name for path in program.iterdir()} == {"bin", "current", "own", "share", "versions"}
    assert [path.name for path in (program / "bin").iterdir()] == ["lipsyncd"]
    assert installed.run("lipsyncd --version").stdout.startswith("lipsyncd, version")
    assert (program / "current/share/lipsyncd/lipsyncd.service.d/cpu-only.conf").exists()


def test_man_pages_and_completions_lie_where_man_and_the_shells_look(installed: Machine) -> None:
    for name, link in LINKS.items():
        assert str((installed.root / link.lstrip("/")).readlink()) == f"{PROGRAM}/current/share/{name}"
        assert installed.run(f"cat {link}", user="alice").stdout
    complete = "source /usr/local/share/bash-completion/completions/lipsyncd; COMP_WORDS=(lipsyncd mod); COMP_CWORD=1"
    shown = f'{complete}; _lipsyncd_completion lipsyncd; echo "${{COMPREPLY[@]}}"'
    assert installed.run(f"bash -c {shlex.quote(shown)}", user="alice").stdout.strip() == "models"


def test_a_remedy_names_the_installer_and_not_pip(installed: Machine) -> None:
    program = "from lipsyncd.extras import how_to_install as how; print(how('voices'))"
    told = installed.run(f"{PROGRAM}/current/bin/python -c {shlex.quote(program)}").stdout
    assert told.strip() == f"install it: sudo make -C /{SOURCE} install EXTRAS=tts,voices"


# -- upgrades ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "kill", "left"),
    [
        ("2/lib/*/site-packages/typing_extensions.py", "bin/pip install", {"1"}),
        ("2/bin/pip", "config/install.sh\\|config/venv.sh\\|config/pip-install.sh\\|versions/2", {"1", "2"}),
    ],
    ids=["pip", "everything"],
)
def test_an_interrupted_upgrade_leaves_the_old_version_running(
    installed: Machine, when: str, kill: str, left: set[str]
) -> None:
    before = installed.show("MainPID")
    output = interrupt(installed, when=when, kill=kill)
    assert ("the installed version is as it was" in output) == (left == {"1"})
    assert installed.show("MainPID") == before
    assert (current(installed), versions(installed)) == ("versions/1", left)  # what is left goes with the next upgrade
    works(installed)


def test_a_version_that_does_not_start_gives_way_to_the_one_before(installed: Machine) -> None:
    """It lacks all packages that it needs."""
    failed = installed.run(f"cd /{SOURCE} && PIP_NO_DEPS=1 make install", check=False)
    assert failed.returncode != 0
    assert "the one before runs again" in failed.stderr, failed.stderr
    assert "No module named" in installed.journal()
    assert (current(installed), versions(installed)) == ("versions/1", {"1"})
    works(installed)


def test_a_version_that_migrates_the_ledger_and_does_not_start_gives_way_too(installed: Machine) -> None:
    """The version before refuses the newer ledger. It gets its own back, with the jobs of before."""

    def jobs() -> list[tuple[str, str]]:
        shown = json.loads(installed.run("cd && lipsyncd status --json", user="alice").stdout)
        return [(job["name"], job["state"]) for job in shown["jobs"]]

    for name, content in (("kept.png", picture()), ("kept.wav", sound(0.3))):
        (installed.root / "srv/lipsyncd/inbox" / name).write_bytes(content)
    installed.until(lambda: jobs() == [("kept", "failed")], "the job without a face", seconds=120)
    source = installed.root / SOURCE / "lipsyncd/ledger"
    before = {path: path.read_text() for path in (source / "schema.py", source / "engine.py")}
    try:
        for path, code in zip(before, (LATER_STEP, FAILS_AFTERWARDS), strict=True):
            path.write_text(before[path] + code)
        failed = installed.run(f"cd /{SOURCE} && make install", check=False)
    finally:
        for path, text in before.items():
            path.write_text(text)
    assert failed.returncode != 0
    assert "the one before runs again" in failed.stderr, failed.stderr
    assert "the ledger of before the upgrade is back" in failed.stdout
    assert "as asked, after the migration" in installed.journal()
    assert (current(installed), versions(installed)) == ("versions/1", {"1"})
    works(installed)
    assert jobs() == [("kept", "failed")]


def test_an_upgrade_keeps_settings_extras_and_own_renderers_and_the_service_is_down_for_seconds(
    installed: Machine,
) -> None:
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    before = installed.show("MainPID")
    installed.write(f"/{SOURCE}/lipsyncd/of_the_next_version.py", '"""New."""\n')
    output = installed.run(f"cd /{SOURCE} && make install").stdout
    assert "with tts." in output
    assert "The service is running again." in output
    assert (installed.root / SETTINGS.lstrip("/")).read_text() == text
    works(installed)
    assert installed.show("MainPID") != before
    assert versions(installed) == {current(installed).removeprefix("versions/")} != {"1"}
    installed.run(f"{PROGRAM}/current/bin/python -c 'import lipsyncd.of_the_next_version, service_renderers'")
    assert not (installed.root / SOURCE / "build").exists()
    down_us = int(installed.show("ActiveEnterTimestampMonotonic")) - int(installed.show("ActiveExitTimestampMonotonic"))
    print(f"\nthe service was down for {down_us / 1e6:.1f} s")
    assert 0 < down_us < 20e6  # an idle machine needs two


def test_a_setting_that_the_new_version_refuses_stops_the_upgrade_before_pip(installed: Machine) -> None:
    text = (installed.root / SETTINGS.lstrip("/")).read_text()
    installed.write(SETTINGS, text.replace("[web]", "[web]\nprot = 1"))
    done = installed.run(f"cd /{SOURCE} && make install", check=False)
    installed.write(SETTINGS, text)
    assert done.returncode != 0
    assert "did you mean web.port?" in done.stderr
    assert "the installed version is as it was" in done.stderr
    assert "Python packages" not in done.stdout
    assert versions(installed) == {current(installed).removeprefix("versions/")}
    works(installed)


def test_an_unknown_part_is_refused_at_once(installed: Machine) -> None:
    done = installed.run(f"cd /{SOURCE} && make install EXTRAS=musetlk", check=False)
    assert done.returncode != 0
    assert "EXTRAS has musetlk; there are musetalk, " in done.stderr
    works(installed)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_uninstalling_takes_seconds_and_leaves_settings_and_data(installed: Machine) -> None:
    """A job runs, whose grace alone is longer."""
    root = installed.root
    (root / "home/alice/face.png").write_bytes(picture(1))
    (root / "home/alice/voice.wav").write_bytes(sound(60.0, 1))
    installed.run("cd; lipsyncd submit face.png voice.wav --renderer slow --name long", user="alice")
    ledger = f"file:{root}/var/lib/lipsyncd/state/ledger.db?mode=ro"

    def state() -> tuple[str, int]:
        with closing(sqlite3.connect(ledger, uri=True)) as reader:
            found = reader.execute("SELECT state, attempt FROM job WHERE name = 'long'").fetchone()
        return found or ("", 0)

    installed.until(lambda: state()[0] == "running", "the running job", seconds=300)
    started_s = time.monotonic()
    output = installed.run(f"cd /{SOURCE} && make uninstall").stdout
    took_s = time.monotonic() - started_s
    print(f"\nmake uninstall took {took_s:.1f} s")
    assert took_s < 15
    assert state() == ("queued", 0)
    for kept in ("/etc/lipsyncd", "/var/lib/lipsyncd", "/srv/lipsyncd", "/opt/lipsyncd/own"):
        assert kept in output
        assert (root / kept.lstrip("/")).is_dir()
    links = [link.lstrip("/") for link in LINKS.values()]
    gone = (
        "etc/fish",
        *links,
        "usr/local/bin/lipsyncd",
        "usr/local/lib/systemd/system/lipsyncd.service",
        "opt/lipsyncd/versions",
    )
    assert [path for path in gone if (root / path).is_symlink() or (root / path).exists()] == []
    assert installed.show("LoadState") == "not-found"
    assert installed.run("find /proc -maxdepth 1 -user lipsyncd -name '[0-9]*'").stdout == ""
    assert installed.run(f"ls {PROGRAM}").stdout.split() == ["own"]
    installed.until(lambda: not (root / "opt/lipsyncd/.removed").exists(), "the deletion", seconds=300)
