"""The alert rules and the dashboard in config/ use metrics that exist, and the documentation explains every alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import yaml

from lipsyncd.jobs.job import JobState
from lipsyncd.jobs.webhook_delivery import DeliveryState
from lipsyncd.monitor.metrics import STAGES
from tests.kits.doc_pages import table
from tests.kits.installation import ROOT
from tests.monitor.test_metrics import NAMES

RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "config/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "config/grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]

OF_PROMETHEUS = {"up": set[str]()}  # made by a scrape, not by us
OF_SCRAPES = {"job", "instance", "le"}  # labels that Prometheus adds
FUNCTIONS = {
    "clamp_min", "count", "histogram_quantile", "increase", "max", "min", "rate", "sum", "time",
}  # fmt: skip
WORDS = {"and", "or", "unless", "by", "on", "offset"}
VALUES = {
    "state": {state.value for state in JobState},
    "result": {state.value for state in JobState if state.ended} | {state.value for state in DeliveryState},
    "stage": set(STAGES),
}

# -- reading expressions -----------------------------------------------------------------------------------------------

_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")


def metrics_of(expression: str) -> set[str]:
    """The names of the metrics in a PromQL expression. Every other word must be a known function or keyword."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    bare = _GROUPING.sub(" by ", bare)
    bare = re.sub(r"\boffset\s+\w+|\b\d[\w.]*", " ", bare)
    words = re.findall(r"[A-Za-z_:][\w:]*", bare)
    return {word for word in words if word not in FUNCTIONS | WORDS}


def labels_of(expression: str) -> Iterator[tuple[str, str]]:
    """Each label in an expression, with the value that it must have; "" if it has none."""
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        for name, value in _MATCHER.findall(matchers):
            yield from ((name, one) for one in value.split("|"))
    for names in _GROUPING.findall(expression):
        yield from ((name.strip(), "") for name in names.split(","))


def base(metric: str) -> str:
    """The name in the table; a histogram's without the ending of its series."""
    return re.sub(r"_(bucket|count|sum)$", "", metric) if "duration" in metric else metric


def expressions() -> list[tuple[str, str]]:
    """Every expression with its place."""
    found = [(rule["alert"], rule["expr"]) for rule in RULES]
    found += [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    found += [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]
    return found


def test_the_reader_of_expressions_finds_names_and_labels() -> None:
    text = (
        'sum by (le, stage) (rate(a_bucket{b="c", d=~"e|f"}[5m])) > 5e9 and on (job) time() - g{instance="h"} offset 5m'
    )
    assert metrics_of(text) == {"a_bucket", "g"}
    assert set(labels_of(text)) == {
        ("b", "c"), ("d", "e"), ("d", "f"), ("instance", "h"), ("le", ""), ("stage", ""), ("job", "")
    }  # fmt: skip


@pytest.mark.parametrize(("place", "text"), expressions())
def test_an_expression_names_metrics_and_labels_that_are_exported(place: str, text: str) -> None:
    used = metrics_of(text)
    known = {**NAMES, **OF_PROMETHEUS}
    assert used
    assert {base(metric) for metric in used} <= known.keys()
    allowed = set[str]().union(OF_SCRAPES, *(known[base(metric)] for metric in used))
    for label, wanted in labels_of(text):
        assert label in allowed, label
        if wanted and label in VALUES:
            assert wanted in VALUES[label], wanted


# -- alerts ------------------------------------------------------------------------------------------------------------


def test_every_rule_has_a_severity_and_says_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert re.fullmatch(r"Lipsyncd([A-Z][a-z]+)+", rule["alert"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["annotations"]["description"].endswith(".")


def test_variables_in_annotations_are_labels_that_their_expression_keeps() -> None:
    for rule in RULES:
        annotations = " ".join(rule["annotations"].values())
        kept = set[str]().union({"instance", "job"}, *(NAMES.get(base(m), set()) for m in metrics_of(rule["expr"])))
        assert set(re.findall(r"\$labels\.(\w+)", annotations)) <= kept, rule["alert"]


def test_the_documentation_explains_every_alert() -> None:
    assert [row[0].strip("`") for row in table("alert")] == [rule["alert"] for rule in RULES]


def test_commands_that_alerts_and_panels_name_exist() -> None:
    from lipsyncd.cli.main import main

    text = (ROOT / "config/alerts.yml").read_text() + (ROOT / "config/grafana.json").read_text()
    commands = set(re.findall(r"`lipsyncd (\w+)", text))
    assert "doctor" in commands
    assert commands <= set(main.commands)  # type: ignore[attr-defined]


# -- the dashboard -----------------------------------------------------------------------------------------------------


def test_every_exported_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    shown = {base(metric) for _, text in expressions() for metric in metrics_of(text)}
    assert NAMES.keys() - shown == set()


def test_the_dashboard_is_one_screen_of_panels_that_do_not_overlap() -> None:
    squares: dict[int, set[tuple[int, int]]] = {}
    for panel in PANELS:
        at = panel["gridPos"]
        columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        squares[panel["id"]] = {(x, y) for x in columns for y in rows}
    assert len(squares) == len(PANELS)
    assert all(0 <= x < 24 and 0 <= y < 24 for panel in squares.values() for x, y in panel)
    assert all(one.isdisjoint(other) for one, other in combinations(squares.values(), 2))
    assert sum(map(len, squares.values())) == 24 * 24  # no holes


def test_every_panel_explains_itself_and_follows_the_variables() -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["expr"].count('instance=~"$instance"') == len(re.findall(r"lipsyncd_\w+\{", target["expr"]))
            assert re.findall(r"lipsyncd_\w+(?!\{)\b", re.sub(r"lipsyncd_\w+\{", "", target["expr"])) == []
