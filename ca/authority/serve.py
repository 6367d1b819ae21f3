"""Composition root of the authority: builds every part, serves, and drains on SIGTERM."""

import logging
import random
import resource
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import trio

from ca.authority import hierarchy
from ca.authority.caretaker import Caretaker, catch_up_at_start
from ca.authority.config import AuthorityConfig
from ca.authority.errors import AuthorityError, Refusal, StoreError
from ca.authority.federation.service import FederationService
from ca.authority.front import Front
from ca.authority.jwt import JwtSigner
from ca.authority.logs import log
from ca.authority.placement import PlacementDirectory
from ca.authority.requests import RequestHandler
from ca.authority.revocation import RevocationGuard, Revoked
from ca.authority.server import Server
from ca.authority.server_certificate import ServerCertificate
from ca.authority.signer import Signer
from ca.authority.store import Store
from ca.authority.store.claim import close_to_others
from ca.authority.trust_assembly import assemble
from ca.authority.trust_feed import TrustFeed
from ca.trust import Trust

_BACKLOG: Final = 1024  # a mesh's agents may all come back at once
_OTHER_FILES: Final = 256  # database, manifests, listeners, log, connections of the bundle endpoint and to others'
_DRAIN_S: Final = 10.0  # for requests that run; a healthy one takes milliseconds


async def serve(
    config: AuthorityConfig, *, passphrase: bytes, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until SIGTERM or SIGINT; reports started with the port, once it is listening.

    Raises:
        AuthorityError: the authority can not run; nothing was served.
    """
    _allow_many_files(config.limits.connections)
    store = Store.open(config.database, serving=True)
    try:
        _close_to_others(config)
        catch_up_at_start(config, store, passphrase=passphrase)
        loaded = hierarchy.load(config, store, passphrase=passphrase, at=datetime.now(UTC))
        hierarchy.write_bundle(config, loaded.roots)
        signer = Signer(hierarchy=loaded, ttl=timedelta(seconds=config.svid_ttl_s))
        caretaker = Caretaker(config=config, store=store, passphrase=passphrase, signer=signer)
        placement = PlacementDirectory(trust_domain=config.trust_domain, directory=config.manifests_dir)
        # One thread: SQLite has one writer anyway, and what it does is counted in microseconds but for the fsync.
        thread = trio.CapacityLimiter(1)
        certificate = ServerCertificate(trust_domain=config.trust_domain, signer=signer, store=store, worker=thread)
        guard = RevocationGuard(store)
        jwt = JwtSigner(
            store=store,
            passphrase=passphrase,
            ttl=timedelta(seconds=config.jwt_ttl_s),
            lifetime=timedelta(seconds=config.jwt_key_lifetime_s),
        )
        handler = RequestHandler(
            trust_domain=config.trust_domain,
            signer=signer,
            store=store,
            placement=placement,
            guard=guard,
            jwt=jwt,
            node_grace=timedelta(seconds=config.node_grace_s),
        )
        trust = TrustFeed(
            version=store.trust.version,
            load=partial(_load, config, store, caretaker, guard),
            save=store.trust.acknowledge_all,
            tidy=partial(_tidy, store, jwt),
            limiter=thread,
        )
        rng = random.Random()  # noqa: S311 - spreads retries, keeps no secret
        front = Front(
            config, handler=handler, certificate=certificate, trust=trust, store=store, limiter=thread, rng=rng
        )
        federation = FederationService(
            config.bundle_endpoint,
            trust_domain=config.trust_domain,
            store=store,
            limiter=thread,
            bundle=lambda: trust.trust.own,
            own=lambda: certificate.own,
            rng=rng,
        )
        trust.on_changed.append(lambda _: certificate.renew_if_replaced())
        try:
            await trio.to_thread.run_sync(partial(jwt.tend, at=datetime.now(UTC)), limiter=thread)
            await trust.look()
            await certificate.renew()
            # Now, and not when the first agents wait for an answer: 10,000 pods take seconds.
            await trio.to_thread.run_sync(placement.warm_up, limiter=thread)
        except (StoreError, Refusal) as exc:
            raise AuthorityError(f"{config.database}: the authority can not certify itself: {exc}") from exc
        listeners = await _listen(config)
        await front.listen()
        bundle_listeners = await federation.listen()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(certificate.run)
                nursery.start_soon(front.run)
                nursery.start_soon(trust.run)
                nursery.start_soon(partial(caretaker.run, limiter=thread, looked=certificate.renew_if_replaced))
                nursery.start_soon(federation.run, bundle_listeners)
                nursery.start_soon(_drain_on_signal, signals, front.server, nursery.cancel_scope)
                port: int = listeners[0].socket.getsockname()[1]
                log("serving", port=port, trust_domain=config.trust_domain, issuer_key_id=loaded.issuer_key_id)
                task_status.started(port)
                await front.server.run(listeners)
                nursery.cancel_scope.cancel()
        log("stopped")
    finally:
        store.close()


def _close_to_others(config: AuthorityConfig) -> None:
    """What was copied or restored by hand may be open to other users; in PostgreSQL it is not here."""
    if isinstance(config.database, Path):
        for directory in (config.state_dir, config.keys_dir):
            if directory.exists() and close_to_others(directory):
                log("closed_to_others", level=logging.WARNING, directory=str(directory))


def _load(config: AuthorityConfig, store: Store, caretaker: Caretaker, guard: RevocationGuard) -> tuple[Trust, Revoked]:
    """Everything that depends on the version of the trust."""
    caretaker.reload()
    return assemble(store, trust_domain=config.trust_domain), guard.current()


def _tidy(store: Store, jwt: JwtSigner) -> None:
    """What one process at a time does about once a minute."""
    if store.is_leader():
        store.revocations.forget_expired(at=datetime.now(UTC))
        jwt.tend(at=datetime.now(UTC))


def _allow_many_files(connections: int) -> None:
    """Raise the soft limit of open files (often 1024) to what the server may need, as far as the hard one lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            log("few_open_files", level=logging.WARNING, limit=limit, wanted=wanted)


async def _listen(config: AuthorityConfig) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(config.port, host=config.host, backlog=_BACKLOG)
    except OSError as exc:
        where = f"{config.host or 'every address'} port {config.port}"
        raise AuthorityError(
            f"can not listen on {where}: {exc.strerror or exc}; change address under [ca], or stop what uses it"
        ) from exc


async def _drain_on_signal(signals: AsyncIterator[int], server: Server, stop: trio.CancelScope) -> None:
    async for number in signals:
        log("draining", signal=signal.Signals(number).name)
        stop.deadline = trio.current_time() + _DRAIN_S
        server.drain()
        return
