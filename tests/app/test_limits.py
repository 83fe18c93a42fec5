"""What a client may send, and how slowly: real sockets against a real server."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import limits
from app.settings import ApiSettings
from tests.app import records
from tests.conftest import Api, running_api
from tests.factories import jsonl
from tests.waiting import within

PATIENT_S = 120  # longer than any test: nothing is cut off
HASTY_S = 2
LARGE = 24 << 20  # more than the kernel holds for a client that does not read
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@dataclass(frozen=True)
class Served:
    """A server with limits of its own, and a key to it."""

    api: Api
    key: str
    log: Path

    @property
    def authorization(self) -> bytes:
        return b"Authorization: Bearer %s\r\n" % self.key.encode()

    def begin(self, line: bytes, headers: bytes = b"", body: bytes = b"") -> bytes:
        """The start of a request that is told to be longer."""
        return b"%s HTTP/1.1\r\nHost: x\r\n%s%s\r\n%s" % (line, self.authorization, headers, body)

    @contextmanager
    def connected(self, sent: bytes = b"", *, window: int | None = None) -> Iterator[socket.socket]:
        url = httpx.URL(self.api.url)
        with socket.socket() as client:
            client.settimeout(60)
            if window:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            client.connect((url.host, url.port))
            client.sendall(sent)
            yield client


@contextmanager
def served(settings: ApiSettings, log: Path, **limits: Any) -> Iterator[Served]:
    own = settings.model_copy(update={"max_file_bytes": 2 * LARGE} | limits)
    with running_api(own, log) as api:
        yield Served(api, api.key("limits"), log)


@pytest.fixture(scope="module")
def hasty(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("hasty") / "api.log"
    with served(settings, log, client_timeout_s=HASTY_S) as found:
        yield found


@pytest.fixture(scope="module")
def strict(settings: ApiSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("strict") / "api.log"
    few = {"max_connections": 12, "streams_per_caller": 2, "streams": 3, "watchers_per_caller": 2}
    with served(settings, log, client_timeout_s=PATIENT_S, **few) as found:
        yield found


def whole(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


def answer(client: socket.socket) -> tuple[int, dict[str, Any], bytes]:
    """Status, error and head of an answer that ends the connection."""
    head, _, body = whole(client).partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"x-request-id: req_" in head and b"connection: close" in head.lower()
    return int(head.split()[1]), error, head


def drip(client: socket.socket, piece: bytes) -> None:
    """Send a piece now and then, until the server has enough of it."""
    client.settimeout(0.2)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.sendall(piece)
            client.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            break
    else:
        raise AssertionError("still taken after a minute")
    client.settimeout(60)


# Heads


def test_headers_that_stand_still_are_given_up(hasty: Served):
    with hasty.connected(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-") as client:
        status, error, _ = answer(client)

    assert (status, error["code"]) == (408, "request_timeout")


def test_headers_that_drip_are_given_up(hasty: Served):
    with hasty.connected(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: ") as client:
        drip(client, b"a")
        status, error, _ = answer(client)

    assert (status, error["code"]) == (408, "request_timeout")


def test_a_connection_that_says_nothing_is_closed(hasty: Served):
    with hasty.connected() as client:
        assert whole(client) == b""


def test_a_second_request_has_the_time_of_a_first(hasty: Served):
    with hasty.connected(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as client:
        assert b"200 OK" in client.recv(1 << 16)
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-")
        status, _, _ = answer(client)

    assert status == 408


@pytest.mark.parametrize(
    "head",
    [
        b"X-Long: %s\r\n" % (b"a" * limits.MAX_HEAD_BYTES),
        b"".join(b"X-%d: a\r\n" % number for number in range(limits.MAX_HEADERS)),
    ],
    ids=["one long header", "many headers"],
)
def test_a_head_that_is_too_large_is_refused(strict: Served, head: bytes):
    sent = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n" % head

    with strict.connected(sent) as client:
        status, error, _ = answer(client)

    assert (status, error["code"]) == (431, "headers_too_large")


def test_an_address_that_is_too_long_is_refused(strict: Served):
    path = b"/v1/files?after=%s" % (b"a" * limits.MAX_HEAD_BYTES)

    with strict.connected(strict.begin(b"GET " + path, b"Connection: close\r\n")) as client:
        status, error, _ = answer(client)

    assert (status, error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("line", [b"X-Endless: ", b"GET /", b""], ids=["value", "address", "name"])
def test_a_head_without_end_is_not_read_without_end(strict: Served, line: bytes):
    start = line if line == b"GET /" else b"GET /v1/models HTTP/1.1\r\n" + line
    with strict.connected(start) as client:
        drip(client, b"a" * (1 << 20))
        received = whole(client)

    assert received == b"" or b" 431 " in received or b" 400 " in received


def test_what_is_no_http_is_told_so_in_the_envelope(strict: Served):
    with strict.connected(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") as client:
        status, error, _ = answer(client)

    assert (status, error["code"]) == (400, "invalid_value")


def test_requests_in_one_piece_are_answered_one_by_one(strict: Served):
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    with strict.connected(one * 3 + last) as client:
        assert whole(client).count(b"200 OK") == 4


# Bodies


@pytest.mark.parametrize("piece", [b"", b" "], ids=["stands still", "drips"])
def test_a_slow_json_body_is_given_up(hasty: Served, piece: bytes):
    headers = b"Content-Type: application/json\r\nContent-Length: 1000\r\n"
    with hasty.connected(hasty.begin(b"POST /v1/fine_tuning/jobs", headers, b"{")) as client:
        if piece:
            drip(client, piece)
        status, error, _ = answer(client)

    assert (status, error["code"]) == (408, "request_timeout")


@pytest.mark.parametrize("piece", [b"", b"a"], ids=["stands still", "drips"])
def test_a_slow_upload_is_given_up_and_nothing_stays(hasty: Served, piece: bytes):
    headers = FORM + b"Content-Length: 100000\r\n"
    with hasty.connected(hasty.begin(b"POST /v1/files", headers, PART)) as client:
        if piece:
            drip(client, piece)
        status, error, _ = answer(client)

    assert (status, error["code"]) == (408, "request_timeout")
    writing = "SELECT count(*) FROM blobs WHERE state = 'writing'"
    assert records.run_now(hasty.api.settings, writing) == 0


def test_a_body_that_never_ends_is_not_read_after_the_answer(hasty: Served):
    headers = b"Transfer-Encoding: chunked\r\n"
    sent = hasty.begin(b"POST /nowhere", headers, b"1\r\na\r\n")
    with hasty.connected(sent) as client:
        received = b""
        while not received.endswith(b"}}"):
            received += client.recv(1 << 16)
        drip(client, b"1\r\na\r\n")

        assert b" 404 " in received and whole(client) == b""


def test_trailers_without_end_are_not_kept(strict: Served):
    headers = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    with strict.connected(strict.begin(b"POST /v1/fine_tuning/jobs", headers)) as client:
        client.sendall(b"0\r\nX-Trailer: ")
        drip(client, b"a" * (1 << 20))
        received = whole(client)

    assert received == b"" or b" 431 " in received


def test_a_client_that_sends_steadily_is_not_hurried(hasty: Served):
    data = b"a" * 6000
    headers = FORM + b"Content-Length: %d\r\nConnection: close\r\n"
    tail = (
        b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--b--\r\n'
    )
    with hasty.connected() as client:
        length = len(PART + data + tail)
        client.sendall(hasty.begin(b"POST /v1/files", headers % length, PART))
        for start in range(0, len(data), 500):
            time.sleep(HASTY_S / 8)  # in all longer than the patience with one that is silent
            client.sendall(data[start : start + 500])
        client.sendall(tail)

        assert b"200 OK" in whole(client)


def nested(depth: int) -> bytes:
    return b'{"model": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_json_that_is_too_deep_is_refused(strict: Served):
    json_type = {"Content-Type": "application/json"}
    with strict.api.http(strict.key) as http:
        just, deeper, deepest = (
            http.post("/fine_tuning/jobs", content=nested(depth), headers=json_type)
            for depth in (limits.MAX_JSON_DEPTH, limits.MAX_JSON_DEPTH + 1, 1_000_000)
        )
        text = http.post("/fine_tuning/jobs", json={"model": "[{" * 1000})

    assert "more than 64 deep" in deeper.json()["error"]["message"]
    assert "more than 64 deep" in deepest.json()["error"]["message"]
    assert {a.status_code for a in (just, deeper, deepest, text)} == {400}
    assert "deep" not in just.text and "deep" not in text.text


JSON = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.booleans())
def test_depth_is_that_of_the_lists_and_objects(value: Any, ascii_only: bool):
    def measured(value: Any) -> int:
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(measured, value), default=0) if isinstance(value, list) else 0

    assert limits.depth(json.dumps(value, ensure_ascii=ascii_only).encode()) == measured(value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [(b'"', 0), (b'"[[', 0), (b'"\\', 0), (b'["\\"[', 1), (b"]]]", 0), (b"\xff[[", 2)],
)
def test_what_is_no_json_has_a_depth_too(body: bytes, expected: int):
    assert limits.depth(body) == expected


def test_a_string_that_never_ends_is_looked_at_once():
    """Were each quote tried anew, this would take hours."""
    assert limits.depth(b'"\\' * limits.MAX_BODY_BYTES) == 0


# Answers


@pytest.fixture(scope="module")
def large(hasty: Served) -> str:
    with hasty.api.http(hasty.key) as http:
        form = {"file": ("large", bytes(LARGE))}
        file = http.post("/files", files=form, data={"purpose": "assistants"})
    return str(file.json()["id"])


def test_a_client_that_takes_no_answer_is_dropped(hasty: Served, large: str):
    request = hasty.begin(b"GET /v1/files/%s/content" % large.encode())
    with hasty.connected(request, window=4096) as client:
        assert b"200 OK" in client.recv(100)
        with hasty.api.http(hasty.key) as http:
            assert within(60, lambda: "takes its answer too slowly" in hasty.log.read_text())
            assert http.get("/models").status_code == 200

        assert len(whole(client)) < LARGE


def test_a_client_that_reads_slowly_but_steadily_gets_all(hasty: Served, large: str):
    request = hasty.begin(b"GET /v1/files/%s/content" % large.encode(), b"Connection: close\r\n")
    with hasty.connected(request, window=1 << 18) as client:
        received = 0
        until = time.monotonic() + 3 * HASTY_S
        while piece := client.recv(1 << 16):
            received += len(piece)
            if time.monotonic() < until:
                time.sleep(0.05)

    assert received > LARGE


# Numbers


@contextmanager
def uploading(one: Served) -> Iterator[None]:
    """An upload that has begun: it is asked for its bytes once it has a place."""
    headers = FORM + b"Content-Length: 100000\r\nExpect: 100-continue\r\n"
    with one.connected(one.begin(b"POST /v1/files", headers)) as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        yield


def test_a_client_that_leaves_in_the_middle_is_no_fault_of_the_server(strict: Served):
    before = len(strict.log.read_text())

    with uploading(strict):
        pass

    assert within(30, lambda: "request.abandoned" in strict.log.read_text()[before:])
    assert "Traceback" not in strict.log.read_text()[before:]


def test_a_key_has_so_many_streams_at_once(strict: Served):
    with strict.api.http(strict.key) as http, ExitStack() as open_ones:
        for _ in range(2):
            open_ones.enter_context(uploading(strict))

        refused = http.get("/files/none/content")
        grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "a"}
        body = {"grader": grader | {"reference": "a"}}
        graded = http.post("/fine_tuning/alpha/graders/validate", json=body)
        beside = http.get("/models")
        open_ones.close()

        assert refused.status_code == 429
        assert graded.status_code == 429, "it may take a second of a core"
        assert refused.json()["error"]["code"] == "too_many_streams"
        assert int(refused.headers["retry-after"]) > 0
        assert beside.status_code == 200, "what is over at once is not counted"
        assert within(30, lambda: http.get("/files/none/content").status_code == 404)


def test_all_keys_together_have_so_many_streams(strict: Served):
    other = replace(strict, key=strict.api.key("others"))
    third = replace(strict, key=strict.api.key("third"))
    with ExitStack() as open_ones, third.api.http(third.key) as http:
        for one in (strict, strict, other):
            open_ones.enter_context(uploading(one))

        refused = http.get("/files/none/content")

        assert refused.status_code == 429 and "busy" in refused.json()["error"]["message"]
        open_ones.close()
        assert within(30, lambda: http.get("/files/none/content").status_code == 404)


def test_event_streams_are_counted_by_themselves(strict: Served):
    with strict.api.http(strict.key) as http, ExitStack() as open_ones:
        form = {"file": ("train.jsonl", jsonl(10))}
        file = http.post("/files", files=form, data={"purpose": "fine-tune"}).json()
        body = {"model": "tiny-llama", "training_file": file["id"]}
        path = f"/fine_tuning/jobs/{http.post('/fine_tuning/jobs', json=body).json()['id']}/stream"
        for _ in range(2):
            watching = open_ones.enter_context(http.stream("GET", path))
            assert watching.status_code == 200

        refused = http.get(path)
        beside = http.get(f"/files/{file['id']}/content")

        assert refused.json()["error"]["code"] == "too_many_streams"
        assert "2 event streams" in refused.json()["error"]["message"]
        assert beside.status_code == 200


def test_a_connection_too_many_is_told_so(strict: Served):
    with ExitStack() as open_ones:
        for _ in range(12):
            open_ones.enter_context(strict.connected(b"GET / HTTP/1.1\r\n"))

        def refused() -> bool:
            with strict.connected() as client:
                client.settimeout(1)
                try:
                    return b" 503 " in client.recv(1 << 16)
                except TimeoutError:
                    return False

        assert within(30, refused)
    with strict.api.http(strict.key) as http:
        assert within(30, lambda: http.get("/models").status_code == 200)
