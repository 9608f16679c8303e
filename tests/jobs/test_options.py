"""The options of the renderers: which are known, and which values each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from lipsyncd.errors import BadOption, UnknownRenderer
from lipsyncd.jobs.options import COMMON, OPTIONS, check, effective, names_of
from lipsyncd.media import video_frames
from lipsyncd.renderers import NAMES

GOOD: Mapping[str, tuple[Any, ...]] = {
    "face": (0, 999, "12,30", " 1.5 , 2 "),
    "silence": ("source", "model"),
    "mask": ("landmarks", "parsing"),
    "mode": ("jaw", "raw", "neck"),
    "extra_margin": (0, 100),
    "batch": (1, 64),
    "detail": (0, 1, 0.5),
    "parity": (True, False),
    "blink": (True, False),
    "strength": (0.5, 1, 1.5),
    "sway": (0, 1.0),
    "duration_mode": video_frames.MODES,
}
BAD: Mapping[str, tuple[Any, ...]] = {
    "face": (-1, 1000, True, "left", 1.5, [], {}),
    "silence": ("", "Source", 1, None, []),
    "mask": ("landmark", {}),
    "mode": ("soft", True),
    "extra_margin": (-1, 101, 1.0, True, "1"),
    "batch": (0, 65, True),
    "detail": (-0.1, 1.1, True, "1", float("nan"), float("inf"), 10**400),
    "parity": (1, "true", None),
    "blink": (0, "yes"),
    "strength": (0.4, 1.6, True, "1", float("nan")),
    "sway": (-1, 2),
    "duration_mode": ("once", 1, None, []),
}


def test_every_renderer_of_the_package_has_its_table() -> None:
    assert OPTIONS.keys() == NAMES.keys()
    assert {name for table in (*OPTIONS.values(), COMMON) for name in table} == GOOD.keys() == BAD.keys()


@pytest.mark.parametrize("renderer", OPTIONS)
def test_each_option_takes_what_is_allowed_and_nothing_else(renderer: str) -> None:
    for name in (*OPTIONS[renderer], *COMMON):
        for value in GOOD[name]:
            check(renderer, {name: value})
        for value in BAD[name]:
            with pytest.raises(BadOption, match=f"option {name} is") as caught:
                check(renderer, {name: value})
            assert caught.value.remedy.startswith("it must be ")


def test_an_unknown_option_gets_the_list_of_those_that_there_are() -> None:
    with pytest.raises(BadOption, match="the renderer preview has no option 'parity'") as caught:
        check("preview", {"parity": True})
    assert caught.value.remedy == "it has these: blink, face, strength, sway"


def test_parity_means_the_mask_of_the_original_and_no_other() -> None:
    assert effective({"parity": True, "mode": "raw"}) == {"parity": True, "mode": "raw", "mask": "parsing"}
    for given in ({"parity": False, "mask": "landmarks"}, {"parity": True, "mask": "parsing"}, {}):
        check("musetalk", given)
        assert effective(given) == given
    with pytest.raises(BadOption, match="option mask is 'landmarks' with parity") as caught:
        check("musetalk", {"parity": True, "mask": "landmarks"})
    assert caught.value.remedy == "leave out mask, or parity"


def test_an_unknown_renderer_gets_the_list_of_those_that_there_are() -> None:
    with pytest.raises(UnknownRenderer, match="there is no renderer 'nosuch'") as caught:
        check("nosuch", {}, of_users=["mine"])
    assert caught.value.remedy == "choose one of: mine, musetalk, preview"


def test_a_renderer_of_the_users_own_checks_its_options_itself() -> None:
    assert names_of(["mine=a.b:C", "preview=a.b:D"]) == ["mine", "preview"]
    for name in ("mine", "preview"):
        check(name, {"anything": object()}, of_users=["mine", "preview"])
