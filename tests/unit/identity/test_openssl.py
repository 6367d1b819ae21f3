"""OpenSSL's knob: set where it can be, and nothing broken where it can not."""

import json
import subprocess
import sys
from typing import Any, Final

_REPORT: Final = """
import json, ssl
from node_agent.identity import prefer_aes128
from tests.certificates import WEB, make_root
from tests.handshakes import context, shake_hands
root = make_root()
def negotiated():
    contexts = [context(root.leaf(WEB).own, root.certificate, server_side=side) for side in (False, True)]
    client, server = shake_hands(*contexts)
    assert client.finished and server.finished, (client.error, server.error)
    return client.tls.cipher()[0]
before = negotiated()
answers = [prefer_aes128(), prefer_aes128()]
print(json.dumps({"before": before, "answers": answers, "after": negotiated()}))
"""


def _report(**changes: str) -> dict[str, Any]:
    """In a process of its own, because the preference is the process's."""
    lines = "\n".join(
        f"from node_agent.identity import openssl\nopenssl.{name} = {value}" for name, value in changes.items()
    )
    done = subprocess.run(
        [sys.executable, "-c", lines + _REPORT], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_aes_128_is_negotiated_after_it_was_preferred() -> None:
    report = _report(_cpu_has_aes="lambda: True")
    assert report["before"] != "TLS_AES_128_GCM_SHA256"
    assert report["answers"] == [True, True]
    assert report["after"] == "TLS_AES_128_GCM_SHA256"


def test_a_cpu_without_aes_keeps_openssls_choice() -> None:
    report = _report(_cpu_has_aes="lambda: False")
    assert report["answers"] == [False, False]
    assert report["after"] == report["before"]


def test_a_choice_of_the_machine_stands() -> None:
    report = _report(_cpu_has_aes="lambda: True", _DEFAULT_SUITES="('TLS_SOMETHING_ELSE',)")
    assert report["answers"] == [False, False]


def test_a_missing_function_is_a_no() -> None:
    report = _report(_cpu_has_aes="lambda: True", _function="lambda *_: None")
    assert report["answers"] == [False, False]
