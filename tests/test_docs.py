"""README, settings, command line and error tree say the same. `python -m tests.test_docs` writes the tables anew."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from lipsyncd import errors
from lipsyncd.cli.main import main
from lipsyncd.doctor import Verdict
from lipsyncd.jobs.manifest import FIELDS
from lipsyncd.network import fetch  # noqa: F401 - adds to the tree of errors
from lipsyncd.renderers.preview import options
from lipsyncd.settings import Settings, describe
from lipsyncd.settings.loading import SETTINGS
from lipsyncd.weights import read_lock
from tests.monitor.test_metrics import NAMES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the README's table whose first heading that is, without its two heading rows."""
    lines = README.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def code_rows() -> list[list[str]]:
    """What the table of codes has to say: one row for each class, in the order of the tree."""
    found = {}
    for cls in errors.tree():
        meaning = (cls.__doc__ or "").splitlines()[0]
        found.setdefault(cls.code, [f"`{cls.code}`", meaning, cls.default_remedy or "-"])
    return list(found.values())


def test_the_table_of_codes_is_the_error_tree() -> None:
    assert table("code") == code_rows()


def test_every_error_class_has_its_own_code_and_a_sentence() -> None:
    codes = [cls.code for cls in errors.tree() if cls.__module__ == "lipsyncd.errors"]
    assert len(codes) == len(set(codes))
    for cls in errors.tree():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code), cls
        assert (cls.__doc__ or "").splitlines()[0].endswith((".", ":")), cls


def test_the_drawing_of_the_tree_names_every_class() -> None:
    drawing = errors.__doc__ or ""
    for cls in errors.tree():
        if cls.__module__ == "lipsyncd.errors":
            assert re.search(rf"\b{cls.__name__}\b", drawing), cls.__name__


def test_a_reason_becomes_the_error_that_it_was() -> None:
    for cls in errors.tree():
        back = errors.from_reason({"code": cls.code, "message": "m", "remedy": "r"})
        assert (back.code, back.message, back.remedy, back.permanent) == (cls.code, "m", "r", cls.permanent)


def test_the_table_of_variables_is_what_the_settings_read() -> None:
    rows = {row[0].strip("`"): row for row in table("variable")}
    read = {setting.rule.variable: name for name, setting in SETTINGS.items() if setting.rule.variable}
    assert set(rows) == {*read, "MUSETALK_DIR"}
    defaults = {row.name: row.value for row in describe(Settings())}
    for variable, name in read.items():
        assert rows[variable][1] == f"`{name}`"
        value = defaults[name]
        if name not in ("paths.storage", "weights.dir"):  # places, told in words
            told = re.split("[,;]", rows[variable][2])[0]
            same = float(told) == value if isinstance(value, float) else told == str(value)
            assert same or told == str(value).lower(), variable


def test_the_table_of_fields_is_the_grammar_of_manifests() -> None:
    assert [row[0].strip("`") for row in table("field")] == list(FIELDS)


def test_the_table_of_commands_is_the_command_line() -> None:
    assert isinstance(main, click.Group)
    told = {re.match(r"`lipsyncd (\w+)", row[0]).group(1) for row in table("command")}  # type: ignore[union-attr]
    assert told == set(main.commands)


def test_the_table_of_options_is_what_the_preview_renderer_reads() -> None:
    assert {row[0].strip("`") for row in table("option (in `lipsyncd`, or `submit --option`)")} == {
        "blink",
        *options.RANGES,
    }


def test_the_table_of_exit_statuses_covers_the_error_tree() -> None:
    told = {int(row[0]): row[1] for row in table("exit status")}
    assert set(told) == {0, *(cls.exit_status for cls in errors.tree())}
    assert {status for status, text in told.items() if "`doctor`" in text} == {v.exit_status for v in Verdict}


def test_the_table_of_licences_is_the_lock_list() -> None:
    told = {row[0].strip("`"): row[1] for row in table("weights")}
    assert told == {weight.name: weight.licence for weight in read_lock() if not weight.name.endswith("-config")}


def test_the_readme_counts_the_metrics() -> None:
    assert f"Prometheus text, {len(NAMES)} names" in README


def test_every_setting_that_the_readme_names_exists() -> None:
    sections = {name.partition(".")[0] for name in SETTINGS}
    named = {n for n in re.findall(r"`([a-z]+\.[a-z_]+)`", README) if n.partition(".")[0] in sections}
    assert named <= set(SETTINGS), named - set(SETTINGS)


def test_every_setting_that_a_remedy_names_exists() -> None:
    sections = {name.partition(".")[0] for name in SETTINGS}
    for cls in errors.tree():
        for named in re.findall(r"\b([a-z]+\.[a-z_]+)\b", cls.default_remedy):
            assert named in SETTINGS or named.partition(".")[0] not in sections, (cls, named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )make ([a-z]+)", README, re.MULTILINE))))
def test_every_make_target_that_the_readme_names_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_extras_that_the_readme_names_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"extra `(\w+)`", README):
        assert extra in project["optional-dependencies"]


def write_tables() -> None:
    """Put the table of codes into the README."""
    rows = "\n".join("| " + " | ".join(row) + " |" for row in code_rows())
    body = f"| code | meaning | what to do |\n|---|---|---|\n{rows}\n"
    text = re.sub(r"\| code \| meaning .*?\n\n", lambda _: body + "\n", README, flags=re.DOTALL)
    (ROOT / "README.md").write_text(text)


if __name__ == "__main__":
    write_tables()
