"""An agent that goes down with shared tunnels: it takes no more streams, lets those that run end, and closes then."""

import os
import signal

import pytest

from tests.mesh_builder import STATE_DIR, wait_for
from tests.shared_ground import SharedGround
from tests.shared_peer import SharedTunnel

pytestmark = pytest.mark.mesh


def test_it_refuses_what_is_new_and_lets_end_what_runs(ground: SharedGround, tunnel: SharedTunnel) -> None:
    mesh = ground.stage.mesh
    runs, idle = ground.open(tunnel), ground.share()
    ground.echo(runs, b"first")
    with idle:
        os.kill(mesh.agent_pid(2), signal.SIGTERM)
        try:
            wait_for("draining", lambda: mesh.ringfence(2, "status")["draining"])
            idle.wait_for_the_end()
            late = tunnel.open(**ground.addresses(2))
            assert late.reason == "drained"
            ground.echo(runs, b"still here")
            runs.finish()
            assert runs.wait_for_end() == b""
            tunnel.wait_for_the_end()
            exit_code = STATE_DIR / "agent-2" / "exit"
            wait_for("the agent's end, long before its grace period is over", exit_code.exists)
            assert exit_code.read_text().strip() == "0"
            assert ground.ended(runs, "ok", "-")["sent_bytes"] == len(b"firststill here")
        finally:
            mesh.lab("restart", "agent-2")
