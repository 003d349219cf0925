"""docs/ is true: what it names exists, and the picture of the architecture leaves no folder out."""

import re
from pathlib import Path

import pytest

from tests.test_layers import RANKS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def folders() -> set[str]:
    packages = {path.parent.relative_to(ROOT / "proxy") for path in (ROOT / "proxy").rglob("__init__.py")}
    return {f"{folder}/" for folder in packages if folder != Path()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|docs|examples|static|\.ci)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_table_of_the_architecture_names_every_folder_and_where_to_start_reading() -> None:
    rows = re.findall(r"^\| `([\w/]+/)` \| .+ \| `(\w+\.py)`", ARCHITECTURE, re.MULTILINE)
    assert {folder for folder, _ in rows} == folders()
    for folder, start in rows:
        assert (ROOT / "proxy" / folder / start).is_file(), f"{folder}{start}"


def test_every_module_that_the_walks_name_exists() -> None:
    for folder, module in re.findall(r"`(core|config|store|delivery|web|ops|cli|sandbox)\.(\w+)`", ARCHITECTURE):
        place = ROOT / "proxy" / folder
        assert (
            (place / f"{module}.py").is_file() or (place / module).is_dir() or module in ("append", "settle", "claim")
        )


def test_the_import_rule_is_the_one_that_is_tested() -> None:
    *ranks, command = RANKS
    assert " < ".join(f"`{rank}`" for rank in ranks) in ARCHITECTURE
    assert command == "__main__"
