"""Sends requests to where users say, and nowhere that they must not reach.

A name is resolved once for each connection, every address of it is checked, and the connection goes
to one that was: what a name says a moment later does not matter. Redirects are not followed, and no
proxy of the environment is asked.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httpcore

from app.addresses import Address, Inside, Scheme

RESOLVE_S = 10.0
DEFAULT_PORTS = {"http": 80, "https": 443}
SocketOptions = Iterable[httpcore.SOCKET_OPTION]


class Unreachable(Exception):
    """Nothing was answered; the message says why, and tells no address of the inside."""


@dataclass(frozen=True)
class Answer:
    """What came back: the status, and the start of the body."""

    status: int
    start: bytes


async def check(url: str, inside: Inside) -> None:
    """Let pass a URL whose host may be reached at this moment.

    Raises:
        Unreachable: it may not, or there is no such host.
    """
    parts = urlsplit(url)
    assert parts.hostname
    await _resolve(parts.hostname, _port(parts), scheme=_scheme(parts), inside=inside)


async def post(
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    inside: Inside,
    timeout_s: float,
    keep_bytes: int,
) -> Answer:
    """Post a body and return the answer, cut; `timeout_s` is for all of it.

    Raises:
        Unreachable: nobody answered, or nobody may be asked.
    """
    parts = urlsplit(url)
    backend = _Pinned(_scheme(parts), inside)
    sent = {"Host": parts.netloc, "Accept-Encoding": "identity", **headers}
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore.AsyncConnectionPool(
                ssl_context=_trust(), network_backend=backend, max_keepalive_connections=0
            ) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
        ):
            return Answer(response.status, await _start(response, keep_bytes))
    except TimeoutError as error:
        raise Unreachable(f"No answer within {timeout_s:g} s.") from error
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error


class _Pinned(httpcore.AsyncNetworkBackend):
    """Connects to an address that was checked; TLS still asks for the name."""

    def __init__(self, scheme: Scheme, inside: Inside) -> None:
        self._scheme = scheme
        self._inside = inside
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's signature
        local_address: str | None = None,
        socket_options: SocketOptions | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of the host that answers."""
        *others, last = await _resolve(host, port, scheme=self._scheme, inside=self._inside)
        for address in others:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._network.connect_tcp(
            str(last), port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        """Wait, as the pool asks between tries."""
        await asyncio.sleep(seconds)


async def _resolve(host: str, port: int, *, scheme: Scheme, inside: Inside) -> list[Address]:
    """Return all addresses of a host; all of them may be reached.

    Raises:
        Unreachable: there are none, or one may not: which one is not told.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError
        raise Unreachable(f"The host {host} cannot be resolved.") from error
    addresses = [ip_address(str(where[0])) for *_, where in found]
    if not all(inside.may_reach(each, port=port, scheme=scheme) for each in addresses):
        raise Unreachable(
            f"Nothing is sent to {scheme}://{host}:{port}: it must be https, on port 443 or 8443,"
            " and every address of the host public. The operator can allow networks of their own."
        )
    return addresses


async def _start(response: httpcore.Response, keep_bytes: int) -> bytes:
    kept = b""
    async for chunk in response.aiter_stream():
        kept += chunk
        if len(kept) >= keep_bytes:
            break
    return kept[:keep_bytes]


@cache
def _trust() -> ssl.SSLContext:
    """What this machine trusts; SSL_CERT_FILE names others."""
    return ssl.create_default_context()


def _scheme(parts: SplitResult) -> Scheme:
    assert parts.scheme in DEFAULT_PORTS
    return cast(Scheme, parts.scheme)


def _port(parts: SplitResult) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]
