"""Runs the attestation plugins: only those that are enabled, bounded, and never in the thread that signs.

A plugin may wait for somebody else's server.  While it does, the authority
serves everybody else: plugins run as trio code, beside the one worker thread,
each with a deadline, a bound on how many run and wait, and a circuit that stops
asking a server which does not answer.  What can not be judged in time is
``unavailable``, with the time when to come again; it is never believed.
"""

import logging
import random
import traceback
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import trio

from ca.authority.attestation.attested import Attested, Claim, Plugin
from ca.authority.attestation.circuit import Circuit
from ca.authority.attestation.join_token import JOIN_TOKEN
from ca.authority.errors import Refusal
from ca.authority.logs import log
from ca.messages import Attest, AttestWithToken, RefusalCode

_DEADLINE_S: Final = 2.5  # the agent gives up after 3 s, and the certificate still has to be signed
_MAX_RUNNING: Final = 16
_MAX_WAITING: Final = 128
_RETRY_S: Final = (1.0, 4.0)  # drawn in between, so that those turned away do not come back together


class Attestors:
    """The methods that ``[attestation] plugins`` enables."""

    def __init__(self, *, enabled: Sequence[str] = (JOIN_TOKEN,), plugins: Sequence[Plugin] = ()) -> None:
        """``enabled`` names every method in force; ``plugins`` holds those of them that are plugins."""
        self._enabled = tuple(enabled)
        self._runners = {plugin.name: _Runner(plugin) for plugin in plugins if plugin.name in self._enabled}
        self._random = random.Random()  # noqa: S311 - spreads retries, keeps no secret

    async def judge(self, request: Attest | AttestWithToken, *, at: datetime) -> Attested | Refusal | None:
        """What the method says that the request names; None: it is the join token, which the store judges."""
        name = JOIN_TOKEN if isinstance(request, AttestWithToken) else request.plugin
        if name not in self._enabled:
            known = ", ".join(self._enabled)
            return Refusal(
                RefusalCode.ATTESTATION_REFUSED,
                f"attestation {name[:64]!r} is not enabled at this authority; enabled: {known} ([attestation] plugins)",
            )
        if isinstance(request, AttestWithToken) or name == JOIN_TOKEN:
            return None
        try:
            return await self._runners[name].run(Claim(node=request.node, evidence=request.evidence), at=at)
        except Refusal as exc:
            if exc.code is RefusalCode.UNAVAILABLE and not exc.retry_after_s:
                return Refusal(exc.code, exc.text, retry_after_s=self._random.uniform(*_RETRY_S))
            return exc


class _Runner:
    """One plugin, with its bounds."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._circuit = Circuit()
        self._running = trio.CapacityLimiter(_MAX_RUNNING)

    async def run(self, claim: Claim, *, at: datetime) -> Attested:
        if self._running.statistics().tasks_waiting >= _MAX_WAITING:
            raise _unavailable("too many nodes attest at once")
        with trio.move_on_after(_DEADLINE_S):
            async with self._running:
                return await self._ask(claim, at)
        raise _unavailable(f"{self._plugin.name} attestation took longer than {_DEADLINE_S:g} s")

    async def _ask(self, claim: Claim, at: datetime) -> Attested:
        retry_after_s = self._circuit.retry_after_s(trio.current_time())
        if retry_after_s is not None:
            text = f"{self._plugin.name} attestation does not work at the moment"
            raise Refusal(RefusalCode.UNAVAILABLE, text, retry_after_s=retry_after_s)
        deadline = trio.current_effective_deadline()
        try:
            attested = await self._plugin.attest(claim, at=at)
        except Refusal as exc:
            if exc.code is RefusalCode.UNAVAILABLE:
                self._circuit.failed(trio.current_time())
            else:
                self._circuit.succeeded()
            raise
        except trio.Cancelled:
            if trio.current_time() >= deadline:
                self._circuit.failed(trio.current_time())
            else:
                self._circuit.abandoned()
            raise
        except Exception as exc:  # a bug of the plugin; whoever can provoke it must not open the circuit with it
            self._circuit.abandoned()
            # The text of a foreign exception could quote the evidence: its kind and its place are told, no more.
            where = "".join(traceback.format_tb(exc.__traceback__))
            log(
                "attestation_plugin_failed",
                level=logging.ERROR,
                plugin=self._plugin.name,
                error=type(exc).__name__,
                where=where,
            )
            raise Refusal(RefusalCode.INTERNAL, "the authority failed; its log says why") from None
        self._circuit.succeeded()
        if attested.node != claim.node or attested.identity.node_name != claim.node:
            log("attestation_plugin_failed", level=logging.ERROR, plugin=self._plugin.name, error="another node")
            raise Refusal(RefusalCode.INTERNAL, "the authority failed; its log says why")
        log("attested", plugin=self._plugin.name, node=attested.node, by=attested.detail)
        return attested


def _unavailable(text: str) -> Refusal:
    return Refusal(RefusalCode.UNAVAILABLE, text)
