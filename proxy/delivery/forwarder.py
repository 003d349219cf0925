"""Claims lanes, keeps the senders busy, shares the gate with the other senders of the store, and stops.

    claimer ── leases ──▶ N senders, each with its own connection ── one `LaneRun` per lease ──▶ outbox

Each lane waits for itself only; all of them wait when SendX throttles or refuses the account (`gate.Gate`). Lanes of strangers take the senders
that vouched lanes leave, and a small part in any case (`credit`). What happens under one lease is `lane`'s business.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from datetime import timedelta

import msgspec

from proxy.aio import unbroken, wait
from proxy.core.retry import GiveUp
from proxy.core.turns import Share
from proxy.delivery.account import Account, DeliveryState
from proxy.delivery.credit import STRANGERS_PER_LANE, Credit
from proxy.delivery.lane import LaneRun, Shared, finish
from proxy.delivery.pacing import Pacer
from proxy.delivery.probe import Stage
from proxy.delivery.sendx import Client, Upstream
from proxy.errors import StoreUnavailable, describe
from proxy.store.leases import untouched
from proxy.store.outbox import NO_SHARE, Outbox
from proxy.store.records import Lease

PER_LANE = 25  # pushes in one lease: bounds what is sent again after a crash
MIN_LEASE_SECONDS = 60.0
_IDLE_SECONDS = 1.0

log = logging.getLogger("proxy.delivery")


class Forwarder:
    """Sends what waits in the outbox to SendX.

    `concurrency`: senders. `timeout_seconds`: of one whole request. `rate`: the most requests per second, of all senders of the store
    together; 0 for no limit. `share`: the limits on sign-ups; the rest of it is decided here. `clock` returns Unix seconds, by default the
    outbox's; `rng` spreads the back-offs; `tls` trusts the public authorities by default.
    """

    def __init__(
        self,
        outbox: Outbox,
        upstream: Upstream,
        *,
        concurrency: int,
        timeout_seconds: float,
        max_attempts: int,
        max_age: timedelta,
        identify_refresh: timedelta = timedelta(0),
        rate: float = 0.0,
        share: Share = NO_SHARE,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        limits = GiveUp(max_attempts=max_attempts, max_age_seconds=max_age.total_seconds())
        self._account = Account(upstream, concurrency=concurrency, limits=limits, clock=clock or outbox.now, rng=rng)
        self._shared = Shared(
            outbox=outbox,
            account=self._account,
            turns=Pacer(outbox, rate),
            timeout_seconds=timeout_seconds,
            identify_refresh_seconds=identify_refresh.total_seconds(),
        )
        self._tls = tls
        self._senders = concurrency
        self._lease_seconds = max(MIN_LEASE_SECONDS, 3 * timeout_seconds)
        self._leases = asyncio.Queue[tuple[Lease, float | None] | None]()
        self._share = msgspec.structs.replace(share, per_lane=STRANGERS_PER_LANE)
        self._credit = Credit()
        self._busy = 0  # lanes that are claimed and not settled
        self._strangers = 0  # of these, lanes of strangers
        self._found = 0  # lanes, by the last claim
        self._deadline: asyncio.Timeout | None = None  # while it runs
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Delivers until `stop`, or until cancelled. Raises what nobody expected; it may then be called again."""
        self._leases, self._busy, self._strangers = asyncio.Queue(), 0, 0
        self._ended.clear()
        self._deadline = deadline = asyncio.timeout(None)
        try:
            async with deadline:
                await self._work()
        except TimeoutError:
            if not deadline.expired():
                raise
            log.warning("Stopped at the deadline with requests still under way")
        finally:
            self._deadline = None
            await unbroken(self._give_back(), "delivery-give-back")
            self._ended.set()

    async def stop(self, deadline_seconds: float) -> None:
        """Claims nothing more, lets requests on the wire finish up to the deadline, settles, and ends `run` for good."""
        self._shared.stopping.set()
        self._shared.changed.set()
        if self._deadline is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + deadline_seconds)
            await self._ended.wait()

    def use(self, upstream: Upstream) -> None:
        """Sends there from the next request on. With another key, a halt is worth a probe at once."""
        self._account.use(upstream)
        self._shared.changed.set()

    def state(self) -> DeliveryState:
        return self._account.state(running=self._deadline is not None)

    async def _work(self) -> None:
        """Claims until it is stopped. Unless it is cancelled, lets the senders finish their leases when claiming ends or fails."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._senders):
                group.create_task(self._keep_sending(), name=f"delivery-sender-{number}")
            claiming = asyncio.create_task(self._keep_claiming(), name="delivery-claimer")
            try:
                await asyncio.wait({claiming})
            finally:
                claiming.cancel()
                for _ in range(self._senders):
                    self._leases.put_nowait(None)
        await claiming

    async def _keep_claiming(self) -> None:
        stopping, changed = self._shared.stopping, self._shared.changed
        while not stopping.is_set():
            changed.clear()  # here alone: what changes while a claim is on its way is worth another one
            try:
                room = await self._room()
                if room == 0:
                    await wait(changed, self._seconds_to_room())
                    if self._account.gate.closure is None or stopping.is_set():
                        continue  # otherwise somebody else may have moved the gate
                self._found = await unbroken(self._claim(room), "delivery-claim")
                if self._found < room:
                    await self._until_worth_a_claim()
            except StoreUnavailable as problem:
                await self._shared.store_failed(problem)

    async def _room(self) -> int:
        """Returns how many lanes to claim now.

        With a rate, no more than the turns in hand: a lane that is claimed and waits may count as started. If the last claim found nothing,
        one lane is claimed before turns are reserved, so that an idle sender takes none from others.
        """
        room, turns = self._account.room(self._busy), self._shared.turns
        if room == 0 or self._account.gate.closure is not None:
            return room
        if turns.are_spent() and self._found == 0:
            return 1
        await turns.reserve()
        return turns.soon(room)

    def _seconds_to_room(self) -> float:
        if self._account.gate.closure is None:
            return self._shared.turns.seconds_to_next(_IDLE_SECONDS)
        return self._account.seconds_to_probe(_IDLE_SECONDS)

    async def _claim(self, room: int) -> int:
        """Claims and hands out in one step, so that a cancellation between the two loses no lease."""
        await self._shared.share_gate()
        account = self._account
        before = account.gate.closure
        probe = before if room > 0 and account.probe.stage is Stage.NONE else None
        least = self._credit.least(self._busy + room, self._strangers)
        share = msgspec.structs.replace(self._share, least=least)
        claim = await self._shared.outbox.claim(room, PER_LANE, self._lease_seconds, probe=probe, share=share)
        self._credit = self._credit.after(claim.leases)
        if account.gate.closure == before == account.shared:
            account.adopt(claim.closure)
            if account.gate.closure != before:
                self._shared.changed.set()  # a probe may be due
        for lease in claim.leases:
            self._busy += 1
            self._strangers += lease.stranger
            if (
                claim.closure is not None
            ):  # None: another sender has opened the gate meanwhile, and this is a lane like any other
                account.probe = account.probe.claimed(lease)
            self._leases.put_nowait((lease, self._shared.turns.take()))
        return len(claim.leases)

    async def _until_worth_a_claim(self) -> None:
        """Waits until another claim is worth making: the last one found less than there was room for.

        While a probe is out, nothing can be claimed, ready or not.
        """
        if self._account.gate.closure is None:
            await self._until_ready()
        else:
            await wait(self._shared.changed, _IDLE_SECONDS)

    async def _until_ready(self) -> None:
        ready = asyncio.create_task(self._shared.outbox.wait_ready(_IDLE_SECONDS), name="delivery-ready")
        stop = asyncio.create_task(self._shared.stopping.wait(), name="delivery-stop")
        try:
            await asyncio.wait((ready, stop), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            ready.cancel()
            stop.cancel()
            await asyncio.gather(ready, stop, return_exceptions=True)

    async def _give_back(self) -> None:
        """Settles what was claimed and reached no sender."""
        while not self._leases.empty():
            if (item := self._leases.get_nowait()) is not None:
                await finish(self._shared, untouched(item[0]), insist=False)

    async def _keep_sending(self) -> None:
        shared = self._shared
        async with Client(timeout_seconds=shared.timeout_seconds, clock=shared.account.clock, tls=self._tls) as client:
            while (item := await self._leases.get()) is not None:
                lease, at = item
                try:
                    await LaneRun(shared, client, lease, at).run()
                except Exception as error:  # noqa: BLE001 - its lane backs off; the other senders' requests are not cancelled for it
                    shared.account.tally.last_error = "a fault in this program: the server's log says where"
                    shared.account.tally.last_verdict = None
                    shared.account.tally.last_error_at = shared.account.clock()
                    log.error(
                        "A fault in this program delays lane %d, which is retried: %s", lease.lane, describe(error)
                    )
                finally:
                    self._busy -= 1
                    self._strangers -= lease.stranger
                    shared.changed.set()
