"""The pages of the documentation, read as text: sections, tables and the commands that stand in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = "README.md"
PAGES = [README, *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text()


def headings(page: str, level: int = 2) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+)$", _without_code(read(page)), re.MULTILINE)


def section(page: str, heading: str, level: int = 2) -> str:
    """What stands below a heading, up to the next one of that level."""
    _, found, rest = read(page).partition(f"\n{'#' * level} {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return rest.partition(f"\n{'#' * level} ")[0]


def commands(page: str, heading: str) -> str:
    """The first block of indented lines below a heading."""
    block = re.search(r"(?:^    .*\n)+", section(page, heading) + "\n", re.MULTILINE)
    assert block is not None, f"{page}: no commands below {heading!r}"
    return block.group()


def table(heading: str) -> list[list[str]]:
    """The cells of the one table in all pages whose first column has that heading, without its two heading rows."""
    [(lines, start)] = [
        (lines, number)
        for lines in (read(page).splitlines() for page in PAGES)
        for number, line in enumerate(lines)
        if line.startswith(f"| {heading} |") and lines[number + 1].startswith("|---")
    ]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def links(page: str) -> list[str]:
    """The targets of all links and pictures, but for those to other hosts."""
    found = re.findall(r"\]\(([^)\s]+)\)", _without_code(read(page)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchor(heading: str) -> str:
    """The name by which GitHub lets a link point to a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: str) -> set[str]:
    return {anchor(found) for level in (1, 2, 3, 4) for found in headings(page, level)}


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
