"""The root: puts the parts together, opens them in order, watches over the forwarder, and closes them in reverse.

Everything is opened in the application's lifespan, so a `Starlette` app made here can be served by any ASGI server, with one worker on SQLite;
`web.server` is how the command line does it. A process has one of three roles: it takes pushes and sends them, or does one of the two.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from proxy.config.settings import Settings, rotated
from proxy.config.types import Gpc, IdentifyMode, PostgresUrl, SqliteUrl
from proxy.core.context import lane_room
from proxy.core.cookies import CookieCodec, ProbeCodec
from proxy.core.policy import Policy
from proxy.core.request import Limits
from proxy.core.server_calls import OPERATIONS
from proxy.core.strangers import Strangers
from proxy.core.tokens import TokenCodec
from proxy.core.turns import Share
from proxy.core.visitors import Trust
from proxy.delivery.forwarder import Forwarder
from proxy.delivery.sendx import Upstream
from proxy.errors import ConfigError, StoreError, StoreRefused, describe
from proxy.ops.audit import audit
from proxy.ops.control import Control, process_path
from proxy.ops.dead_letters import StoreCommands
from proxy.ops.pages import OperatorPages
from proxy.ops.watch import Pace, Watch
from proxy.store.outbox import Outbox
from proxy.store.rows import SEEN_AGE, TRACE_BYTES
from proxy.stores import open_store
from proxy.web.access import ClientAddresses, RateLimit
from proxy.web.application import Application, PageRoute
from proxy.web.defects import Defects
from proxy.web.paths import SENDX_PREFIX, Paths
from proxy.web.push import PushEndpoint
from proxy.web.server_api import ServerApi
from proxy.web.shim import DebugShim, load_shim

STOP_SECONDS = 20.0  # for requests on the wire to SendX, at a stop
SWEEP_SECONDS = 600.0
MAX_RESTART_SECONDS = 60.0
TRACES_PART = 8  # of SCQ_HOLD_MB, one part in so many is for log-outs and consents of unknown visitors

log = logging.getLogger("proxy.app")


class Service:
    """What runs behind the endpoints: the outbox, the forwarder under its supervisor, the sweeper, the control socket.

    `delivers`: without it nothing is sent from here, because other processes do that.
    """

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        reread: Callable[[], Settings] | None,
        *,
        delivers: bool,
        defects: Defects,
        pace: Pace | None = None,
    ) -> None:
        self.settings = settings
        self.outbox = outbox
        self.push = _push_endpoint(settings, outbox)
        rate = RateLimit(settings.rate_per_key)
        self.server_api = ServerApi(outbox, rate=rate, lane_max=settings.lane_max, team_id=settings.team_id)
        self._reread = reread
        self.restarts = 0
        self.failure: asyncio.Task[str] | None = None
        self._stopping = False
        self._delivery = self._new_delivery() if delivers else None
        self._watch = Watch(
            outbox,
            lambda: self._delivery.state() if self._delivery is not None else None,
            lambda: self.restarts,
            lambda: defects.count,
            timeout_seconds=settings.upstream_timeout_seconds,
            turned_away=lambda: defects.turned_away,
            hold_max_bytes=settings.hold_max_bytes,
            pace=pace,
        )
        self.pages = OperatorPages(outbox, self._watch, ClientAddresses(settings.trusted_proxies))
        self._use_secrets(settings)

    def reload(self) -> None:
        """Reads the settings again and takes over the secrets, all or none; what else has changed waits for a restart."""
        if self._reread is None:
            return
        try:
            settings, changed, waiting = rotated(self.settings, self._reread())
        except ConfigError as error:
            log.error("The secrets were not reloaded, because these settings are invalid:\n%s", error.message)
            return
        self.settings = settings
        self._use_secrets(settings)
        if self._delivery is not None:
            self._delivery.use(_upstream(settings))
        audit("reload", f"The secrets were reloaded: {_told(changed)}", by="SIGHUP", changed=changed, waiting=waiting)
        if waiting:
            log.warning("These settings have changed too, and count after a restart: %s", ", ".join(waiting))

    def _use_secrets(self, settings: Settings) -> None:
        keys = [key.reveal() for key in settings.secret_keys]
        tokens = TokenCodec([(key.kid, key.secret.reveal()) for key in settings.identity_keys])
        self.push.use(CookieCodec(keys), tokens)
        self.server_api.use([key.reveal() for key in settings.server_keys])
        self.pages.use(settings.admin_token.reveal() if settings.admin_token else None, ProbeCodec(keys))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        control = await self._start_control()
        self.failure = asyncio.create_task(self.outbox.failure(), name="store-failure")
        tasks = [self.failure, asyncio.create_task(self._sweep(), name="sweeper")]
        if self._delivery is not None:
            tasks.append(asyncio.create_task(self._supervise(self._delivery), name="delivery-supervisor"))
        watch = asyncio.create_task(self._watch.run(), name="health-watch")
        try:
            yield
        finally:
            self._stopping = True
            watch.cancel()  # first: a forwarder that stops during shutdown is not a problem
            if control is not None:
                await control.close()
            if self._delivery is not None:
                await self._delivery.stop(STOP_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(watch, *tasks, return_exceptions=True)

    async def _start_control(self) -> Control | None:
        """An SQLite file belongs to this process, so commands ask it. A database answers them itself, but for what only this process sees."""
        match self.settings.store:
            case SqliteUrl(path):
                control = Control(path, {**self.pages.handlers, **StoreCommands(self.outbox).handlers})
                await control.start()
                return control
            case PostgresUrl() as database:
                try:
                    control = Control(process_path(database.place), self.pages.handlers)
                    await control.start()
                except (OSError, StoreRefused) as error:
                    log.warning("scq-proxy status cannot ask this process: %s", error)
                    return None
                return control

    async def _supervise(self, delivery: Forwarder) -> None:
        """A forwarder that dies is restarted, with back-off; ingest goes on meanwhile."""
        failures = 0
        while not self._stopping:
            started = asyncio.get_running_loop().time()
            try:
                await delivery.run()
            except Exception as error:  # noqa: BLE001 - whatever it is, pushes must not wait for ever
                self.restarts += 1
                log.error("The forwarder died and is restarted: %s", describe(error))
            else:
                return
            failures = failures + 1 if asyncio.get_running_loop().time() - started < MAX_RESTART_SECONDS else 0
            pause = random.uniform(0, min(MAX_RESTART_SECONDS, 2.0**failures))  # noqa: S311 - spreads load
            await asyncio.sleep(pause)
            self._delivery = delivery = self._new_delivery()

    async def _sweep(self) -> None:
        while True:
            try:
                await self.outbox.sweep()
            except StoreError as error:
                log.warning("Old records could not be swept: %s", error.message)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next sweep may do better
                log.error("The sweep failed and is tried again: %s", describe(error))
            await asyncio.sleep(SWEEP_SECONDS)

    def _new_delivery(self) -> Forwarder:
        settings = self.settings
        return Forwarder(
            self.outbox,
            _upstream(settings),
            concurrency=settings.upstream_concurrency,
            timeout_seconds=settings.upstream_timeout_seconds,
            max_attempts=settings.max_attempts,
            max_age=settings.max_age,
            identify_refresh=settings.identify_refresh,
            rate=settings.upstream_rate,
            share=Share(per_hour=settings.sign_ups_per_hour, per_client=settings.sign_ups_per_ip),
        )


def create_app(
    settings: Settings,
    *,
    fallback: ASGIApp | None = None,
    reread: Callable[[], Settings] | None = None,
    delivers: bool = True,
    pace: Pace | None = None,
) -> Starlette:
    """The proxy as an ASGI application. `fallback`: answers every path that is not the proxy's (the demo's shop).

    `delivers`: whether it also sends waiting pushes; if not, other processes have to. `reread`: reads the settings again, or raises
    `ConfigError`; `state.reload()` then applies new secrets. `pace`: overrides the intervals of the health watch.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Application) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            outbox = await open_store(settings)
            stack.push_async_callback(outbox.close)
            service = Service(settings, outbox, reread, delivers=delivers, defects=app.defects, pace=pace)
            await stack.enter_async_context(service.running())
            app.state.failure = service.failure  # `web.server` ends the process when it is done
            if reread is not None:
                app.state.reload = service.reload  # and calls this on SIGHUP
            app.router.routes[:] = _routes(settings, service, fallback)
            if not settings.hosts:
                paths = _paths(settings)
                app.direct = {paths.push: service.push, paths.sendx_push: service.push}
            yield

    return Application(lifespan, settings.hosts)


def _routes(settings: Settings, service: Service, fallback: ASGIApp | None) -> Sequence[BaseRoute]:
    paths, pages = _paths(settings), service.pages
    shim, debug_shim = load_shim(paths.push), DebugShim(paths.push, service.push.trust_of)
    routes: list[BaseRoute] = [
        PageRoute(paths.push, service.push),
        PageRoute(paths.sendx_push, service.push),
        *(Route(path, service.server_api) for path in OPERATIONS),
        PageRoute(paths.script_path, shim.respond),
        PageRoute(paths.debug_path, debug_shim.respond),
        PageRoute(paths.hashed_path("{digest}"), shim.respond),
        PageRoute(f"{SENDX_PREFIX}/{{name}}.js", load_shim(paths.sendx_push).respond),
        Route(f"{paths.prefix}/status", pages.status_page),
        Route(f"{paths.prefix}/check", pages.check),
        Route("/healthz", pages.healthz),
        Route("/readyz", pages.readyz),
        Route("/metrics", pages.metrics),
    ]
    if fallback is not None:
        routes.append(Mount("/", fallback))
    return routes


def _paths(settings: Settings) -> Paths:
    return Paths(settings.prefix, settings.script, settings.endpoint)


def _push_endpoint(settings: Settings, outbox: Outbox) -> PushEndpoint:
    return PushEndpoint(
        outbox,
        origins=settings.origins,
        client_addresses=ClientAddresses(settings.trusted_proxies),
        rate=RateLimit(settings.rate_per_ip),
        strangers=Strangers(lane_room(Trust.ASSERTED, settings.lane_max)),
        strangers_bytes=settings.hold_max_bytes,
        policy=Policy(
            tags=settings.tags,
            fields=settings.fields,
            asserted_tags=settings.asserted_tags,
            asserted_fields=settings.asserted_fields,
            asserted_identify=settings.identify is IdentifyMode.ASSERTED,
        ),
        limits=Limits(
            verified_for=settings.verified_for,
            lane_max=settings.lane_max,
            hold_max=settings.hold_max,
            honour_gpc=settings.gpc is Gpc.HONOUR,
            takes_turns=bool(settings.sign_ups_per_hour or settings.sign_ups_per_ip),
            traces_per_hour=settings.hold_max_bytes / TRACES_PART / TRACE_BYTES / (SEEN_AGE / timedelta(hours=1)),
        ),
    )


def _told(changed: Sequence[str]) -> str:
    if changed:
        return f"{', '.join(changed)} changed"
    return "none changed (systemd's credentials are copies made at startup: restart the unit to change them)"


def _upstream(settings: Settings) -> Upstream:
    return Upstream(settings.dialect, settings.upstream, settings.api_key, settings.team_id, settings.delivered)
