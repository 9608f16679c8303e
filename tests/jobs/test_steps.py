"""What each part is doing: a late step is named, and a restart is asked for only when it would help."""

from __future__ import annotations

from lipsyncd.jobs.steps import StepFacts, Steps
from lipsyncd.monitor import health
from lipsyncd.monitor.facts import Facts, WorkerFacts
from tests.kits.core_kit import Clock


def test_steps_under_way_have_an_age_and_end_with_their_block() -> None:
    clock = Clock()
    steps = Steps(clock)
    with steps.at("main", "has tidied", limit_s=10, on_share=True):
        clock.wait(4)
        with steps.at("prepare", "has prepared job x", limit_s=5):
            clock.wait(7)
            assert steps.facts() == (
                StepFacts("main", "has tidied", 11.0, 10, True),
                StepFacts("prepare", "has prepared job x", 7.0, 5, False),
            )
    assert steps.facts() == ()


def well(*steps: StepFacts) -> Facts:
    return Facts(version="1", workers=(WorkerFacts("cpu", up=True),), steps=steps)


def test_a_late_step_makes_the_daemon_not_ready_and_is_named_with_its_part() -> None:
    in_time, late = StepFacts("main", "has tidied", 9, 10, False), StepFacts("prepare", "has decoded", 70, 60, False)
    assert health.ready(well(in_time))[0]
    ready, body = health.ready(well(in_time, late))
    assert not ready
    assert body["failing"] == {"prepare": "has decoded for 70 s; 60 s is the longest that it may take"}


def test_the_watchdog_acts_on_a_late_step_but_never_while_a_step_is_on_a_share() -> None:
    late, on_share = StepFacts("prepare", "has decoded", 70, 60, False), StepFacts("main", "has tidied", 99, 9, True)
    assert health.stuck(well(late)) == "prepare has decoded for 70 s; 60 s is the longest that it may take"
    assert health.stuck(well(on_share)) == ""
    assert health.stuck(well(on_share, late)) == ""
