"""Speaks to the service over HTTP, as any user of it does."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from app.client.errors import Refused, Unreachable

TIMEOUT = httpx.Timeout(600, connect=5)  # the server reads a large file line by line meanwhile
TRIES = 4
LONGEST_WAIT_S = 10.0
PAGE = 100
SAFE = "/:"  # names of models have both
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HINTS = {
    401: "Set BASIN_API_KEY, or say --api-key; `basin keys create` makes a key.",
    403: "`basin keys create --scope …` makes a key that may.",
}


class Server:
    """One service, and the key to it."""

    def __init__(self, url: str, api_key: str | None, *, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.http = httpx.Client(
            base_url=f"{self.url}/v1/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            trust_env=not is_loopback(url),  # a proxy knows nothing of this machine's own ports
        )

    def close(self) -> None:
        """Let go of the connections."""
        self.http.close()

    def get(self, path: str, **params: Any) -> Any:
        """Return what is at a path; parameters that are None are left out."""
        return self.send("GET", path, params=_said(params)).json()

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """Return the answer to a JSON body."""
        return self.send("POST", path, json=body, **more).json()

    def delete(self, path: str) -> Any:
        """Delete what is at a path, and return the receipt."""
        return self.send("DELETE", path).json()

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Return the answer; a server that is busy is asked again, as it says when.

        Raises:
            Refused: the answer is 4xx.
            Unreachable: there is none, or it is 5xx.
        """
        for again in range(TRIES - 1):
            answer = self._once(method, path, **options)
            wait_s = _wait_s(answer, again)
            if wait_s is None:
                break
            time.sleep(wait_s)
        else:
            answer = self._once(method, path, **options)
        self.check(answer)
        return answer

    def pages(self, path: str, *, limit: int | None, **params: Any) -> Iterator[Any]:
        """Yield the members of a list, at most `limit`, page by page."""
        after, left = None, limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            page = self.get(path, limit=size, after=after, **params)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]
            left = None if left is None else left - len(page["data"])

    @contextmanager
    def stream(
        self, path: str, headers: Mapping[str, str], **options: Any
    ) -> Iterator[httpx.Response]:
        """Open an answer that is read as it comes.

        Raises:
            Refused, Unreachable: as `send`; also while the block reads.
        """
        where = quote(path, safe=SAFE)
        with self._spoken(), self.http.stream("GET", where, headers=headers, **options) as answer:
            if answer.is_error:
                answer.read()
            self.check(answer)
            yield answer

    def check(self, answer: httpx.Response) -> None:
        """Raise what an answer says went wrong."""
        if not answer.is_error:
            return
        error = _error(answer)
        if answer.is_server_error:
            raise Unreachable(
                f"{self.url} answered {answer.status_code}: {error['message']}",
                hint=f"Its log has more under {answer.headers.get('x-request-id', 'the time')}.",
            )
        raise Refused(answer.status_code, error, hint=HINTS.get(answer.status_code))

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._spoken():
            return self.http.request(method, quote(path, safe=SAFE), **options)

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """Say for a person that no answer came."""
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(f"{self.url} is no URL of a server: {error}.") from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"{self.url} cannot be reached: {error or type(error).__name__}.",
                hint="`basin up` starts a server here; --url or BASIN_URL names another.",
            ) from error


def is_loopback(url: str) -> bool:
    """Tell this machine's own addresses."""
    try:
        return httpx.URL(url).host in LOOPBACK
    except httpx.InvalidURL:
        return False


def _said(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _wait_s(answer: httpx.Response, again: int) -> float | None:
    """Return how long to wait before the same request may be sent again; None: never."""
    busy = answer.status_code in (429, 503)
    if not busy or answer.headers.get("x-should-retry") == "false":
        return None
    told = answer.headers.get("retry-after", "")
    wait_s = float(told) if told.isdecimal() else 0.5 * 2**again
    return wait_s if wait_s <= LONGEST_WAIT_S else None


def _error(answer: httpx.Response) -> dict[str, object]:
    """Return the envelope's content; of what a proxy says instead, a line."""
    try:
        found = answer.json()["error"]
        if isinstance(found, dict):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    return {
        "message": f"{answer.status_code} {answer.reason_phrase}; no answer of Basin's",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
