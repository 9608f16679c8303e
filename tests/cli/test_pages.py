"""The man pages and completions that a build makes: real shells complete with them, and man shows them."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lipsyncd.cli.main import main
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import spec_of
from tests.kits.installation import ROOT, Installation

BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
WAIT_S = 20.0


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}: see config/test-packages.sh")


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, ROOT / "config/pages.py", folder], check=True, cwd="/")
    return folder


# -- man pages ---------------------------------------------------------------------------------------------------------


@needs("groff")
def test_the_man_pages_render_without_a_warning(share: Path) -> None:
    pages = sorted(share.glob("man/man*/*"))
    assert len(pages) == len(main.commands) + 2
    for page in pages:
        done = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8", "-z", page], capture_output=True, text=True, check=True
        )
        assert (page.name, done.stderr) == (page.name, "")


@needs("man")
def test_man_shows_every_command_option_and_setting(share: Path) -> None:
    def shown(page: str) -> str:
        command = ["man", "--warnings", "--local-file", share / "man" / page]
        environment = {**os.environ, "MANWIDTH": "200", "LANG": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stderr == ""
        return re.sub(".\b", "", done.stdout)

    overview = shown("man1/lipsyncd.1")
    assert all(re.search(rf"^ +{name}\b", overview, re.MULTILINE) for name in main.commands)
    submit = shown("man1/lipsyncd-submit.1")
    assert "lipsyncd submit [OPTIONS] IMAGE [AUDIO]" in submit
    assert re.search(r"^ +--stitch / --square$", submit, re.MULTILINE)
    assert re.search(r"^ +pull \[OPTIONS\] \[NAMES\]\.\.\.$", shown("man1/lipsyncd-models.1"), re.MULTILINE)
    settings = shown("man5/lipsyncd.toml.5")
    body = [line.strip() for line in settings.partition("SETTINGS")[2].partition("SEE ALSO")[0].splitlines()]
    assert [line for line in body if line] == [
        line.strip() for line in (ROOT / "lipsyncd.toml").read_text().splitlines() if line
    ]


@needs("groff")
def test_the_check_for_warnings_sees_one(tmp_path: Path) -> None:
    (tmp_path / "bad.1").write_text(".TH X 1\n.SH NAME\n.nosuchrequest\n")
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", "-z", tmp_path / "bad.1"], capture_output=True, text=True, check=False
    )
    assert "nosuchrequest" in done.stderr


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(installation: Installation) -> Installation:
    """A folder with the command `lipsyncd`, two jobs in a ledger, and two files."""
    installation.folders.initialise()
    ledger = Ledger(installation.path("state") / "ledger.db")
    for name in ("walter", "beate and co"):
        ledger.insert(spec_of(name=name), max_attempts=3)
    ledger.close()
    command = installation.root / "bin/lipsyncd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m lipsyncd "$@"\n')
    command.chmod(0o755)
    for name in ("portrait.png", "poster.txt"):
        (installation.root / name).touch()
    return installation


def environment(home: Installation, share: Path) -> dict[str, str]:
    return home.environment(
        PATH=f"{home.root / 'bin'}:{os.environ['PATH']}",
        XDG_DATA_DIRS=f"{share}:/usr/share",
        LIPSYNCD_CONFIG=str(home.config),
        TERM="dumb",
        INPUTRC="/dev/null",
        LANG="C.UTF-8",
    )


class Shell:
    """An interactive shell in a terminal; `typed` gives what stands in its line after some keys."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._seen = ""

    def run(self, command: str) -> None:
        os.write(self._terminal, f"{command}; echo do''ne\n".encode())
        self._until(r"^done\r?$")

    def typed(self, keys: str, wanted: str) -> None:
        """Type these keys, and wait until what is wanted shows. Then empty the line."""
        self._seen = ""
        os.write(self._terminal, keys.encode())
        self._until(wanted)
        os.write(self._terminal, b"\x15")  # Ctrl-U

    def _until(self, wanted: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not re.search(wanted, self._seen, re.MULTILINE):
            assert time.monotonic() < deadline_s, (wanted, self._seen)
            if select.select([self._terminal], [], [], 0.1)[0]:
                self._seen += os.read(self._terminal, 4096).decode(errors="replace")


@contextmanager
def shell(home: Installation, share: Path, *command: str) -> Iterator[Shell]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home.root)
        os.execvpe(command[0], command, environment(home, share))
    try:
        yield Shell(terminal)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.skipif(not BASH_COMPLETION.exists(), reason="needs bash-completion: see config/test-packages.sh")
def test_bash_completes_commands_options_values_files_and_jobs(home: Installation, share: Path) -> None:
    with shell(home, share, "bash", "--norc", "--noprofile", "-i") as bash:
        bash.run(f"PS1='> '; source {BASH_COMPLETION}")
        bash.typed("lipsyncd mod\t", r"lipsyncd models $")  # bash-completion finds the file of the command by its name
        bash.typed("lipsyncd models ver\t", r"lipsyncd models verify $")
        bash.typed("lipsyncd status --wat\t", r"status --watch $")
        bash.typed("lipsyncd render --motion li\t", r"--motion lively $")
        bash.typed("lipsyncd submit portr\t", r"submit portrait\.png $")
        bash.typed("lipsyncd cancel wal\t", r"cancel walter $")
        bash.typed("lipsyncd cancel \t\t", r"[0-9a-f]{6,12} +walter|walter +[0-9a-f]{6,12}")  # one name needs quotes
        bash.typed("lipsyncd retry wal\tNOTHING", r"retry wal\x07?NOTHING$")  # it has not ended


@needs("zsh")
def test_zsh_completes(home: Installation, share: Path) -> None:
    with shell(home, share, "zsh", "-f", "-i") as zsh:
        zsh.run(f"PS1='> '; fpath=({share}/zsh/site-functions $fpath); autoload -U compinit; compinit -u -D")
        zsh.typed("lipsyncd mod\t", r"lipsyncd mod.*els")
        zsh.typed("lipsyncd cancel wal\t", r"wal.*ter")
        zsh.typed("lipsyncd submit portr\t", r"portr.*ait\.png")


@needs("fish")
def test_fish_completes(home: Installation, share: Path) -> None:
    asked = 'complete --do-complete "lipsyncd mod"; complete --do-complete "lipsyncd cancel wal"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {share}/fish/vendor_completions.d/lipsyncd.fish; {asked}"],
        capture_output=True, text=True, check=True, env=environment(home, share), timeout=WAIT_S,
    )  # fmt: skip
    models, job = done.stdout.splitlines()
    assert models.startswith("models\tFetch, verify or list")
    assert job == "walter\tqueued"


def test_a_completion_without_a_ledger_or_with_a_wrong_setting_offers_nothing(installation: Installation) -> None:
    asked = {"_LIPSYNCD_COMPLETE": "bash_complete", "COMP_WORDS": "lipsyncd cancel ", "COMP_CWORD": "2"}
    for text in ("", "[web]\nport = 'x'\n"):
        config = installation.root / "given.toml"
        config.write_text(text)
        variables = installation.environment(LIPSYNCD_CONFIG=str(config), **asked)
        done = subprocess.run(
            [sys.executable, "-m", "lipsyncd"], capture_output=True, text=True, check=False, env=variables
        )
        assert (done.stdout.strip(), done.stderr) == ("", "")
