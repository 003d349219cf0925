"""Several nodes on PostgreSQL with a synchronous standby, which is killed, frozen and promoted: `make soak-standby`.

As `tests.load.soak_nodes`, whose people, nodes and oracle these are. After a promotion the server that was the primary is gone with its
disk, and a new standby is made where it was. Commits wait for a standby all the time, also while there is none.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from tests.load.soak import reported
from tests.load.soak_nodes import Attack, Plan, run, summarised
from tests.support.crowd import Load
from tests.support.live import PATIENCE_SECONDS, eventually, free_port
from tests.support.postgres import Server, Standby

FAULTS = {  # how often each of them comes, among 40
    "kills of the standby (-9)": 8,
    "standby frozen": 6,
    "standby frozen for longer than is waited for": 2,
    "standby promoted, primary killed (-9)": 6,
    "standby promoted, primary frozen": 3,
    "kills of PostgreSQL (-9)": 4,
    "connections cut": 4,
    "kills of a node (-9)": 5,
    "SendX fails for a while": 2,
}
LONG_SECONDS = 24.0  # a commit is waited for 20


class Pair(Server):
    """A primary and its standby on two ports, of which either may be the primary's. Speaks for the primary."""

    def __init__(self) -> None:
        self._ports = free_port(), free_port()
        self.primary: Server = Server(port=self._ports[0])
        self.primary.wait_for_standbys("standby")
        self.standby = Standby(self.primary, port=self._ports[1])

    def dsn(self, database: str = "postgres", **more: str) -> str:
        return self.primary.dsn(database, **more)

    def database(self) -> str:
        dsn = self.primary.database()
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return dsn.replace(f"127.0.0.1:{self.primary.port}", hosts) + "?target_session_attrs=read-write"

    def kill(self) -> None:
        self.primary.kill()

    def start(self) -> None:
        self.primary.start()

    def fail_over(self) -> None:
        """Promotes the standby of an unreachable primary, and gives it a new standby."""
        before, self.primary = self.primary, self.standby
        self.standby.promote()
        before.kill()
        before.remove()
        self.standby = Standby(self.primary, port=before.port)

    def remove(self) -> None:
        self.standby.remove()
        self.primary.remove()


class StandbyAttack(Attack):
    """Faults of the standby, and some of the others."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        postgres = self._cluster.postgres
        assert isinstance(postgres, Pair)
        self._pair = postgres
        self._by_name |= {
            "kills of the standby (-9)": self._kill_standby,
            "standby frozen": lambda: self._freeze(self._dice.uniform(0.2, 4)),
            "standby frozen for longer than is waited for": lambda: self._freeze(LONG_SECONDS),
            "standby promoted, primary killed (-9)": self._promote,
            "standby promoted, primary frozen": self._replace_frozen,
        }

    def _kill_standby(self) -> None:
        self._settle()
        self._pair.standby.kill()
        self.wait(self._dice.uniform(0, 3))
        self._pair.standby.start()

    def _freeze(self, seconds: float) -> None:
        self._settle()
        self._pair.standby.freeze()
        self.wait(seconds)
        self._pair.standby.wake()

    def _promote(self) -> None:
        """Sometimes cancels the commits that wait for a standby first, as an operator or a restart would."""
        self._settle()
        if self._dice.random() < 0.5:
            self._pair.standby.kill()
            self.wait(self._dice.uniform(0.5, 2))
            self._pair.primary.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
            self.wait(self._dice.uniform(0.5, 2))
            self._pair.primary.kill()
            self._pair.standby.start()
        else:
            self._pair.primary.kill()
        self._pair.fail_over()

    def _replace_frozen(self) -> None:
        self._settle()
        self._pair.primary.freeze()
        self.wait(self._dice.uniform(0.5, 6))
        self._pair.fail_over()

    def _settle(self) -> None:
        """A standby that does not follow could not take over, and a node that starts would refuse to."""
        eventually(self._pair.standby.follows, PATIENCE_SECONDS)
        self._cluster.await_ready()


def chosen(seed: int, faults: int) -> Sequence[str]:
    dice = random.Random(f"{seed} faults")  # noqa: S311 - a seeded run
    total = sum(FAULTS.values())
    found = [name for name, share in FAULTS.items() for _ in range(max(1, round(share * faults / total)))]
    dice.shuffle(found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak_standby",
        description="Attack nodes whose database has a standby; see the module.",
    )
    parser.add_argument("--faults", type=int, default=40, help="how many, of all kinds (40)")
    parser.add_argument("--people", type=int, default=6, help="who push at the same time (6)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run, to repeat it as far as it can be")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    plan = Plan(Load(seed, asked.people, pause_seconds=0.8), chosen(seed, asked.faults))
    return reported(
        seed, lambda directory, say: run(plan, directory, say, serve=Pair, attack_with=StandbyAttack), summarised
    )


if __name__ == "__main__":
    sys.exit(main())
