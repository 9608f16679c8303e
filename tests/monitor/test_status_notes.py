"""The lines of `lipsyncd status` about the inbox: one for each reason when many files have the same."""

from __future__ import annotations

from lipsyncd.monitor.status import _grouped


def line(name: str, why: str) -> str:
    return f"{name}: {why}"


def test_few_files_have_a_line_each_and_many_of_one_reason_share_one() -> None:
    few = {"a.txt": "has no suffix", "b.txt": "has no suffix", "c.png": "waits"}
    assert list(_grouped(few, line)) == ["a.txt: has no suffix", "b.txt: has no suffix", "c.png: waits"]
    many = {f"{number:02}.txt": "has no suffix" for number in range(40)} | {"c.png": "waits"}
    assert list(_grouped(many, line)) == [
        "00.txt: has no suffix; the same holds for 39 others, such as 01.txt, 02.txt",
        "c.png: waits",
    ]
