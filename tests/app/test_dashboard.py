"""The dashboard's files: what is served is what the sources say, and it asks nobody else."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.dashboard.pages import STATIC
from tests.conftest import Api

SOURCE = STATIC.parent / "source"
ELSEWHERE = re.compile(rb"""(?:src|href|url|import|fetch)\s*[=(]*\s*["']?(?:https?:)?//""")


@pytest.fixture
def browser(api: Api) -> Iterator[httpx.Client]:
    """Somebody without a key."""
    with httpx.Client(base_url=api.url) as client:
        yield client


def digest_of_sources() -> str:
    """What app/dashboard/source/build.mjs writes into the page."""
    found = hashlib.sha256()
    paths = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*")}
    for name in sorted(paths):
        if paths[name].is_file() and not name.startswith("node_modules/"):
            found.update(name.encode() + b"\0" + paths[name].read_bytes() + b"\0")
    return found.hexdigest()


def test_the_committed_build_belongs_to_the_sources():
    page = (STATIC / "index.html").read_text()

    assert f'content="{digest_of_sources()}"' in page, "say `make dashboard` and commit the build"


def test_the_lock_file_names_no_registry():
    assert "resolved" not in (SOURCE / "package-lock.json").read_text()


def test_what_is_bundled_keeps_its_licence():
    notices = (STATIC / "NOTICES.txt").read_text()

    assert "preact" in notices and "uplot" in notices
    assert notices.count("Permission is hereby granted, free of charge") == 2


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_an_asset_loads_nothing_from_elsewhere(path: Path):
    assert not ELSEWHERE.search(path.read_bytes())


def test_the_page_needs_no_key_and_is_fenced_in(browser: httpx.Client):
    answer = browser.get("/")

    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_all_that_the_page_names_is_there_and_is_not_sent_twice(browser: httpx.Client):
    named = re.findall(r'(?:href|src)="(/ui/[^"]+)"', browser.get("/").text)

    first = [browser.get(path) for path in named]
    again = [
        browser.get(path, headers={"If-None-Match": answer.headers["etag"]})
        for path, answer in zip(named, first, strict=True)
    ]

    assert len(named) == 4
    assert [answer.status_code for answer in first] == [200] * 4
    assert [answer.status_code for answer in again] == [304] * 4


@pytest.mark.parametrize(
    "path", ["/ui/nothing.js", "/ui/", "/ui/../pages.py", "/ui/%2e%2e/pages.py", "/v1/nothing"]
)
def test_what_is_not_there_is_a_404_of_the_api(browser: httpx.Client, path: str):
    answer = browser.get(path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_the_pages_are_no_part_of_the_documented_api(browser: httpx.Client):
    paths = browser.get("/openapi.json").json()["paths"]

    assert "/" not in paths and not [path for path in paths if path.startswith("/ui")]
