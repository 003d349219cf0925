"""Every example: a README names its files, and no file names a setting that does not exist."""

import re
from pathlib import Path

import pytest

from proxy.config.settings import SPECS
from tests.examples.conftest import EXAMPLES, binary


def folders() -> list[Path]:
    return sorted(path for path in EXAMPLES.iterdir() if path.is_dir())


def text_files() -> list[Path]:
    found = (path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path for path in found if path.suffix not in (".pyc", ".png"))


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_each_way_of_use_has_a_readme_that_names_its_files(folder: Path) -> None:
    readme = (folder / "README.md").read_text()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("README.md", "Caddyfile"):
            assert path.name in readme


@pytest.mark.parametrize("path", text_files(), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_setting_that_an_example_names_exists(path: Path) -> None:
    known = {spec.name for spec in SPECS} | {f"{spec.name}_FILE" for spec in SPECS if spec.secret}
    named = set(re.findall(r"\bSCQ_[A-Z_]*[A-Z]", path.read_text()))
    assert named <= known


def test_a_missing_program_fails_in_ci_and_is_skipped_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match=r"apt install no-such-package"):
        binary("no-such-program", "no-such-package")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match=r"apt install no-such-package"):
        binary("no-such-program", "no-such-package")
