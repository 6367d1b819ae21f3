"""Who may look at the dashboard, and by which name."""

import itertools

import pytest

from ca.http_server import Request
from node_agent.dashboard.gate import COOKIE, SESSION_S, Gate

TOKEN = "0123456789abcdef0123"


class Clock:
    now = 0.0


def gate(*, token: str | None = None, names: tuple[str, ...] = (), secure: bool = False) -> tuple[Gate, Clock]:
    clock, numbers = Clock(), itertools.count()
    made = Gate(token=token, names=names, secure=secure, now=lambda: clock.now, draw=lambda: f"session-{next(numbers)}")
    return made, clock


def request(path: str = "/api/mesh", *, method: str = "GET", body: bytes = b"", **headers: str) -> Request:
    return Request(method=method, path=path, query={}, body=body, headers={"host": "127.0.0.1:15080", **headers})


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:15080", "127.0.0.1", "localhost:15080", "LOCALHOST", "[::1]:15080", "10.0.0.5", "mesh.example:1"],
)
def test_a_name_of_ours_is_served(host: str) -> None:
    assert gate(names=("Mesh.Example",))[0].judge(request(host=host)) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:15080", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", "a b"],
)
def test_a_name_that_somebody_pointed_at_us_is_not(host: str) -> None:
    refusal = gate()[0].judge(request(host=host))

    assert refusal is not None
    assert refusal.status == 421


@pytest.mark.parametrize("path", ["/", "/api/mesh", "/static/app.js", "/nowhere"])
def test_the_name_is_judged_before_the_token(path: str) -> None:
    refusal = gate(token=TOKEN)[0].judge(request(path, host="evil.example", authorization=f"Bearer {TOKEN}"))

    assert refusal is not None
    assert refusal.status == 421


def test_without_the_token_there_is_nothing_to_see_but_the_form() -> None:
    guarded, _ = gate(token=TOKEN)

    for path in ("/api/mesh", "/api/node", "/static/app.js", "/nowhere"):
        refusal = guarded.judge(request(path))
        assert refusal is not None
        assert refusal.status == 401
    home = guarded.judge(request("/"))
    assert home is not None
    assert (home.status, home.headers) == (303, (("Location", "/login"),))
    assert guarded.judge(request("/login")) is None


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", None),
        (f"bearer  {TOKEN} ", None),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer", 401),
        (f"Basic {TOKEN}", 401),
        ("Bearer \u00e9", 401),
    ],
)
def test_the_token_may_come_as_a_header(header: str, status: int | None) -> None:
    refusal = gate(token=TOKEN)[0].judge(request(authorization=header))

    assert (None if refusal is None else refusal.status) == status


def test_the_form_gives_a_session_that_scripts_and_other_sites_can_not_use() -> None:
    guarded, clock = gate(token=TOKEN, secure=True)
    answer = guarded.log_in(request("/login", method="POST", body=f"token={TOKEN}".encode()))

    assert answer.status == 303
    headers = dict(answer.headers)
    assert headers["Location"] == "/"
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert cookie == f"{COOKIE}=session-0"
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} <= set(attributes)
    assert TOKEN not in str(answer)
    assert guarded.judge(request(cookie=f"other=1; {cookie}")) is None

    clock.now = SESSION_S + 1
    refusal = guarded.judge(request(cookie=cookie))
    assert refusal is not None
    assert refusal.status == 401


@pytest.mark.parametrize("body", [b"", b"token=", b"token=wrong", b"\xff", b"&" * 100, f"x={TOKEN}".encode()])
def test_a_wrong_token_gives_no_session(body: bytes) -> None:
    guarded, _ = gate(token=TOKEN)
    answer = guarded.log_in(request("/login", method="POST", body=body))

    assert dict(answer.headers) == {"Location": "/login?wrong=1"}
    assert guarded.judge(request(cookie=f"{COOKIE}=session-0")) is not None


@pytest.mark.parametrize("cookie", ["", COOKIE, f"{COOKIE}=", f"{COOKIE}=guess", "a=b;;;=", '"'])
def test_a_session_can_not_be_made_up(cookie: str) -> None:
    refusal = gate(token=TOKEN)[0].judge(request(cookie=cookie))

    assert refusal is not None
    assert refusal.status == 401


def test_there_are_so_many_sessions_and_no_more() -> None:
    guarded, _ = gate(token=TOKEN)
    for _ in range(300):
        guarded.log_in(request("/login", method="POST", body=f"token={TOKEN}".encode()))

    assert guarded.judge(request(cookie=f"{COOKIE}=session-0")) is not None
    assert guarded.judge(request(cookie=f"{COOKIE}=session-299")) is None
