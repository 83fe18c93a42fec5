"""Structured logs: an event in the past tense, then fields."""

import logging
import sys

import structlog


def configure() -> None:
    """Send events to stderr: coloured on a terminal, one JSON object a line elsewhere."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
