"""`python -m proxy` is `scq-proxy`."""

from proxy.cli import main

main()
