"""What users name is reached only where it may be: never the inside, whatever a name says."""

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app import egress
from app.addresses import Inside, is_public
from app.egress import Answer, Unreachable
from tests.receiver import Receiver, receiving

OUTSIDE = Inside()
LOOPBACK = Inside.parse("127.0.0.0/8, ::1/128")
PLAIN_LOOPBACK = Inside.parse("http://127.0.0.0/8")

REFUSED = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.168.1.1", "198.18.0.1", "203.0.113.7",
    "224.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::a00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2001::1",
    "2002:7f00:1::", "2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
    "fec0::1", "ff02::1",
]  # fmt: skip


async def post(url: str, inside: Inside, *, timeout_s: float = 10.0, keep: int = 1024) -> Answer:
    return await egress.post(
        url, headers={}, body=b"{}", inside=inside, timeout_s=timeout_s, keep_bytes=keep
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(host="127.0.0.1") as found:
        yield found


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_of_the_internet_is_refused(address: str):
    assert not is_public(ipaddress.ip_address(address))
    assert not OUTSIDE.may_reach(ipaddress.ip_address(address), port=443, scheme="https")


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111"])
def test_a_public_address_may_be_reached_by_https_on_its_ports_alone(address: str):
    public = ipaddress.ip_address(address)

    assert OUTSIDE.may_reach(public, port=443, scheme="https")
    assert OUTSIDE.may_reach(public, port=8443, scheme="https")
    assert not OUTSIDE.may_reach(public, port=25, scheme="https")
    assert not OUTSIDE.may_reach(public, port=443, scheme="http")


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_an_allowed_network_is_reached_on_any_port_and_plainly_only_where_that_is_said(
    address: str,
):
    inside = ipaddress.ip_address(address)
    closed, plain = Inside.parse("10.1.0.0/16"), Inside.parse("http://10.1.0.0/16")

    assert closed.may_reach(inside, port=9000, scheme="https")
    assert not closed.may_reach(inside, port=9000, scheme="http")
    assert plain.may_reach(inside, port=9000, scheme="http")
    assert not plain.may_reach(ipaddress.ip_address("10.2.0.1"), port=443, scheme="https")


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost/hook",
        "https://127.0.0.1/hook",
        "https://2130706433/hook",
        "https://0x7f.1/hook",
        "https://[::1]/hook",
        "https://[::ffff:127.0.0.1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "http://8.8.8.8/hook",
        "https://8.8.8.8:22/hook",
        "https://no-such-host.invalid/hook",
    ],
)
async def test_what_may_not_be_reached_is_refused_before_and_while_sending(url: str):
    with pytest.raises(Unreachable):
        await egress.check(url, OUTSIDE)
    with pytest.raises(Unreachable):
        await post(url, OUTSIDE)


async def test_a_refusal_tells_no_address_of_the_inside():
    with pytest.raises(Unreachable) as refused:
        await egress.check("https://localhost/hook", OUTSIDE)

    assert "127.0.0.1" not in str(refused.value) and "::1" not in str(refused.value)


async def test_nothing_arrives_at_what_may_not_be_reached(receiver: Receiver):
    with pytest.raises(Unreachable):
        await post(receiver.url, LOOPBACK)

    assert not receiver.heard


async def test_an_allowed_host_is_asked_once_and_its_answer_cut(receiver: Receiver):
    receiver.answer = b"x" * 100_000

    answer = await post(receiver.url, PLAIN_LOOPBACK, keep=10)

    assert answer == Answer(200, b"x" * 10)
    (heard,) = receiver.heard
    assert heard.headers["host"] == receiver.url.split("/")[2] and heard.body == b"{}"


async def test_a_redirect_is_not_followed(receiver: Receiver):
    receiver.statuses, receiver.headers = [302], {"location": receiver.url}

    answer = await post(receiver.url, PLAIN_LOOPBACK)

    assert answer.status == 302 and len(receiver.heard) == 1


async def test_a_proxy_of_the_environment_is_not_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert (await post(receiver.url, PLAIN_LOOPBACK)).status == 200


async def test_who_does_not_answer_is_left_in_time(receiver: Receiver):
    receiver.going_on.clear()

    with pytest.raises(Unreachable, match="No answer within"):
        await post(receiver.url, PLAIN_LOOPBACK, timeout_s=0.5)


async def test_nobody_who_listens_is_an_error_that_says_so():
    with pytest.raises(Unreachable, match="ConnectError"):
        await post("http://127.0.0.1:1/hook", PLAIN_LOOPBACK)


async def test_one_private_address_among_others_is_enough_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
):
    names(monkeypatch, ["8.8.8.8", "10.0.0.1"])

    with pytest.raises(Unreachable, match="every address"):
        await post("https://both.example/hook", OUTSIDE)


async def test_a_name_is_asked_once_a_connection_so_that_a_second_answer_changes_nothing(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    asked = names(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    url = receiver.url.replace("127.0.0.1", "rebinding.example")

    assert (await post(url, PLAIN_LOOPBACK)).status == 200
    with pytest.raises(Unreachable):
        await post(url, PLAIN_LOOPBACK)

    assert asked == ["rebinding.example"] * 2 and len(receiver.heard) == 1


async def test_when_one_address_does_not_answer_the_next_one_is_tried(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    names(monkeypatch, ["127.0.0.9", "127.0.0.1"])

    answer = await post(receiver.url.replace("127.0.0.1", "two.example"), PLAIN_LOOPBACK)

    assert answer.status == 200


async def test_https_is_checked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server, authority = certificate(tmp_path, "localhost")
    trust(monkeypatch, authority)
    with receiving(host="127.0.0.1", name="localhost", tls=server) as receiver:
        named = await post(receiver.url, LOOPBACK)
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await post(receiver.url.replace("localhost", "127.0.0.1"), LOOPBACK)

    assert named.status == 200 and len(receiver.heard) == 1


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path):
    server, _ = certificate(tmp_path, "localhost")
    with (
        receiving(host="127.0.0.1", name="localhost", tls=server) as receiver,
        pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        await post(receiver.url, LOOPBACK)

    assert not receiver.heard


def names(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names have these addresses, one answer after the other; return who was asked for."""
    asked: list[str] = []
    left = list(answers)

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


def trust(monkeypatch: pytest.MonkeyPatch, authority: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    context = ssl.create_default_context()
    monkeypatch.setattr(egress, "_trust", lambda: context)


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate for a name, and what to trust for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    file, key_file = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return context, file
