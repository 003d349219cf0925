"""The state of the proxy as one value, with its problems: what `scq-proxy status`, the status page and metrics show.

Numbers and names of tags or fields only: no address, no key and no payload gets here.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta

import msgspec

from proxy.delivery.account import ADVICE, DeliveryState
from proxy.store.outbox import Outbox
from proxy.store.records import Health, RefusedName, Stats

LAG = timedelta(minutes=5)  # the oldest push has waited longer: worth a look
SIGN_UPS_AHEAD = timedelta(hours=1)  # an hour's worth of sign-ups goes at once


class Report(msgspec.Struct, frozen=True):
    """The state of the whole proxy. `problems`: sentences for a person, each with what to do; none: all is well.

    `delivery` is None where nobody sends who could be asked: no server runs, or only others send. Ages are in seconds.
    """

    problems: tuple[str, ...]
    waiting: int
    holding: int
    dead: int
    lag_seconds: float
    counters: Mapping[str, int]
    restarts: int
    delivery: DeliveryState | None
    refused_names: tuple[RefusedName, ...]
    store: Health = Health()


def make_report(stats: Stats, delivery: DeliveryState | None, restarts: int, now: float) -> Report:
    """`now`: Unix seconds."""
    lag = max(0.0, now - stats.oldest) if stats.oldest is not None else 0.0
    return Report(
        tuple(_problems(stats, delivery, lag, now)),
        stats.waiting,
        stats.holding,
        stats.dead,
        lag,
        stats.counters,
        restarts,
        delivery,
        stats.refused_names,
        stats.health,
    )


def _problems(stats: Stats, delivery: DeliveryState | None, lag: float, now: float) -> Iterable[str]:
    said = delivery or stats.closure  # what the store says of the gate counts where nobody who sends can be asked
    if said is not None and said.halted is not None:
        came = delivery.last_error if delivery is not None else None
        why = f"{came}. {ADVICE[said.halted]}" if came else ADVICE[said.halted]
        yield f"Sending is halted: {why}. Nothing is lost; probes are sent, a minute apart at most."
    if delivery is not None and not delivery.running:
        yield "The forwarder is down and is being restarted: the log of the server says why."
    put_off = stats.sign_ups_until - SIGN_UPS_AHEAD.total_seconds() - now
    if put_off > 0:
        yield (
            f"More addresses are typed than SCQ_SIGNUPS_PER_HOUR: the newest is sent in {timedelta(seconds=int(put_off))}. If that is "
            "no campaign of yours, somebody plays with the form: scq-proxy erase forgets an address."
        )
    elif lag > LAG.total_seconds():
        yield f"The oldest push has waited for {timedelta(seconds=int(lag))}: SendX is slow or down, or nothing sends."
    yield from stats.health.problems
    if stats.dead:
        letters = "1 dead letter" if stats.dead == 1 else f"{stats.dead} dead letters"
        yield f"{letters}: refused by SendX, tried in vain for days, or of unknown outcome. scq-proxy dead list shows which and why."


async def read_report(outbox: Outbox) -> Report:
    return make_report(await outbox.stats(), None, 0, outbox.now())
