"""`basin estimate`: what a job would take, asked of a server as any user asks it."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console

from app.estimates import shown

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT = httpx.Timeout(600, connect=5)  # a report on a large file takes its time
JOBS, FILES = "fine_tuning/jobs", "files"
FILE_ID = "file-"

Url = Annotated[
    str, typer.Option(envvar="BASIN_URL", help="Where the server is.", show_default=True)
]
ApiKey = Annotated[
    str, typer.Option(envvar="BASIN_API_KEY", help="A key to it that may submit jobs.")
]


def estimate(
    *,
    api_key: ApiKey,
    url: Url = DEFAULT_URL,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="Training data: file-… or a path to upload.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The base model.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="Validation data: file-… or a path to upload.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="lora, dora, full, …")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field, such as training.max_steps=100; repeatable."),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            dir_okay=False,
            help="A body in JSON to lay the rest over.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Say what a job would take, and submit nothing: basin estimate -m my-llama -f train.jsonl

    Steps, tokens, memory and time as ranges, the wait, and whether a worker can run it. Files of
    this machine are uploaded first, as the server reads them; their ids are told.
    Exits 1 when it fits no worker.
    """
    given = {"model": model, "training_file": file, "validation_file": validation}
    given["peft.method"] = method
    body = _body(from_, given, set_ or [])
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"}
    with httpx.Client(base_url=f"{base}/v1/", headers=headers, timeout=TIMEOUT) as server:
        for name in ("training_file", "validation_file"):
            if body.get(name) and not str(body[name]).startswith(FILE_ID):
                body[name] = _upload(server, Path(body[name]), name)
        found = _post(server, JOBS, params={"dry_run": "true"}, json=body)
    if as_json:
        print(json.dumps(found))
    else:
        Console().print(shown.estimate(found))
    if not found["fits"]["verdict"]:
        raise typer.Exit(1)


def _body(begin: Path | None, given: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    try:
        body = json.loads(begin.read_text(encoding="utf-8")) if begin else {}
    except ValueError as error:
        raise typer.BadParameter(f"{begin}: {error}", param_hint="--from") from error
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{begin} holds no JSON object.", param_hint="--from")
    for path, value in given.items():
        if value is not None:
            _put(body, path, value)
    for text in assignments:
        path, equals, value = text.partition("=")
        if not (path and equals):
            raise typer.BadParameter(f"{text!r} is no FIELD=VALUE.", param_hint="--set")
        _put(body, path, _value(value))
    return body


def _put(body: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        body = body.setdefault(group, {})
        if not isinstance(body, dict):
            raise typer.BadParameter(f"{group} has no fields, so {path} cannot be set.")
    body[name] = value


def _value(text: str) -> Any:
    """Read a value as JSON, or else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _upload(server: httpx.Client, path: Path, name: str) -> str:
    try:
        data = path.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint=name) from error
    with data:
        files = {"file": (path.name, data)}
        made = _post(server, FILES, files=files, data={"purpose": "fine-tune"})
    print(f"{path} is {made['id']}", file=sys.stderr)
    return str(made["id"])


def _post(server: httpx.Client, path: str, **options: Any) -> Any:
    try:
        answer = server.post(path, **options)
    except httpx.HTTPError as error:
        _fail(f"{server.base_url} cannot be reached: {error}. Say --url, or set BASIN_URL.")
    if answer.is_error:
        try:
            _fail(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            _fail(f"{server.base_url} answered {answer.status_code}, and not as Basin does.")
    return answer.json()


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(2)
