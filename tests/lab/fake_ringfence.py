"""Stands in for the ``ringfence`` command in the lab's own tests: it answers, and does nothing else.

It keeps to what the lab relies on: the commands and their flags, the CA's port, the
agent's socket with /status and /workloads, and an end with code 0 on SIGTERM.
Labels on a pod make the agent say what a test wants to hear:

    lab-test/state   its state instead of "serving"
    lab-test/error   its error

and a file ``unready`` beside the agent's configuration keeps it from being ready.
"""

import http.server
import json
import signal
import socket
import socketserver
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from ca.manifests import DirectoryState, Namespace, ObjectKey, Pod, enrolled, read_directory


def main(arguments: list[str]) -> int:
    config_file = Path(arguments[arguments.index("--config") + 1]) if "--config" in arguments else None
    match arguments:
        case ["ca", "init", *_]:
            return 0
        case ["ca", "token", *_]:
            print("token-of-" + arguments[arguments.index("--node") + 1])
        case ["ca", "serve", *_]:
            serve_ca(config_file)
        case ["agent", *_] if config_file is not None:
            serve_agent(config_file)
        case _:
            print(json.dumps(arguments))
    return 0


def end(_number: int, _frame: object) -> NoReturn:
    print("draining", flush=True)
    sys.exit(0)


def serve_ca(config_file: Path | None) -> None:
    signal.signal(signal.SIGTERM, end)
    assert config_file is not None
    port = int(tomllib.loads(config_file.read_text())["ca"]["address"].rpartition(":")[2])
    with socket.create_server(("", port)) as listener:
        while True:
            listener.accept()[0].close()


class Agent(socketserver.UnixStreamServer):
    def __init__(self, config_file: Path) -> None:
        config = tomllib.loads(config_file.read_text())
        self.node = config["agent"]["node"]
        self.manifests_dir = Path(config["registry"]["manifests_dir"])
        self.unready = config_file.with_name("unready")
        socket_file = Path(config["agent"]["runtime_dir"]) / "agent.sock"
        socket_file.unlink(missing_ok=True)
        super().__init__(str(socket_file), Handler)

    def answer(self, path: str) -> Any:
        directory = read_directory(self.manifests_dir)
        if path == "/workloads":
            return list(self.workloads(directory))
        ready = not self.unready.exists()
        registry = {"digest": directory.digest, "problems": []}
        return {"ready": ready, "reasons": [] if ready else ["the test wants it so"], "registry": registry}

    def workloads(self, directory: DirectoryState) -> Any:
        for key, pod in directory.objects.items():
            if isinstance(pod, Pod):
                namespace = directory.objects.get(ObjectKey("Namespace", "", key.namespace))
                known = namespace if isinstance(namespace, Namespace) else None
                state = pod.labels.get("lab-test/state", "serving") if enrolled(known, pod) else "not enrolled"
                error = pod.labels.get("lab-test/error")
                yield {"namespace": key.namespace, "name": key.name, "state": state, "error": error}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Agent

    def do_GET(self) -> None:
        body = json.dumps(self.server.answer(self.path)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve_agent(config_file: Path) -> None:
    signal.signal(signal.SIGTERM, end)
    if not Path(tomllib.loads(config_file.read_text())["ca"]["join_token_file"]).read_text().startswith("token-of-"):
        sys.exit("no join token")
    print("serving", flush=True)
    with Agent(config_file) as agent:
        agent.serve_forever()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
