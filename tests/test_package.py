"""What is shipped: the wheel holds everything it needs and nothing else, runs without the checkout, and the repository is tidy."""

import fnmatch
import re
import signal
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from proxy import __version__
from tests.support.live import PATIENCE_SECONDS, eventually, free_port

ROOT = Path(__file__).parent.parent

TOP_LEVEL = {
    "docs",
    *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt", "pyproject.toml"),
    *("proxy", "static", "tests", "examples"),
}
DOTFILES = {".ci", ".gitignore"}


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Standard output of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(form: str, source: Path, folder: Path) -> Path:
    """Builds a `wheel` or an `sdist` with the installed hatchling: no network is used."""
    run(sys.executable, "-m", "build", f"--{form}", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new venv: the wheel's own files, and the dependencies that the tests run with.

    A .pth file names the dependencies' folder. Python does not follow the .pth files in that folder in turn, so the
    editable installation of this checkout stays out of sight.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "dependencies.pth").write_text("\n".join(dependencies))
    return venv / "bin"


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def text_in(wheel: Path, pattern: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = fnmatch.filter(archive.namelist(), pattern)
        return archive.read(name).decode()


# The wheel's content


def shipped_files(source: str, destination: str) -> set[str]:
    """Where the files of a folder of the checkout stand in the wheel."""
    files = (path for path in (ROOT / source).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{destination}/{path.relative_to(ROOT / source)}" for path in files}


def test_the_wheel_holds_the_package_the_shim_and_the_shop_and_nothing_else(wheel: Path) -> None:
    own = {name for name in names_in(wheel) if ".dist-info/" not in name}
    assert own == (
        shipped_files("proxy", "proxy")
        | shipped_files("static", "proxy/static")
        | shipped_files("examples/shop", "proxy/examples/shop")
    )


@pytest.mark.parametrize(
    "name",
    [
        *("proxy/store/sqlite/queries.sql", "proxy/store/sqlite/schema/001.sql", "proxy/store/postgres/schema/001.sql"),
        *("proxy/py.typed", "proxy/examples/shop/shop.py"),
        *("proxy/static/scq.js", "proxy/static/scq.min.js", "proxy/static/scq.d.ts"),
        *("proxy/templates/*.html", "proxy/examples/shop/templates/*.html", "proxy/examples/shop/static/*.js"),
        *("scq_proxy-*.dist-info/licenses/LICENSE", "scq_proxy-*.dist-info/entry_points.txt"),
    ],
)
def test_the_wheel_holds_what_is_not_python(wheel: Path, name: str) -> None:
    assert fnmatch.filter(names_in(wheel), name) != []


def test_the_wheel_holds_no_tests_and_nothing_compiled(wheel: Path) -> None:
    names = names_in(wheel)
    assert {name for name in names if "test" in name or "__pycache__" in name or name.endswith(".pyc")} == set()


def test_the_wheel_brings_the_command(wheel: Path) -> None:
    assert "scq-proxy = proxy.__main__:main" in text_in(wheel, "*.dist-info/entry_points.txt")


def test_the_wheel_is_for_every_machine_and_says_which_version_it_is(wheel: Path) -> None:
    assert wheel.name == f"scq_proxy-{__version__}-py3-none-any.whl"


def test_a_wheel_from_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", ROOT, tmp_path / "sdist")
    run("tar", "-xzf", archive, "-C", tmp_path)
    again = build("wheel", tmp_path / f"scq_proxy-{__version__}", tmp_path / "wheel")
    assert names_in(again) == names_in(wheel)


# The wheel, installed


def test_the_installed_command_is_the_wheels_and_knows_its_version(installed: Path, tmp_path: Path) -> None:
    module = run(installed / "python", "-c", "import proxy; print(proxy.__file__)", cwd=tmp_path).strip()
    assert Path(module).is_relative_to(installed.parent)
    assert __version__ in run(installed / "scq-proxy", "--version", cwd=tmp_path)


@contextmanager
def demo(installed: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The demo of the installed wheel, running; with the addresses of its shop and its sandbox."""
    port, sandbox_port = free_port(), free_port()
    command = (installed / "scq-proxy", "demo", "--port", str(port), "--sandbox-port", str(sandbox_port))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        shop, sandbox = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{sandbox_port}"
        try:
            eventually(lambda: process.poll() is not None or answers(f"{shop}/healthz"))
            assert process.poll() is None, process.communicate()[0]
            yield process, shop, sandbox
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=PATIENCE_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


def test_the_demo_of_the_installed_wheel_serves_shop_shim_and_sandbox_and_stops_cleanly(
    installed: Path, tmp_path: Path
) -> None:
    with demo(installed, tmp_path) as (process, shop, sandbox):
        assert answers(f"{shop}/")
        assert answers(f"{shop}/static/shop.js")
        assert answers(f"{shop}/readyz")
        assert (
            httpx.get(f"{shop}/scq/scq.js", trust_env=False, timeout=PATIENCE_SECONDS).content
            == (ROOT / "static" / "scq.min.js").read_bytes()
        )
        assert answers(f"{sandbox}/")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, said
        assert shop in said
        assert sandbox in said
        assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"


# The repository


def test_the_top_of_the_repository_holds_the_promised_names_and_no_others() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    patterns = [pattern.strip("/") for pattern in ignored]
    names = {path.name for path in ROOT.iterdir()}
    kept = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert {name for name in kept if not name.startswith(".")} == TOP_LEVEL
    assert kept >= DOTFILES


def requirement_names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_for_make_run_and_make_test() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = requirement_names([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    pinned = (line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert needed <= {normal(name) for name in pinned}, "`make pins` writes constraints.txt anew"
