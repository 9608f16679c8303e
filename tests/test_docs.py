"""Documentation, settings, command line and error tree agree. `python -m tests.test_docs` writes the tables anew."""

from __future__ import annotations

import re
import tomllib

import click
import pytest

from lipsyncd import errors
from lipsyncd.cli.main import main
from lipsyncd.doctor import Verdict
from lipsyncd.jobs.manifest import FIELDS
from lipsyncd.jobs.options import OPTIONS
from lipsyncd.network import fetch  # noqa: F401 - adds to the tree of errors
from lipsyncd.settings import Settings
from lipsyncd.settings.reference import describe
from lipsyncd.settings.values import SETTINGS
from lipsyncd.weights import read_lock
from tests.kits.doc_pages import PAGES, README, ROOT, anchor, anchors, headings, links, read, table
from tests.monitor.test_metrics import NAMES

ERRORS = "docs/reference-errors.md"
DOCS = [page for page in PAGES if page != README]
TEXT = "\n".join(read(page) for page in PAGES)
MOST_LINES = {README: 160}
MOST_LINES_OF_A_PAGE = 250


def code_rows() -> list[list[str]]:
    """The rows of the table of codes: one for each class, in the order of the tree."""
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
        if name not in ("paths.storage", "weights.dir"):  # places, described in words
            shown = re.split("[,;]", rows[variable][2])[0]
            same = float(shown) == value if isinstance(value, float) else shown == str(value)
            assert same or shown == str(value).lower(), variable


def test_the_table_of_fields_is_the_grammar_of_manifests() -> None:
    assert [row[0].strip("`") for row in table("field")] == list(FIELDS)


def test_the_table_of_commands_is_the_command_line() -> None:
    assert isinstance(main, click.Group)
    listed = {re.match(r"`lipsyncd (\w+)", row[0]).group(1) for row in table("command")}  # type: ignore[union-attr]
    assert listed == set(main.commands)


def test_the_table_of_options_is_what_the_preview_renderer_reads() -> None:
    assert {row[0].strip("`") for row in table("option (in `lipsyncd`, or `submit --option`)")} == {*OPTIONS["preview"]}


def test_the_table_of_exit_statuses_covers_the_error_tree() -> None:
    listed = {int(row[0]): row[1] for row in table("exit status")}
    assert set(listed) == {0, *(cls.exit_status for cls in errors.tree())}
    assert {status for status, text in listed.items() if "`doctor`" in text} == {v.exit_status for v in Verdict}


def test_the_table_of_licences_is_the_lock_list() -> None:
    listed = {row[0].strip("`"): row[1] for row in table("weights")}
    assert listed == {weight.name: weight.licence for weight in read_lock() if not weight.name.endswith("-config")}


def test_the_number_of_metrics_is_right() -> None:
    assert f"Prometheus text, {len(NAMES)} names" in TEXT


def test_every_setting_that_the_pages_name_exists() -> None:
    sections = {name.partition(".")[0] for name in SETTINGS}
    named = {n for n in re.findall(r"`([a-z]+\.[a-z_]+(?:\.[a-z_]+)?)\b", TEXT) if n.partition(".")[0] in sections}
    files = {"lipsyncd.toml", "log.py"}
    assert len(named) > 40
    assert named - set(SETTINGS) - files == set()


def test_every_setting_that_a_remedy_names_exists() -> None:
    sections = {name.partition(".")[0] for name in SETTINGS}
    for cls in errors.tree():
        for named in re.findall(r"\b([a-z]+\.[a-z_]+)\b", cls.default_remedy):
            assert named in SETTINGS or named.partition(".")[0] not in sections, (cls, named)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^    )(?:sudo )?make ([a-z-]+)", TEXT, re.MULTILINE))))
def test_every_make_target_that_the_pages_name_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_make_target_that_runs_tests_has_a_row() -> None:
    targets = re.findall(r"^(test[a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {row[0].strip("`") for row in table("target")} >= {f"make {target}" for target in targets}, "docs/tested.md"


def test_every_command_that_the_pages_name_exists() -> None:
    assert isinstance(main, click.Group)
    assert set(re.findall(r"(?:`|^    )lipsyncd ([a-z]+)\b", TEXT, re.MULTILINE)) <= main.commands.keys()


def test_the_extras_that_the_pages_name_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"extra `(\w+)`", TEXT):
        assert extra in project["optional-dependencies"]


def test_every_file_of_the_code_that_the_pages_name_exists() -> None:
    named = set(re.findall(r"(?<![\w./-])((?:lipsyncd|tests|benchmarks|config|systemd)/[\w./-]+)\b", TEXT))
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).exists()} == set()


# -- the shape of the pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    assert len(read(page).splitlines()) <= MOST_LINES.get(page, MOST_LINES_OF_A_PAGE)


@pytest.mark.parametrize("page", DOCS)
def test_a_page_begins_with_a_table_of_contents_of_its_sections(page: str) -> None:
    before_the_first_section = read(page).partition("\n## ")[0]
    contents = re.findall(r"^\* \[([^]]+)\]\(#([^)]+)\)$", before_the_first_section, re.MULTILINE)
    assert contents == [(heading, anchor(heading)) for heading in headings(page)]


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "benchmarks/README.md"])
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for link in links(page):
        place, _, wanted = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), link
        if wanted:
            assert wanted in anchors(str(target.resolve().relative_to(ROOT))), link


def test_sentences_name_their_subjects() -> None:
    vague = re.compile(r"\b(said|told|whoever|somebody|nobody|everybody)\b", re.IGNORECASE)
    files = [*ROOT.glob("lipsyncd/**/*.py"), *ROOT.glob("lipsyncd/**/*.js"), *ROOT.glob("docs/*.md"), ROOT / README]
    assert not {f"{file.name}: {match[0]}" for file in files for match in vague.finditer(file.read_text())}


def test_the_readme_leads_to_every_page() -> None:
    assert set(DOCS) <= {link.partition("#")[0] for link in links(README)}


def write_tables() -> None:
    """Put the table of codes into its page."""
    rows = "\n".join("| " + " | ".join(row) + " |" for row in code_rows())
    body = f"| code | meaning | what to do |\n|---|---|---|\n{rows}\n"
    text = re.sub(r"\| code \| meaning .*?\n\n", lambda _: body + "\n", read(ERRORS), flags=re.DOTALL)
    (ROOT / ERRORS).write_text(text)


if __name__ == "__main__":
    write_tables()
