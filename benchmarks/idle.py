"""What a daemon costs that has nothing to do: `python -m benchmarks.idle` prints a table.

Its web server listens. Processor time comes from `/proc/PID/stat`, wake-ups are the voluntary context switches of all
of its threads, and memory is compared with a process that has only imported the same modules. Then the same with many
files in the inbox that wait for their partners, and with a page open. `--threads` tells which thread wakes up.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.kits.installation import Installation, picture
from tests.kits.web_kit import port_of

SETTLED_S = 8.0  # after the start, or after files were dropped
WATCHED_S = 60.0
FILES = 10_000
SETTINGS = {
    "web": {"enabled": True, "port": 0},
    "watch": {"settle_s": 2.0, "settle_proven_s": 0.2, "rescan_s": 10.0},  # the defaults
    "render": {"lazy_load": True},
}
IMPORTS = "import lipsyncd.daemon.daemon, lipsyncd.web.server, lipsyncd.cli, aiohttp.web"


@dataclass(frozen=True)
class Cost:
    """Of one daemon during `seconds`.

    of_core      its processor time by the clock's
    wakes        how often a second its threads went on after they had waited, by their names
    resident_mb  its memory
    """

    of_core: float
    wakes: Counter[str]
    resident_mb: float

    def __str__(self) -> str:
        return f"{self.of_core:6.2%} of a core, {self.wakes.total():5.1f} wake-ups a second, {self.resident_mb:.0f} MB"


def cost(pid: int, seconds: float) -> Cost:
    """Watch a daemon for that long."""
    began_s, cpu, wakes = time.monotonic(), cpu_s(pid), switches(pid)
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    rates = Counter({name: (count - wakes.get(name, 0)) / took_s for name, count in switches(pid).items()})
    return Cost((cpu_s(pid) - cpu) / took_s, rates, resident_mb(pid))


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, all of its threads."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> dict[str, int]:
    """The voluntary context switches of each thread so far, by name and id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        found[f"{fields['Name']} {task.name}"] = int(fields["voluntary_ctxt_switches"])
    return found


def resident_mb(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1000


def imports_mb(installation: Installation) -> float:
    """The memory of a process that has imported what a daemon imports, and done nothing."""
    code = f"{IMPORTS}; print([x for x in open('/proc/self/status') if x.startswith('VmRSS')][0].split()[1])"
    command = [installation.python, "-c", code]
    return int(subprocess.run(command, capture_output=True, check=True, env=installation.environment()).stdout) / 1000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-idle-") as folder:
        installation = Installation(Path(folder), SETTINGS)
        with installation.running(fresh=True):
            assert installation.daemon is not None
            pid = installation.daemon.pid
            port_of(installation)
            time.sleep(SETTLED_S)
            tell("idle", cost(pid, WATCHED_S))
            print(f"{'':28} its imports alone: {imports_mb(installation):.0f} MB")
            for number in range(FILES):
                (installation.path("inbox") / f"waits-{number}.png").write_bytes(picture(number, 4, 4))
            time.sleep(4 * SETTLED_S)
            tell(f"{FILES} files wait", cost(pid, WATCHED_S))


def tell(name: str, found: Cost) -> None:
    print(f"{name:28} {found}")
    if "--threads" in sys.argv:
        for thread, rate in found.wakes.most_common():
            if rate >= 0.01:
                print(f"{'':28} {thread:24} {rate:6.2f}")


if __name__ == "__main__":
    main()
