"""Waits for what other processes do."""

import socket
import time
from collections.abc import Callable

import httpx


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(ready: Callable[[], bool], *, timeout_s: float) -> None:
    assert within(timeout_s, ready), f"not ready within {timeout_s} s"


def within(seconds: float, ready: Callable[[], bool]) -> bool:
    """Say whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True
