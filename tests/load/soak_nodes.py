"""Several nodes on one PostgreSQL, faults of every kind, and the oracle: `python -m tests.load.soak_nodes --faults 100` (`make soak-nodes`).

Three real `scq-proxy serve` share a database. People push at any of them and again at another one, as behind a load balancer, while
nodes, PostgreSQL and SendX are ill-treated, one fault after the other (`Attack`). Then the faults stop, everything drains, and
`tests.support.oracle` judges what reached SendX, which knows the nodes by the port that each of them asks.

Leases last a minute, longer than a run should wait for each of them. So that they end under those who hold them, time passes faster in
the database (`Clock`): a lease of some seconds is over there, while its holder's own clock lets it go on, and only the store can stop it.
In the faults `long pauses` nothing is helped along: a node is stopped for longer than a lease, and only then woken.

One seed decides who pushes what, what SendX answers and which faults come; what meets which instant is up to the machine. Exit code 1 if
a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

from proxy.delivery.forwarder import MIN_LEASE_SECONDS
from proxy.sandbox.api import Sandbox, create_sandbox
from proxy.sandbox.faults import Fault
from tests.load.soak import Mortal, Outcome, drain, reported, summary
from tests.support.crowd import (
    COUNTER_FIELD,
    SETTINGS,
    Crowd,
    Load,
    Watcher,
    history_of,
    node_of,
    script,
)
from tests.support.live import PATIENCE_SECONDS, eventually, serving_at
from tests.support.oracle import Finding, Hush, Pace, applied_again, busiest, judge, unequal, wrong_sums
from tests.support.postgres import Server as Postgres
from tests.support.server import API_KEY, COOKIE_KEY, Server

NODES = 3
SENDERS = 8  # of each node
LEASE_SECONDS = 2.0  # as the database's clock has it
PAUSE_SECONDS = 4.0  # of a stopped node: long enough for others to take over
LONG_PAUSE_SECONDS = MIN_LEASE_SECONDS + 5.0
CLIENT_SECONDS = 2.0  # until a load balancer gives a node up
RATE = 25.0  # SCQ_UPSTREAM_RATE: less than is pushed at times, so that nodes are also stopped while they wait for their turn
PACE_SECONDS = 5.0
# Turns are reserved a quarter of a second's worth at a time, and every sender may be late with one.
PACE = Pace(int(RATE * PACE_SECONDS + NODES * (RATE / 4 + SENDERS)), PACE_SECONDS)
RETRY_AFTER = 4  # seconds
HEARD_SECONDS = 2.0  # in which what one node was told is known to all
HALT_SECONDS = 4.0
USUAL = Fault("ok", delay=0.1)
DRAIN_SECONDS = 600.0  # what piles up while much fails is sent at the same rate


class Plan(NamedTuple):
    """`faults`: what is done, in this order; `pause_seconds`: at most, between two of them; `late`: see `Hush`."""

    load: Load
    faults: Sequence[str]
    pause_seconds: float = 1.5
    late: int = 0


FAULTS = {  # how often each of them comes, among 100
    "kills of a node (-9)": 25,
    "kills of PostgreSQL (-9)": 12,
    "pauses past the lease": 14,
    "connections cut": 14,
    "graceful stops": 10,
    "secrets rolled (HUP)": 5,
    "SendX fails for a while": 10,
    "SendX throttles (429)": 5,
    "SendX halts (401)": 5,
}
LONG_PAUSE = "long pauses"


def chosen(seed: int, faults: int, long_pauses: int) -> list[str]:
    """So many of them, each kind as often as its share says, in an order of chance."""
    dice = random.Random(f"{seed} faults")  # noqa: S311 - a seeded run
    found = [name for name, share in FAULTS.items() for _ in range(max(1, round(share * faults / 100)))]
    found += [LONG_PAUSE] * long_pauses
    dice.shuffle(found)
    return found


# --- The nodes ---------------------------------------------------------------------------------------------------------


class Node(Mortal):
    """One of several on a database. `name`: by which SendX knows it."""

    def __init__(self, directory: Path, upstream: str, dsn: str, keys: Path) -> None:
        directory.mkdir()
        more = {"SCQ_STORE": dsn, "SCQ_UPSTREAM_RATE": str(RATE), "SCQ_UPSTREAM_CONCURRENCY": str(SENDERS)}
        super().__init__(directory, f"{upstream}/api/v1/rest", **SETTINGS, **more, SCQ_SECRET_KEYS_FILE=str(keys))
        del self.settings["SCQ_SECRET_KEYS"]
        self.name = upstream.removeprefix("http://")
        self.client.timeout = CLIENT_SECONDS
        self.paused = False

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)
        self.paused = True

    def wake(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)

    def rereads(self) -> None:
        """SIGHUP, and it has."""
        before = self.log.count("The secrets were reloaded")
        self.signal(signal.SIGHUP)
        eventually(lambda: self.log.count("The secrets were reloaded") > before, PATIENCE_SECONDS)


class Cluster:
    """The nodes, their database and the file with their cookie keys."""

    def __init__(self, directory: Path, upstreams: Sequence[str], postgres: Postgres) -> None:
        self.postgres, self.dsn = postgres, postgres.database()
        self.database = str(conninfo_to_dict(self.dsn)["dbname"])
        self.keys = directory / "keys"
        self._keys = [COOKIE_KEY]
        self._write_keys()
        names = range(1, len(upstreams) + 1)
        self.nodes = [
            Node(directory / f"node{name}", url, self.dsn, self.keys)
            for name, url in zip(names, upstreams, strict=True)
        ]
        self.wakes: dict[str, list[float]] = {node.name: [] for node in self.nodes}

    def choose(self, dice: random.Random) -> Server:
        return dice.choice(self.nodes)

    def await_ready(self) -> None:
        for node in self.nodes:
            if not node.paused:
                node.await_ready()

    def check(self) -> None:
        """Raises AssertionError if a node has ended by itself."""
        for node in self.nodes:
            assert not node.died(), f"{node.name} has ended by itself:\n{node.log[-4000:]}"

    def check_logs(self) -> None:
        """Raises AssertionError if one shows a defect, or what no log may show."""
        password = str(conninfo_to_dict(self.dsn)["password"])
        for node in self.nodes:
            for text in ("Traceback", "The forwarder died", "@example.com", password, *self._keys):
                assert text not in node.log, f"{node.name} says {text} in its log"

    def roll_keys(self) -> None:
        """As DESIGN has it: the new key first everywhere, then last, where it signs."""
        new = secrets.token_urlsafe(32)
        for keys in ([new, *self._keys], [*self._keys, new]):
            self._keys = keys
            self._write_keys()
            for node in self.nodes:
                node.rereads()

    def _write_keys(self) -> None:
        self.keys.write_text(",".join(self._keys), encoding="ascii")

    def cut_connections(self) -> None:
        self.postgres.cut_connections(self.database)

    def waiting(self) -> int:
        ((count,),) = self.postgres.execute("SELECT count(*) FROM pushes", database=self.database)
        assert isinstance(count, int)
        return count

    def wrong_sums(self) -> list[Finding]:
        """Of the tallies, and of what they count."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            found = connection.execute("SELECT name, sum(value)::int FROM counters GROUP BY name").fetchall()
            tally: Counter[str] = Counter(dict(found))
            rows = connection.execute(
                "SELECT (SELECT count(*) FROM pushes), (SELECT count(*) FROM held), (SELECT count(*) FROM dead), "
                "(SELECT coalesce(sum(waiting), 0)::int FROM lanes), "
                "(SELECT count(*) FROM lanes l WHERE waiting <> (SELECT count(*) FROM pushes p WHERE p.lane = l.id))"
            ).fetchone()
        assert rows is not None
        pushes, held, dead, waiting, wrong = rows
        return [
            *wrong_sums(self.nodes[0].status()),
            *unequal(
                {
                    "waiting = pushes in the table": (tally["gauge:waiting"], pushes),
                    "holding = holds in the table": (tally["gauge:holding"], held),
                    "dead = letters in the table": (tally["gauge:dead"], dead),
                    "waiting = sum of the lanes": (tally["gauge:waiting"], waiting),
                    "lanes that count wrong = 0": (wrong, 0),
                }
            ),
        ]

    def close(self) -> None:
        for node in self.nodes:
            if node.paused:
                node.wake()
        for node in self.nodes:
            node.close()


class Clock:
    """Makes time pass faster for leases, in the database: after `LEASE_SECONDS` they have ended there, and so has a probe."""

    _END = (
        "WITH now AS (SELECT extract(epoch FROM clock_timestamp())::float8 AS at), old AS (SELECT id FROM lanes, now "
        "WHERE leased AND ready_at > at AND ready_at < at + %(left)s FOR NO KEY UPDATE OF lanes SKIP LOCKED) "
        "UPDATE lanes SET ready_at = at FROM now, old WHERE lanes.id = old.id",
        "UPDATE gate SET probe_until = NULL WHERE probe_until < extract(epoch FROM clock_timestamp()) + %(left)s",
    )

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop, self.runs_fast = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self.runs_fast.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    @contextmanager
    def as_it_is(self) -> Iterator[None]:
        self.runs_fast.clear()
        try:
            yield
        finally:
            self.runs_fast.set()

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            if self.runs_fast.is_set():
                with suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as link:
                    for statement in self._END:
                        link.execute(statement, {"left": MIN_LEASE_SECONDS - LEASE_SECONDS})


# --- What is done to them ----------------------------------------------------------------------------------------------


class Attack:
    """One fault after the other. `done`: how many, by name; `hushes`: when SendX was not to be asked."""

    def __init__(self, plan: Plan, cluster: Cluster, clock: Clock, sandbox: Sandbox, watcher: Watcher) -> None:
        self._cluster, self._clock, self._sandbox, self._watcher = cluster, clock, sandbox, watcher
        self._dice = random.Random(f"{plan.load.seed} attack")  # noqa: S311 - a seeded run
        self._patience = threading.Event()  # never set
        self._late = plan.late
        self.done: Counter[str] = Counter()
        self.hushes: list[Hush] = []
        self._by_name: dict[str, Callable[[], None]] = {
            "kills of a node (-9)": self._kill,
            "kills of PostgreSQL (-9)": self._kill_database,
            "pauses past the lease": lambda: self._pause(PAUSE_SECONDS),
            LONG_PAUSE: self._pause_long,
            "connections cut": self._cut,
            "graceful stops": self._stop,
            "secrets rolled (HUP)": self._roll,
            "SendX fails for a while": self._fail,
            "SendX throttles (429)": self._throttle,
            "SendX halts (401)": self._halt,
        }

    def carry_out(self, name: str) -> None:
        self._by_name[name]()
        self.done[name] += 1
        self.misbehave()

    def wait(self, seconds: float) -> None:
        """While everything goes on."""
        self._patience.wait(seconds)
        self._cluster.check()
        self._watcher.look()

    def misbehave(self) -> None:
        """As SendX does in bad times, in which most is well all the same."""
        self._sandbox.faults.script("*", *script(self._dice, well=12, usual=USUAL))
        self._sandbox.faults.stand("*", USUAL)

    def _victim(self) -> Node:
        """Any; or whoever asks SendX next, in the middle of it; or who sends the next increment."""
        awake = {node.name: node for node in self._cluster.nodes if not node.paused}
        anybody, chance = self._dice.choice([*awake.values()]), self._dice.random()
        return anybody if chance < 0.4 else awake.get(self._next_to_ask(COUNTER_FIELD if chance < 0.7 else ""), anybody)

    def _next_to_ask(self, about: str) -> str:
        before, found = self._sandbox.total, list[str]()
        with suppress(AssertionError):  # while the gate is shut nobody asks
            found = eventually(
                lambda: [node_of(r) for r in self._sandbox.requests if r.number > before and about in r.raw], 1.0
            )
        return found[0] if found else ""

    def _kill(self) -> None:
        if self._dice.random() < 0.2:  # one that starts, perhaps
            node = self._dice.choice([node for node in self._cluster.nodes if not node.paused])
        else:
            self._cluster.await_ready()
            node = self._victim()
        node.kill()
        node.spawn()

    def _kill_database(self) -> None:
        self._cluster.await_ready()  # one that starts would refuse to
        self._cluster.postgres.kill()
        self._patience.wait(self._dice.uniform(0, 1))
        self._cluster.postgres.start()

    def _cut(self) -> None:
        self._cluster.await_ready()
        for _ in range(self._dice.randint(1, 3)):
            self._cluster.cut_connections()
            self.wait(self._dice.uniform(0, 0.3))

    def _pause(self, seconds: float) -> None:
        self._cluster.await_ready()
        node = self._victim()
        self._patience.wait(self._dice.uniform(0, 0.2))
        node.pause()
        self.wait(seconds)
        self._wake(node)

    def _pause_long(self) -> None:
        """The others die and live meanwhile."""
        self._cluster.await_ready()
        node = self._victim()
        with self._clock.as_it_is():
            node.pause()
            over = time.monotonic() + LONG_PAUSE_SECONDS
            for fault in (self._kill, self._kill_database, self._cut, self._stop):
                fault()
                self.wait(2.0)
            self.wait(max(0.0, over - time.monotonic()))
            self._wake(node)

    def _wake(self, node: Node) -> None:
        self._cluster.wakes[node.name].append(time.time())
        node.wake()

    def _stop(self) -> None:
        self._cluster.await_ready()
        node = self._victim()
        code = node.stop()
        assert code == 0, f"{node.name} ended with {code}:\n{node.log[-4000:]}"
        self._patience.wait(self._dice.uniform(0, 0.5))
        node.spawn()

    def _roll(self) -> None:
        self._cluster.await_ready()
        self._cluster.roll_keys()

    def _fail(self) -> None:
        """For everybody, in one way."""
        ways = [
            Fault(status=503),
            Fault(status=429),
            Fault("html", status=502, applied=True),
            Fault("hang"),
            Fault("reset"),
        ]
        self._sandbox.faults.script("*")
        self._sandbox.faults.stand("*", self._dice.choice(ways))
        self.wait(self._dice.uniform(0.5, 2.5))

    def _throttle(self) -> None:
        """One node is told to wait, and all of them do."""
        self._cluster.await_ready()
        self._sandbox.faults.script("*", Fault(status=429, retry_after=RETRY_AFTER))
        told = self._refused(429)
        self.wait(told + RETRY_AFTER - time.time())
        self._hush(told, told + RETRY_AFTER, "one node was told to wait")

    def _halt(self) -> None:
        """Until the secrets are read again, at one node: its probe goes through, and all go on."""
        self._cluster.await_ready()
        self._sandbox.faults.script("*")
        self._sandbox.faults.stand("*", Fault(status=401))
        told = self._refused(401)
        self.wait(HALT_SECONDS)
        self._sandbox.faults.stand("*", USUAL)
        self._hush(told, time.time(), "the key was refused", probes=1)  # after 1 s, 2 s more, 4 s more
        healed = self._sandbox.total
        self._victim().rereads()
        eventually(lambda: any(r.number > healed and r.status == 200 for r in self._sandbox.requests), PATIENCE_SECONDS)

    def _refused(self, status: int) -> float:
        """When SendX answers so for the first time from now on."""
        before = self._sandbox.total
        records = eventually(
            lambda: [r for r in self._sandbox.requests if r.number > before and r.status == status], PATIENCE_SECONDS
        )
        return records[0].time.timestamp()

    def _hush(self, told: float, until: float, why: str, probes: int = 0) -> None:
        self.hushes.append(Hush(told + HEARD_SECONDS, until, why, self._late + probes))


def run(
    plan: Plan,
    directory: Path,
    say: Callable[[str], Any] = lambda line: None,
    *,
    serve: Callable[[], Postgres] = Postgres,
    attack_with: type[Attack] = Attack,
) -> Outcome:
    """One run in a directory of its own. Raises AssertionError when it cannot be judged: a node ended by itself, say."""
    started = time.monotonic()
    app = create_sandbox(key=API_KEY)
    sandbox: Sandbox = app.state.sandbox
    with ExitStack() as stack:
        upstreams = stack.enter_context(serving_at(app, [0] * NODES))
        postgres = serve()
        stack.callback(postgres.remove)
        cluster = Cluster(directory, upstreams, postgres)
        stack.callback(cluster.close)
        clock, watcher = Clock(cluster.dsn), Watcher(sandbox)
        stack.enter_context(clock.running())
        for node in cluster.nodes:
            node.spawn()
        cluster.await_ready()
        crowd = Crowd(plan.load, cluster.choose, sandbox, scripted=False)
        attack = attack_with(plan, cluster, clock, sandbox, watcher)
        with crowd.pushing():
            found = _ill_treat(plan, cluster, crowd, attack, say)
        sandbox.faults.clear()
        cluster.await_ready()
        with suppress(AssertionError):  # then the sums show what waits for ever
            drain(cluster.waiting, watcher, DRAIN_SECONDS)
        found += cluster.wrong_sums()
        report = cluster.nodes[0].status()
        dead = cluster.nodes[0].dead_letters()
        for node in cluster.nodes:
            assert node.stop() == 0, node.log[-4000:]
        cluster.check_logs()
        watcher.look()
        history = history_of(
            crowd, watcher, sandbox, dead, report, wakes=cluster.wakes, hushes=attack.hushes, pace=PACE
        )
    return Outcome(plan.load.seed, attack.done, time.monotonic() - started, history, found + judge(history))


def _ill_treat(plan: Plan, cluster: Cluster, crowd: Crowd, attack: Attack, say: Callable[[str], Any]) -> list[Finding]:
    """Where the sums did not hold meanwhile."""
    dice = random.Random(f"{plan.load.seed} pauses")  # noqa: S311 - a seeded run
    found: list[Finding] = []
    attack.misbehave()
    for number, fault in enumerate(plan.faults):
        attack.wait(dice.uniform(0, plan.pause_seconds))
        attack.carry_out(fault)
        crowd.check()
        if number % 10 == 5:
            found += cluster.wrong_sums()
        say(f"{number + 1} of {len(plan.faults)} faults, {sum(len(person.lane) for person in crowd.people)} pushes")
    return found


# --- The command -------------------------------------------------------------------------------------------------------


def summarised(outcome: Outcome) -> str:
    sights = outcome.history.sights
    more = {
        "pushes applied again": applied_again(sights),
        f"most in {PACE.seconds:g} s, of {PACE.most}": busiest(sights, PACE.seconds),
    }
    return summary(outcome, more, leave_out=())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.load.soak_nodes", description="Attack several nodes; see the module."
    )
    parser.add_argument("--faults", type=int, default=100, help="how many, of all kinds (100)")
    parser.add_argument("--long-pauses", type=int, default=2, help="of a node, past a lease in real time (2)")
    parser.add_argument("--people", type=int, default=6, help="who push at the same time (6)")
    parser.add_argument("--seed", type=int, default=None, help="of a former run, to repeat it as far as it can be")
    asked = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if asked.seed is None else asked.seed
    plan = Plan(Load(seed, asked.people, pause_seconds=0.8), chosen(seed, asked.faults, asked.long_pauses))
    return reported(seed, lambda directory, say: run(plan, directory, say), summarised)


if __name__ == "__main__":
    sys.exit(main())
