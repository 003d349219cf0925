"""`scq-proxy`, and `python -m proxy`, which is the same."""

import sys


def main() -> None:
    try:
        from proxy.cli.main import main as command  # noqa: PLC0415 - takes a while, in which somebody may think better of it
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
