"""Traces from a request to the steps of the run that it asked for; nothing, until configured.

FastAPI traces requests by itself, with the provider that is set here. A run's place in the trace of
its request is kept on the job's row, in W3C's form `traceparent`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Value = str | int | float | bool
_TRACEPARENT = TraceContextTextMapPropagator()


def configure(endpoint: str | None, *, service: str) -> Callable[[], None]:
    """Send spans to an OTLP endpoint over HTTP; return what sends the last ones and ends that.

    Raises:
        RuntimeError: an endpoint is set, and what sends is not installed.
    """
    if endpoint is None:
        return lambda: None
    try:
        sdk = import_module("app.tracing_sdk")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and OpenTelemetry is not installed:"
            " pip install 'basin[otel]', or unset it."
        ) from error
    stop: Callable[[], None] = sdk.start(endpoint, service=service)
    return stop


@contextmanager
def span(
    name: str, *, parent: str | None = None, attributes: Mapping[str, Value] | None = None
) -> Iterator[Span]:
    """Trace the block, under `parent` or what is being traced already."""
    tracer, context = trace.get_tracer("basin"), _context(parent)
    with tracer.start_as_current_span(
        name, context=context, attributes=dict(attributes or {})
    ) as found:
        yield found


def past_span(name: str, *, begin: float, end: float, attributes: Mapping[str, Value]) -> None:
    """Trace what is over; times are unix time in seconds."""
    past = trace.get_tracer("basin").start_span(
        name, start_time=_nanoseconds(begin), attributes=dict(attributes)
    )
    past.end(_nanoseconds(end))


def here() -> str | None:
    """Return what is being traced as a traceparent, to go on elsewhere."""
    carrier: dict[str, Any] = {}
    _TRACEPARENT.inject(carrier)
    return carrier.get("traceparent")


def _context(parent: str | None) -> Context | None:
    return None if parent is None else _TRACEPARENT.extract({"traceparent": parent})


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
