"""Who may import whom: the table, held against every import statement of the package, and what each command loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import lipsyncd
from lipsyncd.ledger import Ledger
from tests.core_kit import spec_of
from tests.home import Home

PACKAGE = Path(lipsyncd.__file__).parent
FOLDERS = (
    "doctor",
    "media",
    "renderers",
    "settings",
    "web",
    "weights",
)  # a folder of modules stands in the table as one name

# An import goes to a strictly lower level. Modules of level 0 may import `errors`, which stands below them all.
LEVELS: tuple[tuple[str, str], ...] = (
    ("nothing of ours", "lipsyncd errors said"),
    (
        "pure",
        (
            "delivery failpoints footage heap job landlock log manifest mounts obstacles oom_kills protocol"
            " sd_notify seccomp"
        ),
    ),
    (
        "one tool each",
        (
            "child display facts ffmpeg files gpu history jail launcher ledger_tables ledger_view media outgoing schema"
            " settings talk watch"
        ),
    ),
    (
        "one edge each",
        (
            "backups ceilings clock control decode fetch health installed keys ledger_endings ledger_redrops"
            " ledger_upkeep ledger_webhooks links lock metrics mp4 pairing picture recipe renderers speech spool"
            " uploads weights"
        ),
    ),
    ("the ledger's file", "ledger_engine"),
    ("folders and the ledger", "folders inbox ledger overview pulse screening sidecar"),
    ("joins of edges", "intake keep outbox reload submit vitals waiting webhooks"),
    ("what jobs leave behind", "pieces"),
    ("what is done once more", "again"),
    ("ends of jobs", "arrivals demo endings finish retention"),
    ("work that was done before", "redrops"),
    ("work on jobs", "actions prepare recovery web"),
    ("a look at everything", "doctor"),
    ("threads", "housekeeping worker"),
    ("commands while no daemon runs", "alone"),
    ("all together", "daemon"),
    ("groups of commands", "cli_bench cli_doctor cli_logs cli_models cli_upkeep"),
    ("the command line", "cli"),
    ("the way in", "__main__"),
)
LEVEL = {name: number for number, (_, names) in enumerate(LEVELS) for name in names.split()}

# Each library that is not Python's own, and the only modules that may import it.
HOMES: dict[str, str] = {
    "PIL": "picture",
    "aiohttp": "fetch outgoing web webhooks",
    "click": "cli cli_bench cli_doctor cli_logs cli_models cli_upkeep demo display",
    "cv2": "renderers",
    "diffusers": "renderers",
    "espeakng_loader": "speech",
    "ffmpeg": "ffmpeg",
    "huggingface_hub": "weights",
    "imageio_ffmpeg": "ffmpeg",
    "librosa": "renderers",
    "numpy": "renderers",
    "onnxruntime": "renderers",
    "prometheus_client": "metrics",
    "rich": "display",
    "safetensors": "renderers",
    "sqlalchemy": "ledger ledger_engine recovery",
    "sqlmodel": "ledger ledger_endings ledger_redrops ledger_tables ledger_upkeep ledger_webhooks",
    "torch": "renderers",
    "transformers": "renderers",
    "watchdog": "watch",
    "yarl": "fetch outgoing web webhooks",
}
COMMANDS = (
    "cli",
    "cli_bench",
    "cli_doctor",
    "cli_logs",
    "cli_models",
    "cli_upkeep",
)  # modules that every command loads
JOB_ID = "01a20531-200e-7570-9e24-3b013f83c95d"  # each test process has to find the same tests
HEAVY = HOMES.keys() - {"click"} | {"pydantic", "skimage"}


@dataclass(frozen=True)
class Import:
    """One import: `importer` and `target` as dotted names, with the place for the message."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer.replace('.', '/')}.py:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> Iterator[Import]:
    """Every import statement of the package, those inside functions too."""
    known = modules()
    for importer, path in known.items():
        tree = ast.parse(path.read_text(), str(path))
        top = set(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
                whole = str(node.module)
                parts = [f"{whole}.{alias.name}" for alias in node.names]
                targets = [part if part in known else whole for part in parts]
            else:
                continue
            for target in targets:
                yield Import(importer, target, node.lineno, lazy=node not in top)


def entry(module: str) -> str:
    """The name under which a module stands in the table."""
    parts = module.split(".")
    return parts[0] if len(parts) == 1 else parts[1]


IMPORTS = list(imports())
OURS = [i for i in IMPORTS if i.target.split(".")[0] == PACKAGE.name]
FOREIGN = [
    i for i in IMPORTS if i not in OURS and i.target.split(".")[0] not in sys.stdlib_module_names | {"__future__"}
]


def test_every_module_has_a_level_and_every_level_its_modules() -> None:
    names = {entry(module) for module in modules()}
    assert names - LEVEL.keys() == set(), "a new module: give it a level, as low as its imports allow"
    assert LEVEL.keys() - names - set(FOLDERS) == set(), "these modules are gone: take them out of the table"
    folders = {p.parent.name for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE and p.parent.parent == PACKAGE}
    assert folders <= set(FOLDERS), "a new folder of modules: name it in FOLDERS"


def test_imports_go_to_a_strictly_lower_level() -> None:
    upward = [
        f"{i} (level {LEVEL[entry(i.importer)]} to {LEVEL[entry(i.target)]})"
        for i in OURS
        if entry(i.importer) != entry(i.target) and LEVEL[entry(i.importer)] <= LEVEL[entry(i.target)]
    ]
    assert upward == []
    assert len(OURS) > 200  # the reader of imports has seen the package


def test_nobody_imports_the_renderers() -> None:
    outside = [str(i) for i in OURS if entry(i.target) == "renderers" and entry(i.importer) != "renderers"]
    assert outside == [], "the child is started by the module's name"


def test_the_web_server_reads_the_ledger_and_drops_manifests_only() -> None:
    forbidden = {"ledger", "worker", "child", "daemon"}
    assert [str(i) for i in OURS if entry(i.importer) == "web" and entry(i.target) in forbidden] == []


def test_each_library_has_its_home() -> None:
    strangers = {i.target.split(".")[0] for i in FOREIGN} - HOMES.keys()
    assert strangers == set(), "a new library: name the one module that may import it"
    astray = [str(i) for i in FOREIGN if entry(i.importer) not in HOMES[i.target.split(".")[0]].split()]
    assert astray == []


def test_rich_is_imported_where_it_draws_and_not_before() -> None:
    early = [str(i) for i in FOREIGN if i.target.split(".")[0] == "rich" and not i.lazy]
    assert early == []


def test_commands_import_inside_their_functions() -> None:
    """`lipsyncd --help` pays for click and nothing else."""
    light = {"lipsyncd", "errors", *COMMANDS}
    early = [
        str(i)
        for i in OURS
        if entry(i.importer) in COMMANDS and not i.lazy and entry(i.target) not in light
        if not _is_for_types_only(entry(i.importer), i.line)
    ]
    assert early == []


def _is_for_types_only(name: str, line: int) -> bool:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return any(block.lineno <= line <= (block.end_lineno or 0) for block in blocks)


# -- what a command really loads ---------------------------------------------------------------------------------------


def loaded_by(home: Home, *arguments: str) -> frozenset[str]:
    """The top-level packages that a command has loaded when it ends, as the interpreter itself tells."""
    command = [sys.executable, "-X", "importtime", "-m", "lipsyncd", "--config", str(home.config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=home.environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    found = frozenset(line.rpartition("|")[2].strip().split(".")[0] for line in told)
    assert "click" in found
    return found


@pytest.fixture
def filled(home: Home) -> Home:
    """An installation whose ledger holds a job, with no daemon."""
    home.folders.initialise()
    ledger = Ledger(home.path("state") / "ledger.db")
    ledger.insert(spec_of(id=JOB_ID), max_attempts=3)
    ledger.close()
    return home


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["prune", "--dry-run"],
        ["backup"],
        ["status", JOB_ID],
        ["logs"],
        ["logs", JOB_ID, "--json"],
        ["config"],
        ["init"],
        ["--help"],
        ["models", "list"],
        ["submit", "https://example.com/a.png", "https://example.com/a.wav"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_looks_or_drops_starts_light(filled: Home, arguments: list[str]) -> None:
    assert loaded_by(filled, *arguments) & HEAVY == frozenset()


def test_the_doctor_loads_no_renderer_no_web_server_and_no_writer_of_the_ledger(filled: Home) -> None:
    """It runs ffmpeg and sets a watch; what does so may be loaded."""
    assert loaded_by(filled, "doctor") & HEAVY <= {"ffmpeg", "imageio_ffmpeg", "watchdog"}


def test_the_reader_of_loaded_modules_sees_the_heavy_ones(filled: Home) -> None:
    assert {"sqlmodel", "sqlalchemy", "pydantic"} <= loaded_by(filled, "cancel", JOB_ID)
