"""The architecture: imports point down one ranked list, decisions are pure, and each library that does I/O has one folder."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "proxy"

# A module imports from its own part and from the parts in front of it.
RANKS = [
    "errors aio resources sandbox",
    "core",
    "config store",
    "store.sqlite store.postgres delivery web",
    "stores ops",
    "app",
    "demo",
    "cli",
    "__main__",
]
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts.split()}

# What `core` needs to know is passed to it.
IO_MODULES = {
    *(
        "anyio",
        "asyncio",
        "concurrent",
        "http",
        "httpx",
        "multiprocessing",
        "os",
        "pathlib",
        "random",
        "secrets",
        "select",
    ),
    *("selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "starlette", "subprocess", "tempfile", "threading"),
    *("time", "urllib.request", "uuid", "uvicorn", "uvloop"),
}
IO_CALLS = {"exists", "is_dir", "is_file", "iterdir", "open", "read_bytes", "read_text", "stat", "write_bytes"}
IO_CALLS |= {"write_text", "glob", "rglob", "mkdir", "unlink", "touch", "now", "today", "utcnow", "uuid1", "uuid4"}

LINES_IN_ONE_SITTING = 450


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}
MODULES = sorted(FILES.keys() - {"__init__"})
CORE = [module for module in MODULES if module.startswith("core")]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """Every absolute name that the module imports, in functions and under TYPE_CHECKING as well.

    `from a import b` gives `a.b`, because `b` may be a module.
    """
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def imports(module: str) -> set[str]:
    """The modules of this package that the module imports."""
    own = (name.removeprefix("proxy.") for name in imported(module) if name.startswith("proxy."))
    return {name if name in FILES else name.rpartition(".")[0] for name in own} - {"", module}


def imports_any(module: str, libraries: set[str]) -> set[str]:
    return {name for name in imported(module) for library in libraries if f"{name}.".startswith(f"{library}.")}


def called(module: str) -> set[str]:
    functions = (node.func for node in ast.walk(tree(module)) if isinstance(node, ast.Call))
    return {name for it in functions if (name := getattr(it, "attr", None) or getattr(it, "id", None))}


def part(module: str) -> str:
    """`store.sqlite.writer` is in `store.sqlite`, `core.retry` in `core`."""
    names = module.split(".")
    return next(name for name in (".".join(names[:2]), names[0]) if name in RANK)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    upwards = {it for it in imports(module) if part(it) != part(module) and RANK[part(it)] >= RANK[part(module)]}
    assert upwards == set()


def test_no_module_imports_itself_by_a_detour() -> None:
    try:
        TopologicalSorter({module: imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail("imports form a cycle: " + " → ".join(error.args[1]))


def test_only_stores_names_an_adapter() -> None:
    adapters = {"store.sqlite", "store.postgres"}
    named = {
        module for module in MODULES for it in imports(module) if part(it) in adapters and part(module) != part(it)
    }
    assert named == {"stores"}


@pytest.mark.parametrize("module", CORE)
def test_core_does_no_io_and_asks_no_clock(module: str) -> None:
    assert imports_any(module, IO_MODULES) == set()
    assert called(module) & IO_CALLS == set()


@pytest.mark.parametrize(
    ("library", "home"), [("sqlite3", "store.sqlite"), ("psycopg", "store.postgres"), ("uvicorn", "web")]
)
def test_a_library_that_does_io_has_one_folder(library: str, home: str) -> None:
    assert {part(module) for module in MODULES if imports_any(module, {library})} - {"stores"} == {home}


def test_the_sandbox_imports_nothing_of_the_package() -> None:
    assert {
        it for module in MODULES if part(module) == "sandbox" for it in imports(module) if part(it) != "sandbox"
    } == set()


def test_the_package_itself_imports_nothing() -> None:
    assert imported("__init__") == set()


def test_nothing_is_imported_by_a_name_made_at_run_time() -> None:
    assert {module for module in MODULES if called(module) & {"import_module", "__import__"}} == set()


@pytest.mark.parametrize("module", FILES)
def test_each_module_says_what_it_is_for_and_is_read_in_one_sitting(module: str) -> None:
    assert ast.get_docstring(tree(module))
    assert FILES[module].read_text(encoding="utf-8").count("\n") <= LINES_IN_ONE_SITTING
