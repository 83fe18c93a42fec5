"""Structured logs: an event in the past tense, then fields."""

import logging
import sys
from typing import Literal

import structlog
from structlog.stdlib import ProcessorFormatter

LogFormat = Literal["auto", "json", "console"]
# Their own handlers write text; what a request was answered with is a line of ours.
THEIRS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


def configure(log_format: LogFormat = "auto") -> None:
    """Send events to stderr: coloured on a terminal, one JSON object a line elsewhere.

    What libraries log comes in the same form.
    """
    console = sys.stderr.isatty() if log_format == "auto" else log_format == "console"
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in THEIRS:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
