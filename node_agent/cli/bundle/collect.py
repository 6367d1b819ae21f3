"""What goes into a bundle, part by part.  A part that fails says so, and the others go on."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from node_agent.cli.agent_address import AgentUnavailable
from node_agent.cli.agent_socket import ask, fetch
from node_agent.cli.bundle import host, pods
from node_agent.cli.bundle.host import Missing
from node_agent.cli.debug import take_profile
from node_agent.cli.flames import collapsed

_ANSWER_S: Final = 20.0
_PROFILE_S: Final = 2.0
_DEFAULT_CONFIG: Final = Path("/etc/ringfence/agent.toml")
# Each is what ``ringfence X --json`` prints, or belongs to it.
_QUESTIONS: Final = (
    "workloads",
    "services",
    "endpoints",
    "policies",
    "certs",
    "connections",
    "recent",
    "traffic",
    "log-level",
    "debug/stacks",
    "debug/memory",
)

Part = tuple[str, str, str]  # name, text, problem


class Collection:
    """``node``: of which node this is, as far as the agent says."""

    def __init__(
        self,
        *,
        agent: str,
        log: Path | None,
        config: Path | None,
        with_profile: bool,
        sleep: Callable[[float], None],
    ) -> None:
        self._agent = agent
        self._log = log
        self._config_file = config
        self._with_profile = with_profile
        self._sleep = sleep
        self._down = ""
        self._status: Mapping[str, Any] = {}
        try:
            answer = ask(agent, "/status")
            self._status = answer if isinstance(answer, dict) else {}
        except AgentUnavailable as error:
            self._down = str(error)
        self.node = "".join(c for c in str(self._status.get("node", "")) if c.isalnum() or c in "-.")[:63]

    def parts(self) -> Iterator[Part]:
        """Every part, one after the other."""
        yield "versions.json", _json(host.versions()), ""
        yield "agent/status.json", _json(self._status) if self._status else "", self._down
        config, problem = self._config()
        yield "agent/config.json", _json(config) if config else "", problem
        if not self._down:
            yield from self._answers()
            yield from pods.networks(self._rows("/workloads"), config)
        bpf = (sys.executable, "-m", "node_agent.cli.main", "bpf", "status", "--json")
        yield _part("bpf.json", lambda: host.run(bpf, accept=(0, 1)))  # 1: nothing is loaded
        for pid in self._processes():
            yield _part(f"processes/{pid}.txt", partial(host.process, pid))
        yield from self._logs()

    def _answers(self) -> Iterator[Part]:
        for question in _QUESTIONS:
            yield _part(f"agent/{question}.json", partial(self._answer, f"/{question}"))
        yield _part("agent/metrics.txt", lambda: fetch(self._agent, "/metrics", timeout_s=_ANSWER_S).decode())
        if self._with_profile:
            yield _part("agent/debug/profile.collapsed", self._profile)

    def _answer(self, path: str) -> str:
        return _json(self._ask(path))

    def _ask(self, path: str) -> Any:
        return ask(self._agent, path, timeout_s=_ANSWER_S)

    def _rows(self, path: str) -> list[Mapping[str, Any]]:
        try:
            rows = self._ask(path)
        except AgentUnavailable:
            return []  # said already, where the part is
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def _profile(self) -> str:
        processes = take_profile(self._agent, _PROFILE_S, sleep=self._sleep)
        return "".join(f"{line}\n" for line in collapsed(processes, with_idle=True))

    def _config(self) -> tuple[Mapping[str, Any], str]:
        """What is in force, or what would be: keys on the list of those that may be shown."""
        if not self._down:
            try:
                return self._ask("/config"), ""
            except AgentUnavailable as error:
                return {}, str(error)
        from node_agent.config import load  # noqa: PLC0415  (loads more than a question needs)
        from node_agent.errors import AgentError  # noqa: PLC0415
        from node_agent.sight.shown_config import shown_config  # noqa: PLC0415

        try:
            return shown_config(load(self._config_file or _DEFAULT_CONFIG)), ""
        except AgentError as error:
            return {}, str(error)

    def _processes(self) -> list[int]:
        rows = [self._status, *(self._status.get("workers") or ())]
        return [pid for row in rows if isinstance(pid := row.get("pid"), int)]

    def _logs(self) -> Iterator[Part]:
        try:
            for name, text in host.logs(self._status.get("pid"), self._log):
                yield f"logs/{name}", text, ""
        except Missing as missing:
            yield "logs", "", str(missing)


def _part(name: str, collect: Callable[[], str]) -> Part:
    try:
        return name, collect(), ""
    except (AgentUnavailable, Missing) as error:
        return name, "", str(error)


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
