"""`basin models`: base models of the server, and fine-tuned ones."""

from typing import Annotated

import typer
from rich.text import Text

from app.client import completion, words
from app.client.session import Session, talks

app = typer.Typer(help="Base models of the server, and your fine-tuned ones.", no_args_is_help=True)

ModelId = Annotated[
    str, typer.Argument(metavar="MODEL", help="Its name.", autocompletion=completion.models)
]


@app.command("list")
@talks
def list_models(
    *,
    session: Session,
    fine_tuned: Annotated[
        bool | None, typer.Option("--fine-tuned/--base", help="Only these; both when left out.")
    ] = None,
) -> None:
    """List what jobs can start from, and what they made."""
    models = [
        model
        for model in session.server.get("models")["data"]
        if fine_tuned in (None, model["id"].startswith("ft:"))
    ]
    rows = (
        (model["id"], model["task"], model["owned_by"], words.when(model["created"]))
        for model in models
    )
    session.show(
        {"object": "list", "data": models},
        words.table(("model", "task", "owned by", "created"), rows),
    )


@app.command("show")
@talks
def show_model(*, session: Session, model: ModelId) -> None:
    """Describe one model."""
    found = session.server.get(f"models/{model}")
    session.show(found, words.pairs((found | {"created": words.when(found["created"])}).items()))


@app.command("delete")
@talks
def delete_model(*, session: Session, model: ModelId) -> None:
    """Delete a fine-tuned model, with its adapter; its job stays."""
    receipt = session.server.delete(f"models/{model}")
    session.show(receipt, Text(f"{model} deleted"))
