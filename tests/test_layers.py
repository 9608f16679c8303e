"""Who may import whom: docs/design.md has the table, and every import statement of the package is held against it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lipsyncd
from lipsyncd.ledger.ledger import Ledger
from tests.kits.core_kit import spec_of
from tests.kits.doc_pages import table
from tests.kits.installation import Installation

PACKAGE = Path(lipsyncd.__file__).parent


def rooms_of_the_design() -> list[tuple[str, int]]:
    """Each room and its floor, from the table of rooms in docs/design.md; `__init__.py` is the package itself."""
    return [
        (PACKAGE.name if name == "__init__.py" else name.removesuffix("/").removesuffix(".py"), int(floor))
        for names, _owns, floor in table("room")
        for name in re.findall(r"`([\w/.]+)`", names)
    ]


# An import goes to a strictly lower floor, or stays in its room.
FLOORS = dict(rooms_of_the_design())
ENTRY, LIGHT = "lipsyncd.cli.main", {"lipsyncd", "errors", "cli"}
MOST_FILES = 16  # Python files in one folder

# Each library that is not Python's own, and the only modules that may import it.
HOMES: dict[str, str] = {
    "_pi_heif": "prepare.picture_codecs",
    "PIL": "prepare.picture_child prepare.picture_codecs",
    "aiohttp": "network web",
    "click": "cli",
    "cv2": "renderers",
    "diffusers": "renderers",
    "espeakng_loader": "prepare.voices.espeak",
    "ffmpeg": "media.ffmpeg",
    "huggingface_hub": "weights",
    "imageio_ffmpeg": "media.ffmpeg",
    "numpy": "renderers standalone.frames",
    "pi_heif": "prepare.picture_codecs",
    "onnxruntime": "renderers",
    "prometheus_client": "monitor.metrics",
    "ray": "cluster.connection",
    "rich": "cli.display",
    "safetensors": "renderers",
    "sqlalchemy": "ledger daemon.recovery",
    "sqlmodel": "ledger",
    "torch": "renderers",
    "transformers": "renderers",
    "triton": "renderers.musetalk.painting.fused.triton_norm",
    "watchdog": "inbox.watch",
    "yarl": "network web",
}
JOB_ID = "01a20531-200e-7570-9e24-3b013f83c95d"  # each test process has to find the same tests
HEAVY = HOMES.keys() - {"click"} | {"librosa", "numba", "pydantic", "scipy", "skimage"}


@dataclass(frozen=True)
class Import:
    """One import: `importer` and `target` as dotted names, with the place for the message."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer.replace('.', '/')}.py:{self.line} imports {self.target}"


@cache
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


def room(module: str) -> str:
    """The room that a module lies in, or its own name at the top of the package."""
    parts = module.split(".")
    return parts[0] if len(parts) == 1 else parts[1]


def is_in(module: str, places: str) -> bool:
    """Is a module one of these places, or inside one?"""
    return any(f"{module}.".startswith(f"{PACKAGE.name}.{place}.") for place in places.split())


IMPORTS = list(imports())
OURS = [i for i in IMPORTS if i.target.split(".")[0] == PACKAGE.name]
FOREIGN = [i for i in IMPORTS if i.target.split(".")[0] not in {PACKAGE.name, "__future__", *sys.stdlib_module_names}]


def test_every_room_has_a_floor_and_every_floor_its_room() -> None:
    rooms = {room(module) for module in modules()}
    assert len(rooms_of_the_design()) == len(FLOORS), "a room has two rows"
    assert rooms - FLOORS.keys() == set(), "a new room: give it a row in docs/design.md, as low as possible"
    assert FLOORS.keys() - rooms == set(), "these rooms are gone: take them out of the table in docs/design.md"


def test_imports_go_to_a_strictly_lower_floor() -> None:
    upward = [
        f"{i} (floor {FLOORS[room(i.importer)]} to {FLOORS[room(i.target)]})"
        for i in OURS
        if room(i.importer) != room(i.target) and FLOORS[room(i.importer)] <= FLOORS[room(i.target)]
    ]
    assert upward == []
    assert len(OURS) > 200  # the reader of imports has seen the package


def test_no_import_circle_inside_a_room() -> None:
    graph: dict[str, set[str]] = {}
    for one in OURS:
        if not one.lazy:
            graph.setdefault(one.importer, set()).add(one.target)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_few_files_lie_at_the_top_and_in_each_folder() -> None:
    for top in (PACKAGE, Path(__file__).parent):
        full = {
            str(folder): len(list(folder.glob("*.py")))
            for folder in (top, *(path for path in top.rglob("*") if path.is_dir()))
            if len(list(folder.glob("*.py"))) > MOST_FILES
        }
        assert full == {}
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_other_room_imports_the_renderers() -> None:
    outside = [str(i) for i in OURS if room(i.target) == "renderers" and room(i.importer) != "renderers"]
    assert outside == [], "the child is started by the module's name"


def test_the_web_server_reads_the_ledger_and_drops_manifests_only() -> None:
    forbidden = "ledger.ledger worker daemon"
    assert [str(i) for i in OURS if room(i.importer) == "web" and is_in(i.target, forbidden)] == []


def test_each_library_has_its_home() -> None:
    strangers = {i.target.split(".")[0] for i in FOREIGN} - HOMES.keys()
    assert strangers == set(), "a new library: name the one module that may import it"
    astray = [str(i) for i in FOREIGN if not is_in(i.importer, HOMES[i.target.split(".")[0]])]
    assert astray == []


def test_rich_is_imported_where_it_draws_and_not_before() -> None:
    early = [str(i) for i in FOREIGN if i.target.split(".")[0] == "rich" and not i.lazy]
    assert early == []


def test_commands_import_inside_their_functions() -> None:
    """`lipsyncd --help` pays for click and nothing else."""
    places = re.findall(r'"([a-z]+):[a-z]+"', (PACKAGE / "cli" / "main.py").read_text())
    loaded = loaded_with(ENTRY).union(*(loaded_with(f"{ENTRY.rpartition('.')[0]}.{place}") for place in places))
    early = [str(i) for i in OURS if i.importer in loaded and is_early(i) and room(i.target) not in LIGHT]
    assert early == []
    assert len(loaded) >= 5  # the modules of commands were seen


def loaded_with(module: str) -> set[str]:
    """The modules of the same room that an import of `module` loads."""
    found, new = set[str](), {module}
    while new:
        found |= new
        new = {i.target for i in OURS if i.importer in new and is_early(i) and room(i.target) == room(module)} - found
    return found


def is_early(one: Import) -> bool:
    return not one.lazy and not is_for_types_only(modules()[one.importer], one.line)


def is_for_types_only(path: Path, line: int) -> bool:
    return any(line in block for block in blocks_for_types_only(path))


@cache
def blocks_for_types_only(path: Path) -> list[range]:
    """The lines of each `if TYPE_CHECKING:` at the top level of a module."""
    blocks = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.If)]
    return [range(n.lineno, (n.end_lineno or n.lineno) + 1) for n in blocks if ast.unparse(n.test) == "TYPE_CHECKING"]


# -- the paths of shared folders ---------------------------------------------------------------------------------------

SHARED = ("inbox", "outbox", "failed", "archive")
# Where the place of a shared folder is more than part of a message: a text that is stored or shown as it is.
PLACES = {
    "storage/shared_folders.py": "its own",
    "storage/open_folder.py": "its own",
    "storage/folders.py": "makes the folders; a text of the ledger is compared with it",
    "storage/removal.py": "which folder within another one: two texts are compared",
    "cli/app.py:outbox": "printed for the user, who may open what lies there",
    "cli/wait.py:fetch": "printed for the user, who may open it",
    "daemon/housekeeping.py:_low": "for a message",
    "daemon/rebuild.py:_without_video": "stored in the ledger",
    "daemon/rebuild.py:read": "stored in the ledger",
    "daemon/recovery.py:_follow_moved_folders": "stored in places.json, compared with the ledger's texts",
    "doctor/findings.py:is_closed": "asked as another user, for whom the way to it counts, too; nothing is done",
    "doctor/folders.py:_room": "for a message",
    "doctor/folders.py:check": "for a message",
    "inbox/watch.py:__init__": "the names of the descriptors, for a library that takes no descriptor",
    "inbox/service.py:status": "shown by `lipsyncd status`",
    "monitor/probe.py:_disk_fault": "for a message",
    "results/leftovers.py:_inputs": "for a message; stored in the ledger",
    "results/leftovers.py:_stored": "for a message",
    "results/leftovers.py:_video": "for a message",
    "results/publish.py:_state_of_outbox": "for a message",
}


@dataclass(frozen=True)
class Use:
    """One place in the package that has the place of a shared folder in hand."""

    place: str
    line: int
    text: str


def uses_of_places(module: str, source: str) -> Iterator[Use]:
    """Where a module takes the path or the place of a shared folder for more than a message."""

    def look(node: ast.AST, function: str, *, in_message: bool) -> Iterator[Use]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        in_message = in_message or isinstance(node, ast.JoinedStr) or is_logged(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "where":
            yield from look(node.func.value, function, in_message=in_message)  # SQL, NumPy
            children: list[ast.AST] = [*node.args, *node.keywords]
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Attribute) and names_a_place(node) and not in_message:
            yield Use(f"{module}:{function}" if function else module, node.lineno, ast.unparse(node))
        for child in children:
            yield from look(child, function, in_message=in_message)

    return look(ast.parse(source), "", in_message=False)


def is_logged(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")


def names_a_place(node: ast.Attribute) -> bool:
    """`….paths.inbox` and the like, `….where`, another object's `_path` or `_paths`, and the control folder."""
    owner = ast.unparse(node.value)
    if node.attr in SHARED:
        return owner.split(".")[-1] == "paths"
    return node.attr in ("where", "watchable") or (node.attr in ("_path", "_paths") and owner != "self")


def test_no_other_module_has_the_path_of_a_shared_folder() -> None:
    """Others write there, so a path that was checked proves nothing about the next call. See storage/shared_folders.py.

    Everything else uses descriptors, and has the place of a folder as a text for messages.
    """
    paths = modules().values()
    uses = [use for path in paths for use in uses_of_places(str(path.relative_to(PACKAGE)), path.read_text())]
    places = [{use.place, use.place.partition(":")[0]} for use in uses]
    assert [use for use, names in zip(uses, places, strict=True) if not names & PLACES.keys()] == []
    assert PLACES.keys() - set[str]().union(*places) == set(), "these have none any more: take them out"


def test_only_the_module_for_control_files_is_given_their_folder() -> None:
    """Members write requests there, under any name."""
    for module, path in modules().items():
        if module in ("lipsyncd.storage.folders", "lipsyncd.storage.control_files"):
            continue
        tree = ast.parse(path.read_text(), str(path))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        given = {
            id(argument)
            for call in calls
            if ast.unparse(call.func).startswith("control_files.") or ast.unparse(call.func) == "is_pending"
            for argument in call.args
        }
        controls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "control"]
        astray = [ast.unparse(node) for node in controls if id(node) not in given]
        assert [name for name in astray if "folders" in name] == [], path


def test_the_reader_of_places_finds_each_kind() -> None:
    code = """
def bad(paths, shared, stores, folder):
    open(paths.inbox / "a")
    os.chmod(shared.where, 0o660)
    shutil.rmtree(stores.outbox.shared._path)
    os.listdir(folder.watchable)
    print(f"{shared.where} or {paths.failed}", log.info("%s", paths.outbox), select(x).where(y), self._path)
"""
    found = [(use.place, use.text) for use in uses_of_places("a.py", code)]
    texts = ["paths.inbox", "shared.where", "stores.outbox.shared._path", "folder.watchable"]
    assert found == [("a.py:bad", text) for text in texts]


# -- what a command really loads ---------------------------------------------------------------------------------------


def loaded_by(installation: Installation, *arguments: str) -> frozenset[str]:
    """The top-level packages that a command has loaded when it ends, as the interpreter itself tells."""
    command = [sys.executable, "-X", "importtime", "-m", "lipsyncd", "--config", str(installation.config), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=installation.environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    found = frozenset(line.rpartition("|")[2].strip().split(".")[0] for line in told)
    assert "click" in found
    return found


@pytest.fixture
def filled(installation: Installation) -> Installation:
    """An installation whose ledger holds a job, with no daemon."""
    installation.folders.initialise()
    ledger = Ledger(installation.path("state") / "ledger.db")
    ledger.insert(spec_of(id=JOB_ID), max_attempts=3)
    ledger.close()
    return installation


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["prune", "--dry-run"],
        ["backup"],
        ["status", JOB_ID],
        ["status", "--failed"],
        ["logs"],
        ["logs", JOB_ID, "--json"],
        ["config"],
        ["init"],
        ["--help"],
        ["models", "list"],
        ["submit", "https://example.com/a.png", "https://example.com/a.wav"],
        ["submit", "https://example.com/a.png", "--text", "Good morning.", "--voice", "de"],
    ],
    ids=" ".join,
)
def test_a_command_that_only_looks_or_drops_starts_light(filled: Installation, arguments: list[str]) -> None:
    assert loaded_by(filled, *arguments) & HEAVY == frozenset()


def test_the_status_loads_no_log_since_it_has_none(filled: Installation) -> None:
    """That alone was a tenth of its processor time."""
    assert "logging" not in loaded_by(filled, "status")


def test_the_doctor_loads_no_renderer_no_web_server_and_no_writer_of_the_ledger(filled: Installation) -> None:
    """It runs ffmpeg and sets a watch; what does so may be loaded."""
    assert loaded_by(filled, "doctor") & HEAVY <= {"ffmpeg", "imageio_ffmpeg", "watchdog"}


def test_the_reader_of_loaded_modules_sees_the_heavy_ones(filled: Installation) -> None:
    assert {"sqlmodel", "sqlalchemy", "pydantic"} <= loaded_by(filled, "cancel", JOB_ID)
