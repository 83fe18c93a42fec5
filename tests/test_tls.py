"""The example of a reverse proxy, run as it is written, with a certificate of our own."""

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from app.ids import token
from tests.app import records
from tests.conftest import Api, running_api
from tests.factories import jsonl
from tests.waiting import free_port, within

ROOT = Path(__file__).parents[1]
LARGE = 24 << 20
CLIENT = "127.0.0.2"
PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
NGINX, OPENSSL = shutil.which("nginx", path=PLACES), shutil.which("openssl", path=PLACES)

pytestmark = pytest.mark.skipif(not NGINX or not OPENSSL, reason="needs nginx and openssl")


@pytest.fixture(scope="module")
def origin(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = api.settings.model_copy(update={"max_file_bytes": LARGE})
    with running_api(settings, tmp_path_factory.mktemp("origin") / "api.log") as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of our own, and room for what nginx writes."""
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", folder / "privkey.pem", "-out", folder / "fullchain.pem"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subprocess.run([OPENSSL, *new, *files, *name], check=True, capture_output=True)
    return folder


def configuration(folder: Path, *, port: int, origin: str) -> Path:
    """The example with addresses and certificate of this machine, inside of an nginx.conf."""
    example = (ROOT / "docs" / "nginx.conf").read_text()
    ours = {
        "server 127.0.0.1:8000;": f"server {origin.removeprefix('http://')};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "/etc/ssl/basin/": f"{folder}/",
    }
    for theirs, here in ours.items():
        assert theirs in example
        example = example.replace(theirs, here)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{example} }}\n"
    )
    return path


@contextmanager
def running_nginx(folder: Path, *, port: int, origin: str) -> Iterator[str]:
    errors = folder / "error.log"
    argv = [NGINX, "-c", configuration(folder, port=port, origin=origin), "-e", errors]
    process = subprocess.Popen(argv)
    try:
        assert within(30, lambda: is_listening(port)), errors.read_text()
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        process.wait(30)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def url(origin: Api, folder: Path) -> Iterator[str]:
    with running_nginx(folder, port=free_port(), origin=origin.url) as found:
        yield found


def trust(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "fullchain.pem")


@pytest.fixture(scope="module")
def client(url: str, origin: Api, folder: Path) -> Iterator[openai.OpenAI]:
    key = origin.key(f"tls-{token(6)}")
    transport = httpx.HTTPTransport(verify=trust(folder), local_address=CLIENT)
    with httpx.Client(transport=transport, timeout=60) as http:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, max_retries=0)


def test_nginx_finds_no_fault_with_the_example(folder: Path, origin: Api):
    path = configuration(folder, port=free_port(), origin=origin.url)

    tested = subprocess.run([NGINX, "-t", "-c", path], capture_output=True, text=True)

    assert tested.returncode == 0 and "warn" not in tested.stderr, tested.stderr


def test_a_large_file_goes_through_both_ways(client: openai.OpenAI, folder: Path):
    data = os.urandom(1 << 20) * 20

    file = client.files.create(file=("large", data), purpose="assistants")

    assert client.files.content(file.id).read() == data
    assert not list(folder.glob("client_body/*")) and not list(folder.glob("proxy/*"))


def test_what_is_refused_is_refused_by_the_api(client: openai.OpenAI):
    with pytest.raises(openai.APIStatusError) as large:
        client.files.create(file=("large", bytes(LARGE + 1)), purpose="assistants")
    with pytest.raises(openai.BadRequestError) as bad:
        client.files.create(file=("bad.jsonl", b"x\n" * 5_000_000), purpose="fine-tune")

    assert (large.value.status_code, large.value.code) == (413, "file_too_large")
    assert bad.value.code == "invalid_file" and "line 20" in str(bad.value)


def test_an_upload_is_checked_while_it_comes(client: openai.OpenAI, origin: Api):
    """A proxy that kept the whole file first would send none of it before its end."""
    writing = "SELECT count(*) FROM blob_chunks JOIN blobs ON blob_id = id WHERE state = 'writing'"

    def body() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        yield bytes(12 << 20)
        assert within(30, lambda: records.run_now(origin.settings, writing) > 0)
        yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants'
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"} | client.auth_headers
    answer = client._client.post(f"{client.base_url}files", content=body(), headers=kind)

    assert answer.status_code == 200, answer.text


def test_the_address_of_the_client_is_known_and_not_what_it_claims(
    client: openai.OpenAI, origin: Api
):
    lie = {"X-Forwarded-For": "203.0.113.7"}
    file = client.files.create(
        file=("train.jsonl", jsonl(10)), purpose="fine-tune", extra_headers=lie
    )

    query = "SELECT ip FROM audit_events WHERE target = :id"
    assert records.run_now(origin.settings, query, id=file.id) == CLIENT


def test_an_api_that_is_away_is_a_503_in_the_envelope(folder: Path):
    port, nobody = free_port(), f"http://127.0.0.1:{free_port()}"
    with running_nginx(folder, port=port, origin=nobody) as url:
        answer = httpx.get(f"{url}/v1/models", verify=trust(folder))

    assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
