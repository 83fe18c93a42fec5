"""Uploads that mean harm or are merely broken: each is taken whole, or refused with a sentence."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest
from sqlalchemy import func, select

from app.blobs import purge
from app.db import Database
from app.files.rows import MAX_LINE_BYTES
from app.tables import Blob, BlobChunk, File
from tests.conftest import MAX_FILE_BYTES, Api
from tests.factories import jsonl, to_jsonl

BOUNDARY = b"b0undary"
GOOD = jsonl(10)
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@dataclass(frozen=True)
class Hostile:
    """What is sent after ten good rows, unless `alone`; rows if taken, else what is told."""

    data: bytes
    rows: int | None = None
    told: str = ""
    alone: bool = False
    status: int = 400

    @property
    def body(self) -> bytes:
        return self.data if self.alone else GOOD + self.data


def taken(data: bytes, rows: int = 11, *, alone: bool = False) -> Hostile:
    return Hostile(data, rows=rows, alone=alone)


def refused(data: bytes, told: str, *, alone: bool = False, status: int = 400) -> Hostile:
    return Hostile(data, told=told, alone=alone, status=status)


def chat(*messages: object, **beside: object) -> bytes:
    return json.dumps({"messages": list(messages)} | beside).encode() + b"\n"


def text(content: str) -> bytes:
    """A row whose content stands in it as it is, escapes and all."""
    return b'{"messages": [{"role": "user", "content": "%s"}, %s]}\n' % (
        content.encode("utf-8", "surrogatepass"),
        json.dumps(ASSISTANT).encode(),
    )


def extra(value: str) -> bytes:
    """A good row with a number, or what looks like one, beside its messages."""
    return chat(USER, ASSISTANT)[:-2] + f', "extra": {value}}}\n'.encode()


def zipped(data: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.jsonl", data)
    return target.getvalue()


BOMB = b"\0" * (64 << 20)
LONGEST = b'{"text": "' + b"a" * (MAX_LINE_BYTES - 12) + b'"}\n'
TEXTS = to_jsonl([{"text": str(number)} for number in range(9)])

CONTENTS = {
    # Cut, empty, and not quite lines
    "truncated line": refused(chat(USER, ASSISTANT)[:-20], "line 11: not JSON"),
    "truncated in a character": refused(text("é")[:44], "line 11: not UTF-8"),
    "no last newline": taken(chat(USER, ASSISTANT)[:-1]),
    "empty file": refused(b"", "The file is empty", alone=True),
    "only newlines": refused(b"\n" * 5000, "The file is empty", alone=True),
    "only spaces and tabs": refused(b" \t \n" * 5000, "The file is empty", alone=True),
    "nine rows": refused(jsonl(9), "at least 10 are needed", alone=True),
    "blank lines between": taken(b"\n\n \r\n" + chat(USER, ASSISTANT)),
    "CRLF": taken(jsonl(11).replace(b"\n", b"\r\n"), alone=True),
    "CR alone ends no line": refused(
        jsonl(11).replace(b"\n", b"\r"), "line 1: not JSON", alone=True
    ),
    "CR between tokens": taken(chat(USER, ASSISTANT).replace(b": ", b":\r")),
    "two objects on a line": refused(b'{"text": "a"}{"text": "b"}', "line 11: not JSON"),
    "bytes after the end": refused(chat(USER, ASSISTANT)[:-1] + b"\x00\x00", "line 11: a NUL byte"),
    "one JSON array": refused(
        json.dumps([json.loads(row) for row in GOOD.splitlines()]).encode(),
        "line 1: not a JSON object",
        alone=True,
    ),
    "one JSON array over lines": refused(b"[\n" + GOOD + b"]\n", "line 1: not JSON", alone=True),
    "form feeds": refused(b"\x0c" + chat(USER, ASSISTANT), "line 11: not JSON"),
    # Encodings
    "BOM": taken(b"\xef\xbb\xbf" + jsonl(11), alone=True),
    "BOM in the middle": refused(b"\xef\xbb\xbf" + chat(USER, ASSISTANT), "line 11: not JSON"),
    "BOM and nothing else": refused(b"\xef\xbb\xbf", "The file is empty", alone=True),
    "UTF-16": refused(GOOD.decode().encode("utf-16"), "line 1: the file is UTF-16", alone=True),
    "UTF-16 without BOM": refused(
        GOOD.decode().encode("utf-16-le"), "line 1: a NUL byte", alone=True
    ),
    "UTF-32": refused(GOOD.decode().encode("utf-32"), "line 1: the file is UTF-16", alone=True),
    "Latin-1": refused(text("é").decode().encode("latin-1"), "line 11: not UTF-8 (byte 0xe9"),
    "overlong slash": refused(text("/").replace(b"/", b"\xc0\xaf"), "line 11: not UTF-8"),
    "emoji": taken(text("😀👩‍👩‍👧🏳️‍🌈")),
    "escaped emoji": taken(text(r"\ud83d\ude00")),
    "right-to-left override": taken(text("\u202egpj.exe")),
    "line separators": taken(text("a\u2028b\u2029c\u0085d")),
    "lone surrogate": refused(text(r"\ud800"), r"line 11: \ud800 alone is half a character"),
    "surrogates in the wrong order": refused(text(r"\ude00\ud83d"), r"line 11: \ude00 alone"),
    "encoded surrogate": refused(text("\ud800"), "line 11: not UTF-8"),
    "surrogate as a key": refused(extra(r'{"\udc00": 1}'), r"line 11: \udc00 alone"),
    "raw NUL": refused(text("a\0b"), "line 11: a NUL byte"),
    "escaped NUL": taken(text(r"a\u0000b")),
    "raw tab": refused(text("a\tb"), "line 11: not JSON (Invalid control character"),
    # Numbers
    "1e400": refused(extra("1e400"), "line 11: 1e400 is too large a number"),
    "-1e400 deep inside": refused(extra('[{"a": [-1E+400]}]'), "line 11: -1E+400 is too large"),
    "NaN": refused(extra("NaN"), "line 11: NaN is not JSON"),
    "Infinity": refused(extra("Infinity"), "line 11: Infinity is not JSON"),
    "-Infinity": refused(extra("-Infinity"), "line 11: -Infinity is not JSON"),
    "a million digits": refused(extra("9" * 1_000_000), "line 11: 99999999999999999999… is too"),
    "a million decimals": taken(extra("0." + "9" * 1_000_000)),
    "leading zero": refused(extra("01"), "line 11: not JSON"),
    "hexadecimal": refused(extra("0x10"), "line 11: not JSON"),
    # Keys and depth
    "a key twice": refused(extra('1, "extra": 2'), "line 11: the key 'extra' stands twice"),
    "messages twice": refused(extra('1, "messages": []'), "line 11: the key 'messages' stands"),
    "an escaped key twice": refused(extra(r'{"a": 1, "\u0061": 2}'), "the key 'a' stands twice"),
    "a role twice": refused(
        chat(USER, ASSISTANT).replace(b'"role": "user"', b'"role": "system", "role": "user"'),
        "line 11: the key 'role' stands twice",
    ),
    "prototype as a key": taken(extra('{"__proto__": {"admin": true}, "constructor": 1}')),
    "10,000 lists deep": refused(extra("[" * 10_000 + "]" * 10_000), "line 11: nested too deeply"),
    "10,000 objects deep": refused(
        extra('{"a":' * 10_000 + "1" + "}" * 10_000), "line 11: nested too deeply"
    ),
    "a million open lists": refused(b"[" * 1_000_000, "line 11: nested too deeply"),
    "150 deep": taken(extra("[" * 150 + "]" * 150)),
    "100,000 keys": taken(extra(json.dumps({str(n): n for n in range(100_000)}))),
    "100,000 messages": refused(chat(*[ASSISTANT] * 40_000), "line 11: message 2: two assistant"),
    # Size
    "longest line": taken(TEXTS + LONGEST, 10, alone=True),
    "line over the cap": refused(
        TEXTS + b" " + LONGEST + TEXTS, "line 10: longer than 2 MiB", alone=True
    ),
    "endless line": refused(
        b'{"text": "' + b"a" * (MAX_FILE_BYTES - 100), "line 1: longer", alone=True
    ),
    "over the file's cap": refused(b"\n" * MAX_FILE_BYTES, "larger than", status=413),
    "twenty thousand bad lines": refused(b"x\n" * 20_000, "line 20: not JSON", alone=True),
    # Archives under a false name
    "zip bomb": refused(zipped(BOMB), "line 1: the file is compressed (zip)", alone=True),
    "gzip": refused(gzip.compress(GOOD), "line 1: the file is compressed (gzip)", alone=True),
    "bzip2": refused(bz2.compress(GOOD), "line 1: the file is compressed (bzip2)", alone=True),
    "xz": refused(lzma.compress(GOOD), "line 1: the file is compressed (xz)", alone=True),
    "Parquet": refused(b"PAR1\x15\x04", "line 1: the file is a Parquet file", alone=True),
    "gzip after rows": refused(gzip.compress(b"x", mtime=0), "line 11: not UTF-8 (byte 0x8b"),
    "pickle": refused(b"\x80\x04\x95\x05\0\0\0\0\0\0\0cos\nsystem\n.", "line 1:", alone=True),
    # What templates, shells and browsers would read
    "Jinja": taken(text("{{ cycler.__init__.__globals__.os.popen('id').read() }}{% raw %}")),
    "Jinja in a role": refused(chat({"role": "{{ 7*7 }}", "content": ""}), "has the role '{{ 7*7"),
    "markup": taken(text("<script>alert(1)</script>")),
    "a role of 1 MB": refused(chat({"role": "x" * 1_000_000, "content": ""}), "has the role 'xxx"),
    "special tokens": taken(text("</s><|im_start|>system<|endoftext|>")),
    # Shapes
    "null": refused(b"null\n", "line 11: not a JSON object"),
    "a string": refused(b'"messages"\n', "line 11: not a JSON object"),
    "nothing known": refused(b"{}\n", 'line 11: needs "messages"'),
    "messages null": refused(b'{"messages": null}\n', 'line 11: "messages" must be a list'),
    "messages an object": refused(b'{"messages": {"0": {}}}\n', '"messages" must be a list'),
    "message null": refused(chat(None), "line 11: message 1 is not an object"),
    "message a list": refused(chat([]), "line 11: message 1 is not an object"),
    "role a list": refused(chat({"role": ["user"], "content": "x"}), "line 11: message 1 has the"),
    "role a number": refused(
        chat({"role": 1, "content": "x"}), "line 11: message 1 has the role 1"
    ),
    "role missing": refused(chat({"content": "x"}), "line 11: message 1 has the role None"),
    "content missing": refused(chat({"role": "user"}), "line 11: message 1 (user) needs"),
    "content a number": refused(chat({"role": "user", "content": 7}), "message 1 (user) needs"),
    "content an object": refused(chat({"role": "user", "content": {}}), "message 1 (user) needs"),
    "content no parts": refused(chat({"role": "user", "content": []}), "message 1 (user) needs"),
    "content an image": refused(
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT),
        "line 11: message 1 (user) needs",
    ),
    "content null": refused(chat(USER, ASSISTANT | {"content": None}), "message 2 (assistant)"),
    "content null with calls": taken(
        chat(USER, ASSISTANT | {"content": None, "tool_calls": [CALL]})
    ),
    "content null, no calls": refused(
        chat(USER, ASSISTANT | {"content": None, "tool_calls": []}), "message 2 (assistant)"
    ),
    "calls of a user": refused(chat(USER | {"tool_calls": [CALL]}), "only the assistant calls"),
    "calls a number": refused(chat(USER, ASSISTANT | {"tool_calls": 1}), '"tool_calls" must be'),
    "call a list": refused(
        chat(USER, ASSISTANT | {"tool_calls": [[]]}), "a tool call is an object"
    ),
    "call without function": refused(
        chat(USER, ASSISTANT | {"tool_calls": [{"function": None}]}), 'needs a "function"'
    ),
    "function name a list": refused(
        chat(USER, ASSISTANT | {"tool_calls": [{"function": {"name": []}}]}), 'needs a "function"'
    ),
    "tools a string": refused(chat(USER, ASSISTANT, tools="rm"), '"tools" must be a list'),
    "a million tools": refused(chat(USER, ASSISTANT, tools=[1] * 129), '"tools" must be a list'),
    "tool out of nowhere": refused(
        chat(USER, {"role": "tool", "content": "x"}, ASSISTANT), "must follow a tool call"
    ),
    "fifty thousand results of a call": taken(  # 1.7 MB; a look back from each took minutes
        chat(
            USER,
            {"role": "assistant", "tool_calls": [CALL]},
            *[{"role": "tool", "content": ""}] * 50_000,
            ASSISTANT,
        )
    ),
    "weight true": refused(chat(USER, ASSISTANT | {"weight": True}), '"weight" is 0 or 1'),
    "weight an object": refused(chat(USER, ASSISTANT | {"weight": {}}), '"weight" is 0 or 1'),
    "prompt a list": refused(b'{"prompt": [], "completion": "x"}\n', '"prompt" must be a string'),
    "completion null": refused(b'{"prompt": "", "completion": null}\n', '"completion" must be'),
    "label an object": refused(b'{"text": "x", "label": {}}\n', '"label" must be an integer'),
    "another format": refused(b'{"text": "x"}\n', "line 11: a text row in a chat file"),
    "keys of every format": taken(chat(USER, ASSISTANT, label={}, text=1, input=2, prompt=[])),
    "labels with NUL": taken(
        b"".join(b'{"text": "x", "label": "a\\u0000%d", "prompt": 1}\n' % n for n in range(10)),
        10,
        alone=True,
    ),
    "labels of 200 kB": taken(
        b"".join(b'{"text": "", "label": "%d%s"}\n' % (n, b"x" * 200_000) for n in range(10)),
        10,
        alone=True,
    ),
    "completions beside texts": taken(
        b'{"text": 5, "label": [], "input": 1, "prompt": "a", "completion": "b"}\n' * 10,
        10,
        alone=True,
    ),
    "preference without input": refused(
        b'{"input": [], "preferred_output": [], "non_preferred_output": []}\n',
        'line 11: "input" must be an object',
    ),
    "prompt by nobody": refused(
        b'{"messages": [{"role": [], "content": "x"}], "answer": 1}\n',
        "line 11: message 1 has the role []",
    ),
    "prompt in parts that are none": refused(
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}\n',
        'line 11: message 1 (user) needs "content"',
    ),
    "episode that is a list": refused(
        b'{"episode": [{"seed": 7}]}\n', 'line 11: "episode" must be an object'
    ),
    "episode with a seed beyond counting": refused(
        b'{"episode": {"seed": %b}}\n' % (b"9" * 5000), "too large a number"
    ),
}


def part(name: bytes, value: bytes, *, extra: bytes = b"") -> bytes:
    disposition = b'Content-Disposition: form-data; name="%s"%s' % (name, extra)
    return b"--%s\r\n%s\r\n\r\n%s\r\n" % (BOUNDARY, disposition, value)


def form(data: bytes, *, filename: bytes = b"train.jsonl", purpose: bytes = b"fine-tune") -> bytes:
    file = part(b"file", data, extra=b'; filename="%s"' % filename)
    return part(b"purpose", purpose) + file + b"--%s--\r\n" % BOUNDARY


def send(
    http: httpx.Client, body: bytes, *, content_type: bytes = b"multipart/form-data; boundary="
) -> httpx.Response:
    if content_type.endswith(b"boundary="):
        content_type += BOUNDARY
    return http.post("/files", content=body, headers=[(b"Content-Type", content_type)])


@pytest.fixture
async def nothing_is_left(db: Database) -> AsyncIterator[None]:
    """Compare what is stored before and after, once the sweep has been."""
    before = await stored(db)
    yield
    assert await stored(db) == before


async def stored(db: Database) -> tuple[int, ...]:
    await purge(db)
    async with db.transaction() as tx:
        counts = [await tx.scalar(select(func.count()).select_from(t)) for t in TABLES]
        unready = await tx.scalar(select(func.count()).where(Blob.state != "ready"))
    return (*map(int, counts), int(unready))


TABLES = (File, Blob, BlobChunk)


def is_told(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal, whose envelope is whole."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 10_000
    return str(error["message"])


@pytest.mark.parametrize("name", CONTENTS)
async def test_a_file_is_taken_whole_or_refused_with_a_sentence(
    name: str, http: httpx.Client, nothing_is_left: None
):
    hostile = CONTENTS[name]

    answer = send(http, form(hostile.body))

    if hostile.rows is None:
        assert hostile.told in is_told(answer, hostile.status)
        return
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["rows"], file["bytes"]) == (hostile.rows, len(hostile.body))
    assert http.get(f"/files/{file['id']}/content").content == hostile.body
    assert http.get(f"/files/{file['id']}/report").status_code == 200
    assert http.delete(f"/files/{file['id']}").status_code == 200


NAMES = {
    b"../../etc/passwd": "../../etc/passwd",
    b"..\\\\..\\\\boot.ini": "..\\..\\boot.ini",
    b"/etc/cron.d/x": "/etc/cron.d/x",
    b"$(reboot);`id`|x.jsonl": "$(reboot);`id`|x.jsonl",
    b"<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    b'x\\"; filename=\\"y': 'x"; filename="y',
    b"x%0d%0aSet-Cookie: a=b": "x%0d%0aSet-Cookie: a=b",
    "поезд 🚂.jsonl".encode(): "поезд 🚂.jsonl",
    b"": "",
    b"x" * 255: "x" * 255,
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20].decode())
async def test_a_name_is_only_ever_shown(name: bytes, http: httpx.Client, nothing_is_left: None):
    answer = send(http, form(GOOD, filename=name))

    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert file["filename"] == NAMES[name]
    content = http.get(f"/files/{file['id']}/content")
    assert content.headers["content-disposition"] == f'attachment; filename="{file["id"]}.jsonl"'
    assert "set-cookie" not in content.headers
    assert http.delete(f"/files/{file['id']}").status_code == 200


@pytest.mark.parametrize(
    "name",
    [b"a\0b.jsonl", b"x" * 256, b"x" * 4000, b"a\tb", b"a\x1b[31mb", b"a\x7f", "a\u202eb".encode()],
    ids=lambda name: repr(name[:20]),
)
async def test_a_name_that_cannot_be_shown_is_refused(
    name: bytes, http: httpx.Client, nothing_is_left: None
):
    assert is_told(send(http, form(GOOD, filename=name)), 400)


END = b"--%s--\r\n" % BOUNDARY
PURPOSE = part(b"purpose", b"fine-tune")
FILE = part(b"file", GOOD, extra=b'; filename="a"')
FORMS = {
    "no body": (b"", "ends early"),
    "no boundary in the body": (GOOD, "malformed"),
    "another boundary": (form(GOOD).replace(BOUNDARY, b"other"), "malformed"),
    "no end": (form(GOOD).removesuffix(END), "ends early"),
    "cut in a header": (form(GOOD)[:40], "ends early"),
    "no file": (PURPOSE + END, "'file'"),
    "no purpose": (FILE + END, "Invalid purpose None"),
    "two files": (PURPOSE + FILE + FILE + END, "two parts named 'file'"),
    "no name": (PURPOSE + FILE.replace(b'name="file"; ', b"") + END, "'file'"),
    "two purposes, the last bad": (PURPOSE + FILE + part(b"purpose", b"x") + END, "'x'"),
    "purpose with NUL": (form(GOOD, purpose=b"fine-tune\0"), "Invalid purpose"),
    "purpose not UTF-8": (form(GOOD, purpose=b"\xff"), "Invalid purpose"),
    "purpose too long": (form(GOOD, purpose=b"x" * (65 << 10)), "too long"),
    "a thousand fields": (part(b"x", b"y") * 1000 + PURPOSE + FILE + END, "more than 32 parts"),
    "a thousand headers": (
        PURPOSE + FILE.replace(b"\r\n", b"\r\nX-Header: 1" * 1000 + b"\r\n", 1) + END,
        "malformed",
    ),
    "a header of 1 MB": (
        PURPOSE + FILE.replace(b"\r\n", b"\r\nX: " + b"y" * 1_000_000 + b"\r\n", 1) + END,
        "malformed",
    ),
    "an injected header": (form(GOOD, filename=b"a\r\nX-Evil: 1\r\n\r\n{}"), ""),
    "a header with NUL": (PURPOSE + FILE.replace(b"Content-", b"Con\0tent-", 1) + END, "malformed"),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_form_that_is_a_trick_is_refused(
    name: str, http: httpx.Client, nothing_is_left: None
):
    body, told = FORMS[name]

    assert told in is_told(send(http, body), 400)


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="',
        b"multipart/form-data; boundary=" + b"x" * 5000,
        b"multipart/mixed; boundary=" + BOUNDARY,
        b"application/json",
        b"",
        b";;;=;",
        b"multipart/form-data; boundary=\xff\xfe",
    ],
)
async def test_a_content_type_that_is_none_is_refused(
    content_type: bytes, http: httpx.Client, nothing_is_left: None
):
    body = form(GOOD)

    answer = http.post("/files", content=body, headers=[(b"Content-Type", content_type)])

    assert is_told(answer, 400)


async def test_what_follows_the_end_is_no_part_of_the_file(
    http: httpx.Client, nothing_is_left: None
):
    file = send(http, form(GOOD) + b"more\r\n" + FILE).json()

    assert file["bytes"] == len(GOOD)
    assert http.delete(f"/files/{file['id']}").status_code == 200


async def test_a_file_without_hope_is_refused_before_its_end(
    http: httpx.Client, nothing_is_left: None
):
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        head, _, _ = form(b"x\n" * 40).rpartition(b"\r\n--")
        yield head
        for _ in range(40):
            sent += 1 << 20
            yield b"x\n" * (1 << 19)

    answer = http.post(
        "/files",
        content=body(),
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"},
    )

    assert "line 20: not JSON" in is_told(answer, 400), "not 413: the cap was never reached"
    assert sent > MAX_FILE_BYTES
    assert http.get("/models").status_code == 200


async def test_a_line_of_100_mb_is_refused_and_never_held(
    api: Api, http: httpx.Client, nothing_is_left: None
):
    process = psutil.Process(api.pid)
    largest = before = process.memory_info().rss

    def body() -> Iterator[bytes]:
        nonlocal largest
        yield form(b'{"text": "').rpartition(b"\r\n--")[0]
        for _ in range(100):
            largest = max(largest, process.memory_info().rss)
            yield b"a" * 1_000_000

    answer = http.post(
        "/files",
        content=body(),
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"},
    )

    assert "line 1: longer than 2 MiB" in is_told(answer, 400)
    assert largest - before < 40_000_000


async def test_other_purposes_take_what_is_no_rows(http: httpx.Client, nothing_is_left: None):
    data = gzip.compress(GOOD)

    file = send(http, form(data, purpose=b"assistants")).json()

    assert (file["rows"], file["bytes"]) == (None, len(data))
    assert http.delete(f"/files/{file['id']}").status_code == 200


def test_the_corpus_is_large():
    assert len(CONTENTS) + len(NAMES) + len(FORMS) >= 60
