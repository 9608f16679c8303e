"""The ordinary day of a member of the group, and a stranger who can do none of it: real users and a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsyncd.jobs.job import JobState
from lipsyncd.media.mp4 import inspect
from tests.kits.installation import Installation, picture, sound
from tests.kits.machine.users_kit import COLLEAGUE, DAEMON, MEMBER, STRANGER, User, needs_users, shared_installation

pytestmark = needs_users


@pytest.fixture(scope="module")
def share() -> Iterator[Installation]:
    """The service's folders as the unit's installation makes them, its daemon, and a home for each of the others."""
    with shared_installation() as made:
        made.run_as = DAEMON.command(lease=True)
        made.changes["watch"] = {"rescan_s": 1.0}
        for user in (MEMBER, COLLEAGUE, STRANGER):
            home = home_of(made, user)
            home.mkdir(0o700)
            (home / "face.png").write_bytes(picture(user.uid))
            (home / "voice.wav").write_bytes(sound(0.4, user.uid))
            for path in (home, *home.iterdir()):
                os.chown(path, user.uid, user.gid)
        with made.running():
            yield made


def home_of(share: Installation, user: User) -> Path:
    return share.root / f"home-{user.uid}"


def shell(share: Installation, user: User, script: str, *, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """Run a shell script as that user, in its home."""
    return user.run("sh", "-euc", f"cd {home_of(share, user)}\n{script}", umask=umask)


def lipsyncd(
    share: Installation, user: User, *arguments: str | Path, umask: int = 0o022
) -> subprocess.CompletedProcess[str]:
    """Run `lipsyncd` as that user."""
    variables = [f"{name}={value}" for name, value in share.environment(HOME=str(home_of(share, user))).items()]
    config = str(share.root / "lipsyncd.toml")
    return user.run("-i", *variables, share.python, "-m", "lipsyncd", "--config", config, *arguments, umask=umask)


def submit(share: Installation, user: User, name: str, *more: str, umask: int = 0o022) -> str:
    """Submit the user's two files; returns the job's id."""
    home = home_of(share, user)
    done = lipsyncd(share, user, "submit", home / "face.png", home / "voice.wav", "--name", name, *more, umask=umask)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- the member --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_a_member_drops_a_pair_and_takes_its_video_away(share: Installation, umask: int) -> None:
    inbox, outbox, name = share.path("inbox"), share.path("outbox"), f"dropped{umask:o}"
    copy = 'cp "$1" "$3/.$2"; chmod g+r "$3/.$2"; mv "$3/.$2" "$3/$2"'
    copies = "\n".join(
        f"set -- {file} {name}{suffix} {inbox}; {copy}"
        for file, suffix in (("face.png", ".png"), ("voice.wav", ".wav"))
    )
    dropped = shell(share, MEMBER, copies, umask=umask)
    assert dropped.returncode == 0, dropped.stderr
    share.until_done(name)
    taken = shell(share, MEMBER, f"cp {outbox}/{name}.mp4 .; rm {outbox}/{name}.mp4 {outbox}/{name}.json")
    assert taken.returncode == 0, taken.stderr
    assert inspect(home_of(share, MEMBER) / f"{name}.mp4").video.frames == 10
    assert not list(outbox.glob(f"{name}*"))
    assert not [path for path in inbox.iterdir() if name in path.name]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_member_submits_waits_and_fetches(share: Installation, umask: int) -> None:
    name = f"submitted{umask:o}"
    home, out = home_of(share, MEMBER), home_of(share, MEMBER) / f"{name}.mp4"
    done = lipsyncd(
        share,
        MEMBER,
        "submit",
        home / "face.png",
        home / "voice.wav",
        "--name",
        name,
        "--wait",
        "--out",
        out,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    assert out.stat().st_uid == MEMBER.uid
    assert inspect(out).video.frames == 10


def test_a_member_moves_a_video_out_of_the_outbox(share: Installation) -> None:
    submit(share, MEMBER, "moved")
    share.until_done("moved")
    outbox = share.path("outbox")
    moved = shell(share, MEMBER, f"mv {outbox}/moved.mp4 {outbox}/moved.json .")
    assert moved.returncode == 0, moved.stderr
    assert inspect(home_of(share, MEMBER) / "moved.mp4").video.frames == 10
    assert shell(share, MEMBER, "cat moved.json").returncode == 0


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_member_cancels_a_job_while_it_renders(share: Installation, umask: int) -> None:
    name = f"cancelled{umask:o}"
    job_id = submit(share, MEMBER, name, "--renderer", "hang")
    share.until_state(name, JobState.RUNNING)
    done = lipsyncd(share, MEMBER, "cancel", job_id, umask=umask)
    assert done.returncode == 0, done.stderr
    share.until_state(name, JobState.CANCELLED)


def test_a_member_reads_a_failure_and_retries_the_job(share: Installation) -> None:
    job_id = submit(share, MEMBER, "retried", "--renderer", "shy")
    failed = share.until_failed("retried")
    assert failed.kept is not None
    shown = shell(share, MEMBER, f"cat {failed.kept}/reason.json")
    assert json.loads(shown.stdout)["code"] == failed.reason_code == "no-face", shown.stderr
    done = lipsyncd(share, MEMBER, "retry", job_id)
    assert (done.returncode, "queued" in done.stdout) == (0, True), done.stderr
    share.until(lambda: sum(event.state == "failed" for event in share.view.events(job_id)) == 2, "the second failure")


def test_a_member_sees_all_jobs_and_their_history(share: Installation) -> None:
    submit(share, MEMBER, "seen")
    job = share.until_done("seen")
    assert "seen" in lipsyncd(share, MEMBER, "status").stdout
    shown = json.loads(lipsyncd(share, MEMBER, "status", "--json").stdout)
    assert shown["daemon"]["running"] is True
    assert "published as seen.mp4" in lipsyncd(share, MEMBER, "logs", job.id).stdout


def test_a_member_takes_a_drop_back_before_it_is_accepted(share: Installation) -> None:
    inbox = share.path("inbox")
    done = shell(share, MEMBER, f"cp face.png {inbox}/alone.png; sleep 1.5; mv {inbox}/alone.png back.png")
    assert done.returncode == 0, done.stderr
    assert share.job("alone") is None


def test_a_member_cannot_touch_the_drops_and_orders_of_a_colleague(share: Installation) -> None:
    """The one change for members: the inbox is sticky, so that a drop stays that of the one who dropped it."""
    inbox, control = share.path("inbox"), share.path("state") / "control"
    begun = shell(share, COLLEAGUE, f"umask 002; cp face.png {inbox}/theirs.png; cp face.png {control}/.theirs.part")
    assert begun.returncode == 0, begun.stderr
    before = (inbox / "theirs.png").read_bytes()
    attempts = {
        "remove": f"rm -f {inbox}/theirs.png",
        "rename": f"mv {inbox}/theirs.png {inbox}/mine.png",
        "replace": f"cp face.png {inbox}/.mine.png; mv -f {inbox}/.mine.png {inbox}/theirs.png",
        "remove an order": f"rm -f {control}/.theirs.part",
        "write the archive": f"touch {share.path('archive')}/mine",
    }
    came_through = [what for what, script in attempts.items() if shell(share, MEMBER, script).returncode == 0]
    assert came_through == []
    assert (inbox / "theirs.png").read_bytes() == before
    taken_back = shell(share, COLLEAGUE, f"rm {inbox}/theirs.png {control}/.theirs.part")
    assert taken_back.returncode == 0, taken_back.stderr


# -- the stranger ------------------------------------------------------------------------------------------------------


def test_a_stranger_can_neither_look_nor_drop_nor_fetch_nor_give_orders(share: Installation) -> None:
    job_id = submit(share, MEMBER, "mine")
    share.until_done("mine")
    config, state = share.root / "lipsyncd.toml", share.path("state")
    control = state / "control" / "order.json"
    order = json.dumps({"action": "delete", "job_id": job_id, "value": 0})
    attempts = {
        "drop": f"cp face.png {share.path('inbox')}/stranger.png",
        "list the inbox": f"ls {share.path('inbox')}",
        "list the outbox": f"ls {share.path('outbox')}",
        "fetch": f"cp {share.path('outbox')}/mine.mp4 .",
        "remove": f"rm -f {share.path('outbox')}/mine.mp4",
        "read the archive": f"ls {share.path('archive')}",
        "read failures": f"ls {share.path('failed')}",
        "give an order": f"echo '{order}' > {control}",
        "read the status": f"cat {state}/status.json",
        "read the ledger": f"cat {state}/ledger.db",
        "read the spool": f"ls {share.path('spool')}",
    }
    came_through = [
        what
        for what, script in attempts.items()
        if shell(share, STRANGER, f"test -r {config}; {script}").returncode == 0
    ]
    assert came_through == []
    home = home_of(share, STRANGER)
    commands = [
        ("submit", home / "face.png", home / "voice.wav", "--name", "stranger"),
        ("status",),
        ("logs", job_id),
        ("cancel", job_id),
        ("retry", job_id),
        ("priority", job_id, "9"),
        ("republish", job_id),
    ]
    for command in commands:
        done = lipsyncd(share, STRANGER, *command)
        assert done.returncode == 77, (command, done.stdout, done.stderr)
        assert "adduser" in done.stderr
        assert "Traceback" not in done.stderr
    assert share.job("stranger") is None
    assert share.view.get(job_id).state is JobState.DONE
    assert (share.path("outbox") / "mine.mp4").exists()
