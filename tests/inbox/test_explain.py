"""Explanations in the inbox: after two minutes, in plain words, gone with their reason, and only ours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lipsyncd.inbox.explain import AFTER_S, MOST, SUFFIX, Explainer, is_explanation, text_for
from tests.kits.core_kit import Clock
from tests.kits.shared_kit import shared_folder

HALF = {"anna.png": "waits for a sound of the same stem"}


class Box:
    """An inbox with a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = shared_folder(root)
        self.clock = Clock()
        self.explainer = Explainer(self.shared, self.clock)

    def update(self, reasons: Mapping[str, str], after_s: float = 0.0) -> list[str]:
        self.clock.wait(after_s)
        with self.shared.opened() as folder:
            assert folder is not None
            self.explainer.update(folder, reasons)
        return sorted(path.name for path in self.root.iterdir() if path.name != ".lipsyncd")

    def again(self) -> None:
        """A new run of the daemon."""
        self.explainer = Explainer(self.shared, self.clock)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    yield Box(tmp_path / "inbox")


def test_a_leftover_is_explained_after_two_minutes_and_no_longer_than_its_reason_lasts(box: Box) -> None:
    assert box.update(HALF) == []
    assert box.update(HALF, AFTER_S - 1) == []
    assert box.update(HALF, 1) == ["anna.png.why.txt"]
    text = (box.root / "anna.png.why.txt").read_text()
    assert "anna.png waits for a sound of the same stem." in text
    assert "such as anna.wav" in text
    assert str(box.root) not in text
    assert box.update({}) == []


def test_a_reason_that_changes_begins_anew(box: Box) -> None:
    box.update(HALF)
    assert box.update({"anna.png": "cannot be read: Permission denied"}, AFTER_S) == []
    assert box.update({"anna.png": "cannot be read: Permission denied"}, AFTER_S) == ["anna.png.why.txt"]
    assert "Let the group read it" in (box.root / "anna.png.why.txt").read_text()


def test_what_is_still_being_written_is_not_explained(box: Box) -> None:
    for why in (
        "still being written",
        "a program has it open for writing",
        "is not finished, as 'a.wav.aria2' beside it shows",
        "its format does not show where it ends: it is taken after 3 s without a change",
        "its end is zeros, as of a file that is filled later: it is taken after 10 s without a change",
    ):
        box.update({"a.wav": why})
        assert box.update({"a.wav": why}, 3600) == []


def test_a_new_run_removes_what_the_last_one_left_and_keeps_what_others_wrote(box: Box) -> None:
    box.update(HALF)
    box.update(HALF, AFTER_S)
    ours = (box.root / "anna.png.why.txt").read_bytes()
    (box.root / "bert.png.why.txt").write_bytes(ours.replace(b"anna", b"bert"))
    (box.root / "mine.why.txt").write_text("a note of my own\n")
    box.again()
    assert box.update({"bert.png": "waits for a sound of the same stem"}) == ["bert.png.why.txt", "mine.why.txt"]
    assert box.update({"mine": "has no suffix"}, AFTER_S) == ["bert.png.why.txt", "mine.why.txt"]
    assert box.update({"mine": "has no suffix"}, AFTER_S) == ["bert.png.why.txt", "mine.why.txt"]
    assert (box.root / "mine.why.txt").read_text() == "a note of my own\n"


def test_there_are_at_most_a_hundred_and_none_beside_very_long_or_odd_names(box: Box) -> None:
    names = [f"{number:03}.png" for number in range(MOST + 50)]
    odd = ["x" * 240 + ".png", "a\\x0ab.png"]
    reasons = dict.fromkeys([*odd, *names], "waits for a sound of the same stem")
    box.update(reasons)
    there = box.update(reasons, AFTER_S)
    assert len(there) == MOST
    assert all(is_explanation(os.fsencode(name)) for name in there)


def test_an_inbox_that_cannot_be_written_is_left_as_it_is(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (box.root / f"anna.png{SUFFIX}").mkdir()
    box.update(HALF)
    assert box.update(HALF, AFTER_S) == [f"anna.png{SUFFIX}"]
    assert (box.root / f"anna.png{SUFFIX}").is_dir()
    assert caplog.text.count("anna.png is left alone") == 1


def test_a_file_of_no_suffix_of_ours_has_the_remedy_of_its_name() -> None:
    why = "has no suffix of a picture, a sound or a manifest"
    remedies = {
        name: text_for(name, why).decode().splitlines()[3] for name in ("a.json.txt", "a.txt", "a.png.lnk", "a.au")
    }
    assert "Rename it to a.json" in remedies["a.json.txt"]
    assert '"image": "a.jpg", "text"' in remedies["a.txt"]
    assert "shortcut" in remedies["a.png.lnk"]
    assert "Save it as what is taken" in remedies["a.au"]
    near = "waits for a sound of the same stem, and 'a.wav' has almost that name"
    assert "give both the same name" in text_for("a (1).png", near).decode()


@pytest.mark.parametrize(
    "why",
    [
        "waits for a picture of the same stem", "waits for 'b.png'", "has no suffix of a picture", "is a folder",
        "has 900 MB; at most 64 MB are taken", "its content ends before its own header says", "is strange",
    ],
)  # fmt: skip
def test_every_reason_has_a_remedy_in_whole_sentences(why: str) -> None:
    lines = text_for("anna.wav", why).decode().splitlines()
    assert lines[2].startswith("anna.wav")
    assert lines[2].endswith(".")
    assert lines[3].endswith(".")
    assert len(lines[3]) > 10
