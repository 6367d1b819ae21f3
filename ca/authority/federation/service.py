"""Federation of a serving authority, put together: poll the others, serve our own bundle if that is wanted."""

import random
from collections.abc import Callable

import trio
from cryptography import x509

from ca.authority.errors import AuthorityError
from ca.authority.federation.endpoint import BundleEndpoint
from ca.authority.federation.polling import FederationPoller
from ca.authority.federation.settings import BundleEndpointSettings
from ca.authority.logs import log
from ca.authority.store import Store
from ca.authority.trust_assembly import own_bundle
from ca.tls import KeyAndChain
from ca.trust import TrustBundle


class FederationService:
    """``own`` is the authority's own SVID of now, ``bundle`` the bundle that agents have; ``limiter`` the store's."""

    def __init__(
        self,
        settings: BundleEndpointSettings | None,
        *,
        trust_domain: str,
        store: Store,
        limiter: trio.CapacityLimiter,
        bundle: Callable[[], TrustBundle],
        own: Callable[[], KeyAndChain],
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._endpoint = None if settings is None else BundleEndpoint(settings, bundle=bundle, own=own)

        def issuers() -> list[x509.Certificate]:
            return [record.certificate for record in store.authorities()]

        self._poller = FederationPoller(
            store=store,
            limiter=limiter,
            own_bundle=lambda: own_bundle(store, trust_domain=trust_domain),
            issuers=issuers,
            rng=rng,
        )

    async def listen(self) -> list[trio.SocketListener]:
        """Open the bundle endpoint's listeners, none if there is none; ``own`` has a certificate by now.

        Raises:
            AuthorityError: it can not listen, or its certificate can not be used.
        """
        if self._settings is None or self._endpoint is None:
            return []
        self._endpoint.require_usable()
        host, port = self._settings.host, self._settings.port
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as exc:
            raise AuthorityError(
                f"can not listen on {host or 'every address'} port {port}: {exc.strerror or exc}; change address "
                "under [bundle_endpoint], or stop what uses it"
            ) from exc
        bound: int = listeners[0].socket.getsockname()[1]
        log("serving_bundle", port=bound, profile=str(self._settings.profile))
        return listeners

    async def run(self, listeners: list[trio.SocketListener]) -> None:
        """Do both until cancelled; ``listeners`` are closed at the end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._poller.run)
            if self._endpoint is not None and listeners:
                nursery.start_soon(self._endpoint.run, listeners)
