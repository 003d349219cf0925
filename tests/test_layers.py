"""The layers of the package, and what each module is for: imports go to the same or a lower layer, and never in a circle.

LAYERS is the table of contents: the place for a change is found here, by file name. A new module needs a line in it.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "proxy"

LAYERS: list[dict[str, str]] = [
    {  # 0: facts and decisions, no I/O
        "errors": "every error raised on purpose, in one tree",
        "values": "the kinds of value that a setting can have, read from text",
        "settings": "the SCQ_* settings: read once, checked completely, frozen",
        "addresses": "e-mail addresses: what is one, and which spellings are one person's",
        "pushes": "what a page may push, parsed once into frozen values",
        "identity": "cookie and token codecs, visitor ids, trust",
        "policy": "who may set which tags and fields",
        "coalesce": "which pushes of a lane may travel as one request",
        "retry": "SendX's verdict to the next step, one table",
        "gate": "the state of the account: the gate, concurrency, pace",
        "edge": "origin, client address and rate of a request",
        "shipped": "where static/ and examples/ are, in a checkout and in a wheel",
    },
    {  # 1: ports
        "plans": "what a decision is shown of the store, and what it asks of it",
        "outbox": "the port to the store, its records and states",
        "connection": "one connection for httpx, without a pool",
        "drafts": "a group of appends as it takes shape before anything is written",
        "sendx": "push to request in two dialects, answer to verdict",
        "exchange": "one request as it is judged, and its answer",
        "turns": "what may happen only so often in an hour",
        "admission": "one request judged: what becomes of each push",
        "server_calls": "what a server of the site may say, parsed once, and the decision about it",
        "answers": "JSON answers over plain ASGI",
        "bodies": "a request's body, its size counted while it arrives",
    },
    {  # 2: adapters
        "outbox_sqlite": "the outbox on one SQLite file",
        "sqlite_file": "how that file is opened, and when it is refused",
        "sqlite_appends": "what appends read and write in it, gathered over a transaction",
        "sqlite_reads": "what is read from it: lane heads, numbers, dead letters",
        "sqlite_lanes": "lanes on their way out of it: claimed, settled, leases that end",
        "sqlite_people": "a whole person in it: a confirmed change of address, erasure",
        "sqlite_sweep": "what is over its age in it, removed in small steps",
        "sqlite_damage": "what a failure means and what is done about it; a broken file is set aside",
        "sqlite_upkeep": "checkpoints, room on the disk, numbers about them",
        "sqlite_thread": "the one thread that touches it, with group commit",
        "outbox_postgres": "the outbox on PostgreSQL, for any number of nodes",
        "sqlite_export": "it read from end to end, to be moved",
        "postgres_import": "the outbox on PostgreSQL filled from outside, by COPY",
        "postgres_database": "connections and transactions, and what an error of the database means",
        "postgres_schema": "the schema, and whether a server may be trusted with acknowledged pushes",
        "postgres_groups": "jobs that share a transaction, gathered while others are under way",
        "postgres_locks": "advisory locks, on what may have no row yet",
        "postgres_appends": "a group of decisions read for, made, and written",
        "postgres_lanes": "lanes claimed in it, leases that end, the gate",
        "postgres_settles": "what became of leases, many at a time",
        "postgres_people": "a whole person in it: a confirmed change of address, erasure",
        "postgres_reads": "numbers and dead letters as the operator reads them",
        "postgres_letters": "dead letters replayed and discarded",
        "postgres_sweep": "what is over its age in it, removed in batches",
    },
    {  # 3: engines
        "account": "what the answers say about the SendX account, and what that allows",
        "tasks": "waiting for an event with a limit, and for work that is finished though cancelled",
        "pacing": "turns to send under SCQ_UPSTREAM_RATE, reserved from the store's schedule",
        "delivery": "the forwarder: claim, send, settle",
        "collector": "the browser's edge: POST {prefix}/push",
        "server_api": "the site's own servers' edge: SendX's API in two dialects",
        "shim": "serves the script as .ci/shim built it",
        "snippet": "the embed tag in its forms, and the CSP it needs",
        "ops": "health, metrics, status",
        "control": "how a command reaches a running server",
        "letters": "dead letters and erasure as the operator's commands",
        "http1": "HTTP/1.1 as uvicorn reads it, with what can be turned against others refused",
        "serving": "sockets, uvicorn and signals",
        "workers": "several processes that serve as one, forked and watched over by a parent",
    },
    {  # 4: roots
        "moving": "scq-proxy copy: a store moved from SQLite to PostgreSQL",
        "stores": "opens the store that SCQ_STORE names; names the adapters",
        "app": "puts the parts together, supervises",
        "checks": "scq-proxy check",
        "cli": "the command line",
        "cli_store": "scq-proxy status, erase, migrate, copy",
        "cli_dead": "scq-proxy dead",
        "cli_snippet": "scq-proxy snippet",
        "terminal": "what the commands share: options, the way to the store, safe text",
        "__main__": "python -m proxy: the same command line",
        "sandbox": "a fake SendX; imports nothing from the rest",
        "demo": "sandbox, proxy and example shop in one process",
    },
]
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}

# Layer 0 decides; what it needs to know is passed to it.
IO_MODULES = {
    *("anyio", "asyncio", "concurrent", "http", "httpx", "multiprocessing", "os", "random", "select", "selectors"),
    *("shutil", "signal", "socket", "sqlite3", "ssl", "starlette", "subprocess", "tempfile", "threading", "time"),
    *("urllib.request", "uvicorn", "uvloop"),
}
FILE_CALLS = {"exists", "is_dir", "is_file", "iterdir", "open", "read_bytes", "read_text", "stat", "write_bytes"}
FILE_CALLS |= {"write_text", "glob", "rglob", "mkdir", "unlink", "touch"}
READS_FILES = {"settings", "shipped"}  # the .env and secret files; whether a shipped file stands in the wheel

LINES_IN_ONE_SITTING = 450
LONGER = {"sandbox"}  # one module by intent: it shares nothing with the rest and is read on its own


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def layer_of(module: str) -> int:
    assert module in LAYER_OF, f"{module} has no line in LAYERS yet"
    return LAYER_OF[module]


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Every absolute name that the module imports, wherever it does: in functions and under TYPE_CHECKING as well.

    `from a import b` gives `a.b`, because `b` may be a module.
    """
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "proxy" if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """The modules of this package that the module imports; a name of `proxy` itself (`__version__`) is none."""
    own = {name.split(".")[1] for name in imports(module) if name.startswith("proxy.")}
    return own & set(modules())


def importers_of(module: str) -> set[str]:
    return {other for other in modules() if module in own_imports(other)}


def imports_any(module: str, names: set[str]) -> set[str]:
    return {name for name in names for imported in imports(module) if f"{imported}.".startswith(f"{name}.")}


def called_names(module: str) -> set[str]:
    functions = (node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call))
    named = (getattr(function, "attr", None) or getattr(function, "id", None) for function in functions)
    return {name for name in named if name is not None}


def test_every_module_has_its_place_in_the_table_and_the_table_names_no_other() -> None:
    assert modules() == sorted(LAYER_OF), "LAYERS in this file has one line for each module of proxy/"
    assert len(LAYER_OF) == sum(map(len, LAYERS)), "a module stands in two layers"


def test_the_package_is_flat() -> None:
    nested = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.glob("*/**/*.py"))
    assert nested == []


@pytest.mark.parametrize("module", modules())
def test_imports_go_to_the_same_or_a_lower_layer(module: str) -> None:
    layer = layer_of(module)
    upwards = {other for other in own_imports(module) if layer_of(other) > layer}
    assert upwards == set(), f"{module} is in layer {layer}"


def test_no_module_imports_itself_by_a_detour() -> None:
    try:
        TopologicalSorter({module: own_imports(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail("imports go in a circle: " + " → ".join(error.args[1]))


def test_the_package_itself_imports_nothing() -> None:
    assert list(imports("__init__")) == []


def test_nothing_is_imported_by_a_name_made_at_run_time() -> None:
    hidden = {module for module in modules() if called_names(module) & {"import_module", "__import__"}}
    assert hidden == set(), "the layers cannot be proven for these"


def test_the_sandbox_imports_nothing_of_the_package() -> None:
    assert {name for name in imports("sandbox") if name.split(".")[0] == "proxy"} == set()


@pytest.mark.parametrize("adapter", ["outbox_sqlite", "outbox_postgres"])
def test_one_module_names_the_adapters(adapter: str) -> None:
    assert importers_of(adapter) == {"stores"}


def test_the_adapters_parts_belong_to_the_adapter() -> None:
    parts = {module for module in modules() if module.startswith("sqlite_")}
    for part in parts:
        assert importers_of(part) <= {"outbox_sqlite", "moving", *parts}, f"{part} is a part of outbox_sqlite"


def test_sqlite_is_known_to_its_adapter_only() -> None:
    assert {layer_of(module) for module in modules() if imports_any(module, {"sqlite3"})} == {2}


@pytest.mark.parametrize("module", list(LAYERS[0]))
def test_a_module_of_layer_0_does_no_io_and_asks_no_clock(module: str) -> None:
    assert imports_any(module, IO_MODULES) == set()
    if module not in READS_FILES:
        assert called_names(module) & FILE_CALLS == set()


def test_each_module_says_what_it_is_for() -> None:
    assert [module for module in ["__init__", *modules()] if not ast.get_docstring(tree(module))] == []


def test_each_module_is_read_in_one_sitting() -> None:
    lengths = {module: (PACKAGE / f"{module}.py").read_text(encoding="utf-8").count("\n") for module in modules()}
    too_long = {module: lines for module, lines in lengths.items() if lines > LINES_IN_ONE_SITTING}
    assert set(too_long) <= LONGER, f"over {LINES_IN_ONE_SITTING} lines: {too_long}"
