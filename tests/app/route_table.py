"""The routes there are, read off the application itself: a new one is tested by being there."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from starlette.routing import BaseRoute

from app.main import create_app
from app.settings import ApiSettings

# What anybody may ask, without a key: whether the service lives and fares well, how it is spoken
# to, and the page that asks for one.
OPEN = {
    *("/", "/healthz", "/readyz", "/metrics"),
    *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
}
OPEN_FOLDERS = {"/static-offline-docs", "/ui"}

LOOKS = {"GET", "HEAD"}
# What is no GET for the length of what it is given, and leaves nothing behind.
CHANGES_NOTHING = {
    "POST /v1/fine_tuning/alpha/graders/run",
    "POST /v1/fine_tuning/alpha/graders/validate",
}


@dataclass(frozen=True)
class Route:
    """A method and a path; `parameters` are the names in it."""

    method: str
    path: str

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)(?::\w+)?}", self.path)

    def at(self, values: dict[str, str]) -> str:
        """The path with values for its parameters."""
        return re.sub(r"{(\w+)(?::\w+)?}", lambda match: values[match[1]], self.path)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def routes() -> list[Route]:
    found = [
        Route(method, route.path)
        for route in declared()
        for method in getattr(route, "methods", None) or {"GET"}
    ]
    return sorted(found, key=lambda route: (route.path, route.method))


def declared() -> Iterator[BaseRoute]:
    """The routes as the application holds them."""
    settings = ApiSettings(
        database_url="postgresql+psycopg://nobody@localhost/nothing",
        redis_url="redis://localhost:1/0",
        key_pepper="a pepper for the routes only",
    )
    return _flat(create_app(settings).routes)


def closed_routes() -> list[Route]:
    """Those that ask for a key."""
    return [route for route in routes() if route.path not in OPEN | OPEN_FOLDERS]


def changing_routes() -> list[Route]:
    """Those that change something, for which a key that may look is not enough."""
    return [
        route
        for route in closed_routes()
        if route.method not in LOOKS and str(route) not in CHANGES_NOTHING
    ]


def _flat(found: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    for route in found:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            yield from _flat(included.routes)
