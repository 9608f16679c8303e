"""What the start of a command costs in processor time, beside another one in the same run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence


def cpu_s(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Processor seconds of one run of a command, which has to succeed."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return used.ru_utime + used.ru_stime


def least_cpu_s(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], *, runs: int
) -> dict[str, float]:
    """The least processor seconds of each command in so many alternating runs, with bytecode at hand."""
    environment = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for command in commands.values():
        cpu_s(command, environment)  # writes bytecode
    took = [{name: cpu_s(command, environment) for name, command in commands.items()} for _ in range(runs)]
    return {name: min(one[name] for one in took) for name in commands}
