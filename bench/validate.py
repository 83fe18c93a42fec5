"""How fast training files are checked, and in how much memory: the file is made on the fly."""

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from app.files.rows import RowChecker
from bench.result import JsonFile, Line, Target, alone, compared, report

PIECE_BYTES = 64 << 10  # what the server reads at once
BLOCK_BYTES = 256 << 10
MARK = b"@@@@@@"  # stands for the number of the block, which makes every row another one
WORDS = ("the", "model", "learns", "what", "an", "answer", "looks", "like", "from", "examples")
ONE_LINE = "one line"
FAST, LEAN = Target(sign="≥", bound=50), Target(sign="≤", bound=32)
KINDS = (
    "chat",
    "brief",
    "weights",
    "masked",
    "tiny",
    "short",
    "tools",
    "brief_tools",
    "unicode",
    "preference",
    "long",
)

Check = Callable[[Iterator[bytes]], int]


def main(
    megabytes: Annotated[int, typer.Option(help="Size of each file, in MB.")] = 512,
    kind: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(KINDS)}.")] = None,
    json_file: JsonFile = None,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Check a file of each kind in a process of its own; print speed and memory.

    Speed is MB per second of the check's CPU time, one thread; memory is what the peak rises above
    the process at rest. json.loads is a loop that splits lines and calls it, no more.
    """
    if child:
        print(json.dumps(measure(child, (kind or ["chat"])[0], megabytes * 10**6)))
        return
    lines = [line for name in kind or KINDS for line in _lines(name, megabytes)]
    refused = _in_child("check", ONE_LINE, megabytes)
    lines.append(alone("memory for one endless line", "MiB", [refused["mib"]], target=LEAN))
    report(lines, json_file, title=f"{megabytes} MB of each kind")


def _lines(kind: str, megabytes: int) -> Iterator[Line]:
    ours = _in_child("check", kind, megabytes)
    plain = _in_child("json", kind, max(megabytes // 8, 1))
    rows = f"{kind} rows of {ours['bytes'] / ours['rows']:,.0f} bytes"
    rates = {"ours": [ours["mb_s"]], "theirs": [plain["mb_s"]]}
    yield compared(f"{rows} checked", "MB/s", **rates, against="json.loads", target=FAST)
    yield alone(f"memory for {rows}", "MiB", [ours["mib"]], target=LEAN)


def measure(how: str, kind: str, size: int) -> dict[str, float]:
    """Run one check over about `size` bytes; CPU time of the check alone."""
    pieces = made(kind, size)
    spent = 0.0
    total = rows = 0
    feed, done = (_checking if how == "check" else _loading)()
    feed(b"")
    before = _peak_mib()
    for piece in pieces:
        began = time.process_time()
        feed(piece)
        spent += time.process_time() - began
        total += len(piece)
    rows = done()
    return {
        "bytes": total,
        "rows": rows,
        "mb_s": total / 1e6 / spent,
        "mib": _peak_mib() - before,
    }


def _checking() -> tuple[Callable[[bytes], None], Callable[[], int]]:
    checker = RowChecker()

    def done() -> int:
        problems = checker.finish()
        assert not problems or checker.given_up, problems
        return checker.rows

    return checker.feed, done


def _loading() -> tuple[Callable[[bytes], None], Callable[[], int]]:
    partial, rows = b"", 0

    def feed(data: bytes) -> None:
        nonlocal partial, rows
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            json.loads(line)
            rows += 1

    return feed, lambda: rows


def made(kind: str, size: int) -> Iterator[bytes]:
    """Yield a file in pieces as they come from a socket; numbered blocks of the same rows."""
    if kind == ONE_LINE:
        yield from [b'{"text": "', *[b"a" * PIECE_BYTES] * (size // PIECE_BYTES)]
        return
    draw = random.Random(0)
    block = b""
    while len(block) < BLOCK_BYTES:
        block += _line(kind, block.count(b"\n"), draw)
    sent, blocks, held = 0, 0, b""
    while sent < size:
        held += block.replace(MARK, b"%06d" % blocks)
        blocks += 1
        while len(held) >= PIECE_BYTES:
            yield held[:PIECE_BYTES]
            held = held[PIECE_BYTES:]
            sent += PIECE_BYTES
    yield held[: held.rfind(b"\n") + 1]


def _line(kind: str, number: int, draw: random.Random) -> bytes:
    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    question = _said(f"{number} @@@@@@: {text(40)}?")
    answer = {"role": "assistant", "content": text(60)}
    brief, short = _said(f"{number} @@@@@@?"), answer | {"content": text(3)}
    rows: dict[str, Callable[[], object]] = {
        "chat": lambda: {"messages": [question, answer]},
        "brief": lambda: {"messages": [brief, short]},
        "weights": lambda: {"messages": [brief, short | {"weight": 1}]},
        "masked": lambda: {"messages": [brief, short | {"weight": 0}, brief, short]},
        "tiny": lambda: {"text": f"{number}@@@@@@"},
        "short": lambda: {"text": f"{number} @@@@@@ {text(4)}", "label": number % 2},
        "tools": lambda: {"messages": [question, *_called(number), answer], "tools": [_TOOL]},
        "brief_tools": lambda: {"messages": [brief, *_called(number), short], "tools": [_TINY]},
        "unicode": lambda: {"messages": [question, answer | {"content": "é – „Straße“ 😀 " * 20}]},
        "preference": lambda: {
            "input": {"messages": [question]},
            "preferred_output": [answer],
            "non_preferred_output": [answer | {"content": text(50)}],
        },
        "long": lambda: {"prompt": f"@@@@@@ {text(4000)}", "completion": text(4000)},
    }
    return json.dumps(rows[kind](), ensure_ascii=number % 2 == 0).encode() + b"\n"


def _said(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
_TINY = {"type": "function", "function": {"name": "add"}}


def _called(number: int) -> list[dict[str, object]]:
    function = {"name": "add", "arguments": json.dumps({"a": number, "b": 2})}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": str(number + 2)},
    ]


def _in_child(how: str, kind: str, megabytes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.validate", "--child", how, "--kind", kind]
    done = subprocess.run(
        [*command, "--megabytes", str(megabytes)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
