"""Databases for the benchmark, on one server."""

from __future__ import annotations

from datetime import timedelta

from psycopg.conninfo import conninfo_to_dict

from proxy.store.postgres.outbox import PostgresOutbox, open_outbox
from tests.support.postgres import Server

BATCH = 1_000  # pushes in an append: each contact takes a lock, of which a server has some thousands


class Databases:
    """Those of the benchmark on one server. Made with the tables in them, and removed together."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._made: list[str] = []

    def new(self) -> str:
        """The DSN of one."""
        self._made.append(self._server.database())
        return self._made[-1]

    def clear(self, dsn: str) -> None:
        """Another one takes its name. The server writes out what it still had to, so that nobody measures that later."""
        fresh = self._server.database()
        self._drop(dsn)
        self._server.execute(f"ALTER DATABASE {_name(fresh)} RENAME TO {_name(dsn)}")
        self._server.execute("CHECKPOINT")

    def execute(self, dsn: str, statement: str) -> list[tuple[object, ...]]:
        return self._server.execute(statement, database=_name(dsn))

    def tidy(self, dsn: str) -> None:
        """What the server does by itself in a minute or some: it learns what is in the tables, and writes it out."""
        self.execute(dsn, "VACUUM (ANALYZE)")
        self._server.execute("CHECKPOINT")

    def remove(self) -> None:
        while self._made:
            self._drop(self._made.pop())
        self._server.execute("CHECKPOINT")

    def _drop(self, dsn: str) -> None:
        self._server.execute(f"DROP DATABASE {_name(dsn)} WITH (FORCE)")


async def opened(dsn: str) -> PostgresOutbox:
    return await open_outbox(dsn, hold_age=timedelta(days=30), dead_age=timedelta(days=90))


def _name(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["dbname"])
