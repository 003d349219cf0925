"""Where the files are that ship beside the code: in a checkout next to the package, in an installed wheel inside it."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(relative: str) -> Path:
    """The path of `static/…` or `examples/…`."""
    inside = _PACKAGE / relative
    return inside if inside.exists() else _PACKAGE.parent / relative
