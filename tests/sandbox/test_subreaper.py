"""What programs outside of the jail leave behind: a process in a session of its own is ended, and nothing else is."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lipsyncd
from tests.kits.installation import Installation, picture, put
from tests.kits.machine.processes import children_of, command_of, is_alive

# Starts a process that no kill of a process group reaches: a session of its own, and a parent that has ended.
ESCAPE = """
def escape(note, environment=None):
    import os, subprocess, sys
    if not os.fork():
        os.setsid()
        subprocess.Popen(["sleep", "600"], env=environment, stdin=-3, stdout=-3, stderr=-3)
        sleeper = subprocess.Popen([sys.executable, "-c", "import os, time; os.fork(); time.sleep(600)"],
            env=environment, start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
        with open(note, "a") as file:
            file.write(f"{sleeper.pid} {os.getpid()}\\n")
        os._exit(0)
    os.wait()
"""
SPEAKER = (
    ESCAPE
    + """
import sys, wave
sys.stdin.read()
escape(sys.argv[1], {} if "bare" in sys.argv else None)
out = wave.open(sys.stdout.buffer, "wb")
out.setparams((1, 2, 16000, 0, "NONE", ""))
out.writeframes(bytes(16000))
"""
)


def script(code: str, *arguments: object) -> list[str]:
    """Run Python that becomes a subreaper first; returns the words that it prints."""
    begin = "from lipsyncd.sandbox import subreaper; subreaper.become()\n"
    ended = subprocess.run(
        [sys.executable, "-c", begin + ESCAPE + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize("kind", ["inherits its environment", "bare"])
def test_a_daemon_ends_what_the_operators_speaker_leaves_behind(installation: Installation, kind: str) -> None:
    speaker, note = installation.root / "speaker.py", installation.root / "note"
    speaker.write_text(SPEAKER)
    installation.changes["speech"] = {"command": [sys.executable, str(speaker), str(note), kind]}
    with installation.running():
        put(installation.path("inbox"), "anna.png", picture())
        installation.drop_manifest("anna", image="anna.png", text="hello")
        installation.until_done("anna")
        pids = [int(pid) for pid in note.read_text().split()]
        assert len(pids) == 2
        assert not any(map(is_alive, pids))
        assert installation.daemon is not None
        left = [*filter(None, map(command_of, children_of(installation.daemon.pid)))]
        assert all(b"lipsyncd.renderers" in line for line in left), left
    assert "was left behind and is ended" in installation.log


def test_a_daemon_ends_what_a_render_child_leaves_behind_when_it_ends(installation: Installation) -> None:
    note = installation.root / "note"
    installation.changes["render"] = {
        "renderers": ["leaver=tests.kits.faults.faulty_children:Leaver"],
        "renderer": "leaver",
        "environment": ["TEST_HELPER_PID"],
        "unload_idle_s": 2.0,
    }
    with installation.running(TEST_HELPER_PID=str(note)):
        installation.drop_pair("anna")
        installation.until_done("anna")
        [helper] = map(int, note.read_text().split())
        assert is_alive(helper), "it is left alone while the child may need it"
        installation.until(lambda: not is_alive(helper), "its end")


def test_only_what_was_left_behind_is_ended(tmp_path: Path) -> None:
    """A process from before, one of the own session, one that was started here, and what belongs to one that runs."""
    code = """
        import os, subprocess, sys, time
        from pathlib import Path
        from lipsyncd.sandbox import subreaper
        note = sys.argv[1]
        sleep = ["sleep", "600"]
        before = subprocess.Popen(sleep, start_new_session=True)
        subreaper.become()
        own = subprocess.Popen(sleep)
        started = subreaper.start(lambda: subprocess.Popen(sleep, start_new_session=True))
        mark = subreaper.new_mark()
        escape = "import sys\\n" + sys.argv[2] + "escape(sys.argv[1]); import time; time.sleep(600)"
        program = [sys.executable, "-c", escape, note]
        running = subreaper.start(
            lambda: subprocess.Popen(program, start_new_session=True, env={**os.environ, subreaper.MARK: mark}), mark)
        while not Path(note).exists() or Path(note).read_text().count("\\n") < 1:
            time.sleep(0.01)
        print(subreaper.sweep())
        helper = int(Path(note).read_text().split()[0])
        alive = lambda pid: Path(f"/proc/{pid}/stat").exists()
        print(before.poll(), own.poll(), started.poll(), running.poll(), alive(helper))
        running.kill()
        running.wait()
        print(subreaper.sweep() > 1)
        print(before.poll(), own.poll(), started.poll(), alive(helper))
        for each in (before, own, started):
            each.kill()
    """
    words = script(code, tmp_path / "note", ESCAPE)
    assert words == ["0", *["None"] * 4, "True", "True", *["None"] * 3, "False"]


def test_processes_that_have_ended_by_themselves_are_reaped() -> None:
    code = """
        import os, subprocess, time
        for _ in range(20):
            subprocess.run(["sh", "-c", "setsid true &"])
        time.sleep(0.5)
        def count():
            places = [f"/proc/self/task/{task}/children" for task in os.listdir("/proc/self/task")]
            return sum(len(open(place).read().split()) for place in places)
        before = count()
        subreaper.sweep()
        print(before, count())
    """
    before, after = map(int, script(code))
    assert before > 0
    assert after == 0


def test_a_process_that_is_no_subreaper_sweeps_nothing() -> None:
    code = """
        import subprocess, sys
        from lipsyncd.sandbox import subreaper
        other = subprocess.Popen(["sleep", "60"], start_new_session=True)
        print(subreaper.sweep(), other.poll())
        other.kill()
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert ended.stdout.split() == ["0", "None"]


def test_a_sweep_takes_no_longer_than_it_may() -> None:
    code = """
        import subprocess, time
        subprocess.run(["sh", "-c", "setsid sleep 600 &"])
        time.sleep(0.3)
        began = time.monotonic()
        print(subreaper.sweep(), time.monotonic() - began < 1.0)
    """
    assert script(code) == ["1", "True"]


def test_every_process_with_a_session_of_its_own_is_in_the_list() -> None:
    """One that is started past `subreaper.start` would count as left behind."""
    found = listed = 0
    for path in Path(lipsyncd.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        found += _with_a_session_of_its_own(tree)
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for starter in _starters(tree):
            listed += _with_a_session_of_its_own(functions[starter.id] if isinstance(starter, ast.Name) else starter)
    assert found == listed > 2


def _with_a_session_of_its_own(tree: ast.AST) -> int:
    """How many calls below that node give a process a session or a group of its own."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(any(keyword.arg in ("start_new_session", "process_group") for keyword in c.keywords) for c in calls)


def _starters(tree: ast.AST) -> list[ast.expr]:
    """What `subreaper.start` is called with, at once or later through a partial: the function that starts a process."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    at_once = [call.args[0] for call in calls if ast.unparse(call.func) == "subreaper.start"]
    later = [call.args[1] for call in calls if ast.unparse(call.args[0]) == "subreaper.start"]
    return at_once + later
