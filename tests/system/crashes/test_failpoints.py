"""SIGKILL at every failpoint of a job's life, and at pairs of them: once at work, once in the recovery.

`LIPSYNCD_TEST_PAIRS` is the number of drawn pairs, `LIPSYNCD_TEST_SEED` the seed. "all" is every pair, with and without
the greedy consumer, in 16 parts; "3/16" is the third part alone.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kits.faults.crash_kit import CrashScenario, copied, failpoints, make_template
from tests.kits.installation import Installation
from tests.kits.long_run_figures import count

SEED = int(os.environ.get("LIPSYNCD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
PAIRS = os.environ.get("LIPSYNCD_TEST_PAIRS", "150")
PARTS = [f"{part}/16" for part in range(1, 17)] if PAIRS == "all" else [PAIRS]
AT_ONCE = 4
LEAST_REACHED = 0.5  # of drawn cases; so the sweep cannot pass by reaching nothing
POINTS = failpoints()


@dataclass(frozen=True)
class Case:
    """The failpoints at which the daemons of one installation die, one after the other, and its kind of consumer."""

    places: tuple[str, ...]
    greedy: bool

    def __str__(self) -> str:
        return f"{' then '.join(self.places)}{', greedy' if self.greedy else ''}"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return make_template(tmp_path_factory.mktemp("template"))


@dataclass(frozen=True)
class Outcome:
    case: Case
    died: tuple[bool, ...]
    renders: int
    faults: Sequence[str]


def carried_out(case: Case, template: Installation, root: Path) -> Outcome:
    root.mkdir()
    with CrashScenario(copied(template, root), greedy=case.greedy) as scenario:
        scenario.drop()
        died = tuple([scenario.crash_at(place) for place in case.places])
        scenario.finish()
    renders, faults = scenario.installation.renders, scenario.check()
    if not faults:
        scenario.clear()
    return Outcome(case, died, renders, faults)


def all_of(cases: Sequence[Case], template: Installation, root: Path) -> list[Outcome]:
    """Carry out all cases, some at a time since they mostly wait. All faults stand in one message."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(lambda n: carried_out(cases[n], template, root / f"case{n}"), range(len(cases))))
    wrong = [f"{outcome.case}: {'; '.join(outcome.faults)}" for outcome in outcomes if outcome.faults]
    assert not wrong, "\n".join([f"seed {SEED}, folders under {root}", *wrong])
    return outcomes


def drawn(chance: random.Random, number: int) -> list[Case]:
    """Pairs in which every failpoint comes first, and second, equally often or once more."""
    cases: list[Case] = []
    used: set[tuple[str, str]] = set()
    while len(cases) < number:
        for pair in zip(chance.sample(POINTS, len(POINTS)), chance.sample(POINTS, len(POINTS)), strict=True):
            if pair not in used and len(cases) < number:
                used.add(pair)
                cases.append(Case(pair, greedy=len(cases) % 2 == 0))
    return cases


def part_of_all(number: int, parts: int) -> list[Case]:
    """Every pair, cut into parts: the part with this number."""
    both = itertools.product(itertools.product(POINTS, POINTS), (False, True))
    return [Case(pair, greedy) for pair, greedy in both][number - 1 :: parts]


def test_the_parts_are_all_pairs_and_none_is_in_two() -> None:
    parts = [set(part_of_all(number, 16)) for number in range(1, 17)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 2 * len(POINTS) ** 2


def test_the_drawn_pairs_have_every_failpoint_first_and_every_one_second() -> None:
    cases = drawn(random.Random(SEED), 150)
    assert len({case.places for case in cases}) == 150
    assert {case.places[0] for case in cases} == {case.places[1] for case in cases} == set(POINTS)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.timeout(1800)
def test_a_crash_anywhere_costs_no_job_and_delivers_none_twice(
    template: Installation, tmp_path: Path, greedy: bool
) -> None:
    outcomes = all_of([Case((name,), greedy) for name in POINTS], template, tmp_path)
    never = {outcome.case.places[0] for outcome in outcomes if not outcome.died[0]}
    assert never == {"recover-registered"}  # a row is made again only after an earlier crash
    kills = len(outcomes) - len(never)
    count(f"kill at each of {len(POINTS)} steps", cases=len(outcomes), kills=kills, renders=_more_renders(outcomes))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", PARTS)
def test_a_crash_and_another_one_in_the_recovery_cost_no_job(template: Installation, tmp_path: Path, part: str) -> None:
    number, of, parts = part.partition("/")
    cases = part_of_all(int(number), int(parts)) if of else drawn(random.Random(SEED), int(number))
    print(f"{len(cases)} pairs, LIPSYNCD_TEST_PAIRS={part} LIPSYNCD_TEST_SEED={SEED}")
    outcomes = all_of(cases, template, tmp_path)
    reached = [sum(outcome.died[n] for outcome in outcomes) for n in (0, 1)]
    print(f"first reached {reached[0]} times, second {reached[1]} times")
    assert reached[0] >= len(cases) * 0.9
    assert reached[1] >= len(cases) * LEAST_REACHED
    what = "kill at pairs of steps: once at work, then again in the recovery"
    count(what, cases=len(cases), kills=sum(reached), renders=_more_renders(outcomes))


def _more_renders(outcomes: Sequence[Outcome]) -> int:
    """Renders in addition to the two that each case needs."""
    return sum(max(outcome.renders - 2, 0) for outcome in outcomes)
