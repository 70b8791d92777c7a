"""Who may ask: the token, the names this server goes by, and the sites whose pages may post.

A server on the loopback interface is reached by every web page that its user opens. Two checks keep
those pages out: a request must name this server by an IP address or by one of its own names, which
stops a foreign name that was rebound to 127.0.0.1, and a request that changes or computes anything
must not come from a page of another origin. Beyond the loopback interface a token is demanded.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from wherefrom.errors import StorageError
from wherefrom.serve.errors import ForbiddenError, RequestError, UnauthorizedError

__all__ = ["RESPONSE_HEADERS", "TOKEN_VARIABLE", "Access", "is_loopback", "read_token"]

TOKEN_VARIABLE = "WHEREFROM_TOKEN"
_FEWEST_CHARACTERS = 16
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
_OPEN_FOLDER = "/page/"

RESPONSE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
"""Of every response: nothing is loaded from elsewhere, framed, sniffed, referred to or kept."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        names: Host names that this server goes by, in lower case; IP addresses always do, for no
            foreign name can pose as one.
        token_sha256: Digest of the token; ``None`` if none is demanded.
    """

    names: frozenset[str]
    token_sha256: bytes | None

    @classmethod
    def of(cls, token: str | None = None, names: Iterable[str] = ()) -> Access:
        """Access under a token, by the name ``localhost`` and more names."""
        digest = None if token is None else hashlib.sha256(token.encode()).digest()
        return cls(frozenset({"localhost", *(name.lower() for name in names)}), digest)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Refuse a request that is not allowed.

        Raises:
            ForbiddenError: It names another host, or comes from a page of another origin.
            UnauthorizedError: The token is missing or wrong.
        """
        host = headers.get("host", "")
        if not self._is_own(host):
            raise ForbiddenError(
                "the request's Host is none of this server's names; use its address, or serve "
                "with --allow-host NAME"
            )
        if method not in _SAFE_METHODS:
            _check_origin(host, headers)
        if path not in _OPEN_PATHS and not path.startswith(_OPEN_FOLDER):
            self._check_token(headers.get("authorization", ""))

    def _is_own(self, host: str) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        return name in self.names or _address(name) is not None

    def _check_token(self, given: str) -> None:
        if self.token_sha256 is None:
            return
        scheme, _, token = given.partition(" ")
        # Digests have one length, so that the time of the comparison tells nothing of the token.
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self.token_sha256):
            raise UnauthorizedError(
                "this server asks for its token; send the header Authorization: Bearer TOKEN"
            )


def is_loopback(host: str) -> bool:
    """Whether a server at this address is reached from this machine only.

    Args:
        host: An IP address or ``localhost``: names are not looked up.

    Raises:
        RequestError: It is neither.
    """
    if host == "localhost":
        return True
    address = _address(host)
    if address is None:
        raise RequestError(
            f"host {host!r} is no address; give one, as 127.0.0.1, ::1 or 0.0.0.0, or localhost"
        )
    return address.is_loopback


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The token that requests must bring; ``None`` if there is to be none.

    Args:
        file: That holds it.
        environment: That may hold it as ``WHEREFROM_TOKEN``, where no file is given.

    Raises:
        StorageError: The file cannot be read.
        RequestError: The token is too short, or holds what no header can.
    """
    if file is None and TOKEN_VARIABLE not in environment:
        return None
    if file is None:
        source, token = TOKEN_VARIABLE, environment[TOKEN_VARIABLE].strip()
    else:
        try:
            source, token = str(file), file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(
                f"the token file {file} cannot be read ({_reason(error)}); give a file that holds "
                "the token"
            ) from error
    if len(token) < _FEWEST_CHARACTERS or not token.isascii() or not token.isprintable():
        raise RequestError(
            f"{source} holds no usable token; write at least {_FEWEST_CHARACTERS} printable ASCII "
            "characters, as `openssl rand -hex 32` makes them"
        )
    return token


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "no UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "no access"


def _check_origin(host: str, headers: Headers) -> None:
    """Refuse what a page of another site sends; programs send no origin.

    Raises:
        ForbiddenError: It comes from such a page.
    """
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none") or (
        # A proxy may have taken the https off: the scheme is not compared.
        origin is not None and _netloc(origin) != host.lower()
    ):
        raise ForbiddenError("the request comes from a page of another site; use this server's own")


def _netloc(url: str) -> str | None:
    """Host and port of a URL in lower case; ``None`` if it is none."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None


def _host_name(host: str) -> str | None:
    """The name in a Host header, without port and brackets; ``None`` if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # Raises if it is no number.
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
