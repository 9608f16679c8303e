"""A small Debian that boots under its own systemd, for tests of the service under systemd."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kits.machine.container_kit import PipSource
from tests.kits.machine.processes import GONE

# nspawn's own filter refuses these calls, which the unit's filter allows.
_CALLS = "openat2 landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C"}
WAIT_S = 120.0


class Machine:
    """A booted container. Commands run in all of its namespaces, as root there or as one of its users."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self._log = log
        self._leader: int | None = None
        source = PipSource.of_this_machine()
        (root / "etc/pip.conf").write_text(source.config)
        name = f"lipsyncd-test-{os.getpid()}"
        command = ["systemd-nspawn", "--quiet", f"--directory={root}", f"--machine={name}", "--boot"]
        command += ["--register=no", "--keep-unit", "--console=pipe", f"--system-call-filter={_CALLS}"]
        command += [f"--bind-ro={folder}" for folder in source.folders]
        with log.open("wb") as output:
            self._nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self._leader = self.until(self._first_process, "the container's first process")
            self.until(self._is_up, "the end of the boot")
        except BaseException:
            self.power_off()
            raise

    def _first_process(self) -> int | None:
        """The child with process number 1 in its own namespace; helpers start and end before it."""
        assert self._nspawn.poll() is None, self._log.read_text()
        for child in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
            with contextlib.suppress(*GONE):
                numbers = re.search(r"^NSpid:\s+\d+\s+1$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
                if numbers is not None:
                    return int(child)
        return None

    def _is_up(self) -> bool:
        return self.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def run(
        self, command: str, *, user: str = "root", check: bool = True, timeout_s: float = 900.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside."""
        inside = ["nsenter", f"--target={self._leader}", "--all"]
        as_user = [] if user == "root" else ["runuser", f"--user={user}", "--"]
        done = subprocess.run(
            [*inside, *as_user, "sh", "-c", f"cd /; {command}"],
            capture_output=True, text=True, timeout=timeout_s, env=_ENVIRONMENT, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def python(self, program: str) -> str:
        """The output of a program that the container's Python runs."""
        return self.run(f"python3 -c {shlex.quote(program)}").stdout.strip()

    def show(self, name: str) -> str:
        """A property of the service, such as StatusText."""
        return self.run(f"systemctl show --value --property={name} lipsyncd").stdout.strip()

    def journal(self) -> str:
        return self.run("journalctl --boot --unit=lipsyncd --no-pager --output=cat").stdout

    def write(self, path: str, text: str, *, mode: int = 0o644) -> None:
        """Write a file that root owns. The container has no user namespace, so its owners are those of this machine."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def until(self, done: Callable[[], Any], what: str, *, seconds: float = WAIT_S) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := done():
                return found
            time.sleep(0.1)
        journal = (
            "" if self._leader is None else self.run("journalctl --boot --no-pager | tail -40", check=False).stdout
        )
        raise AssertionError(f"{what} did not come within {seconds} s\n{self._log.read_text()[-2000:]}\n{journal}")

    def power_off(self) -> None:
        """Shut it down, and kill it if that takes too long."""
        if self._leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGRTMIN + 4)  # systemd's signal for a power-off
        try:
            self._nspawn.wait(30)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()


@contextmanager
def booted(root: Path, log: Path) -> Iterator[Machine]:
    machine = Machine(root, log)
    try:
        yield machine
    finally:
        machine.power_off()
