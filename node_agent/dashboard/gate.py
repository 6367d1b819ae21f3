"""Who may look at the dashboard.

Sans-I/O.  Two gates, one behind the other, for every request:

*Host.*  A page of somebody else could point its own name at our address and read
what we answer (DNS rebinding).  So the Host header must be an IP address,
``localhost``, or a name that was given with ``--host-name``.

*Token*, if there is one; without one the server listens on loopback only.  It
comes as ``Authorization: Bearer``, or once by a form, which is answered with a
session cookie that scripts can not read and other sites can not use.  It is never
part of an address, and is compared in constant time.

Everybody who may look sees everything there is to see.  Nobody can change anything.
"""

import hmac
import ipaddress
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final

from ca.http_server import Request, Response, json_response

COOKIE: Final = "ringfence_session"
LOGIN: Final = "/login"
OPEN_PATHS: Final = frozenset({LOGIN, "/static/login.css", "/static/login.js", "/static/icon.svg"})
MIN_TOKEN_CHARS: Final = 16
SESSION_S: Final = 12 * 3600.0
_MAX_SESSIONS: Final = 256
_LOCAL_NAMES: Final = frozenset({"localhost"})


class Gate:
    """Judges requests; ``token`` None lets everybody in who comes by a right name."""

    def __init__(
        self,
        *,
        token: str | None,
        names: Collection[str],
        secure: bool,
        now: Callable[[], float],
        draw: Callable[[], str],
    ) -> None:
        """``names`` may be in the Host header; ``secure``: the server speaks TLS; ``draw`` makes a session's name."""
        self._token = token
        self._names = _LOCAL_NAMES | {name.lower() for name in names}
        self._secure = secure
        self._now = now
        self._draw = draw
        self._sessions: OrderedDict[str, float] = OrderedDict()

    def judge(self, request: Request) -> Response | None:
        """The refusal of a request, or None if it may go on."""
        if not self._is_our_name(request.headers.get("host", "")):
            text = "this Host is not served here; use the address, or start the dashboard with --host-name NAME"
            return json_response(421, {"error": text})
        if self._token is None or request.path in OPEN_PATHS or self._is_known(request):
            return None
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return Response(303, "text/plain; charset=utf-8", b"log in first\n", (("Location", LOGIN),))
        refusal = json_response(401, {"error": "log in, or send the token as Authorization: Bearer"})
        return refusal._replace(headers=(("WWW-Authenticate", "Bearer"),))

    def log_in(self, request: Request) -> Response:
        """Answer the form: a session for the right token, the form again for a wrong one."""
        try:
            fields = urllib.parse.parse_qs(request.body.decode("ascii"), max_num_fields=4)
        except (UnicodeDecodeError, ValueError):
            fields = {}
        if self._token is not None and not self._is_token(fields.get("token", [""])[0]):
            return Response(303, "text/plain; charset=utf-8", b"wrong token\n", (("Location", f"{LOGIN}?wrong=1"),))
        session = self._draw()
        self._sessions[session] = self._now() + SESSION_S
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        cookie = f"{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_S:.0f}"
        headers = (("Location", "/"), ("Set-Cookie", f"{cookie}; Secure" if self._secure else cookie))
        return Response(303, "text/plain; charset=utf-8", b"welcome\n", headers)

    def _is_known(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        until = self._sessions.get(cookie.value) if cookie is not None else None
        return until is not None and self._now() < until

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _is_our_name(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
