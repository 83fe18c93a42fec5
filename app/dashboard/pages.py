"""The dashboard at /: one page and its assets, which ask /v1 for all that they show."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

# Nothing but what we serve is loaded, run or drawn, and nobody puts the page into a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304 by its ETag
}


class Assets(StaticFiles):
    """Files that a browser is told to trust no further than it must."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file, and the headers that fence it in."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def install(app: FastAPI) -> None:
    """Serve the page at / and its assets below /ui; the page's own routes are in the fragment."""
    assets = Assets(directory=STATIC)

    async def page(request: Request) -> Response:
        return await assets.get_response("index.html", request.scope)

    app.add_route("/", page, include_in_schema=False)
    app.mount("/ui", assets, name="dashboard")
