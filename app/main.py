"""The API: create_app(settings)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from fastapi_offline import FastAPIOffline

from app import health, limits, logs, metrics, openapi, tracing, web
from app.background import senders
from app.broker import Bell, make_celery
from app.comparisons import routes as comparisons
from app.dashboard import pages as dashboard
from app.db import connected
from app.environments import routes as environments
from app.files import routes as files
from app.graders import routes as graders
from app.integrations import routes as integrations
from app.jobs import routes as jobs
from app.jobs.shown import Showing
from app.jobs.stream import CHANNEL, Live
from app.keys import routes as keys
from app.keys.service import Door
from app.listen import listening
from app.metrics import Metrics
from app.models import routes as models
from app.observe import is_quiet
from app.organizations import operation
from app.organizations import routes as organizations
from app.permissions import routes as permissions
from app.previews import routes as previews
from app.previews.live import Previews
from app.previews.spec import TOLD
from app.rates import Buckets
from app.settings import ApiSettings
from app.stability import routes as stability
from app.streams import Streams
from app.uploads import routes as uploads
from app.vault import Vault
from app.webhooks import routes as webhooks
from app.workers import routes as workers

DESCRIPTION = """Fine-tuning that speaks OpenAI's API and trains LoRA-MGPO adapters on your
own machines.

Point `openai.OpenAI(base_url="http://…/v1", api_key="sk-…")` here."""

# Of OpenTelemetry, spans of requests: metrics are Prometheus's, and logs are lines.
TELEMETRY: TelemetryConfig = {
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "exclude": is_quiet,
}


def create_app(settings: ApiSettings) -> FastAPI:
    """Return the API as an ASGI application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stop_tracing = tracing.configure(settings.otlp_endpoint, service="basin-api")
        async with connected(settings.database_url, pool_size=10, max_overflow=0) as db:
            app.state.db, app.state.live, app.state.previews = db, Live(db), Previews(db)
            app.state.door = Door(db, pepper=settings.key_pepper.get_secret_value())
            app.state.showing = Showing.of(db)
            heard = {CHANNEL: app.state.live.heard, TOLD: app.state.previews.heard}
            async with (
                listening(settings.session_url, heard),
                senders(settings, db, app.state.vault),
            ):
                yield
            await app.state.previews.close()
        await app.state.buckets.close()
        await asyncio.to_thread(stop_tracing)

    # Offline: /docs serves its scripts itself, where FastAPI's would load them from a CDN.
    app = FastAPIOffline(
        title="Basin",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=TELEMETRY,
        redirect_slashes=False,  # a redirect would go where the Host header says
    )
    app.state.settings, app.state.metrics = settings, Metrics()
    app.state.vault = Vault(settings.sealing_keys)
    app.state.bell = Bell(make_celery(settings.redis_url))
    app.state.buckets = Buckets(settings.redis_url, per_minute=settings.requests_per_minute)
    app.state.streams = Streams(
        "uploads and downloads", per_key=settings.streams_per_caller, in_all=settings.streams
    )
    app.state.watchers = Streams(
        "event streams", per_key=settings.watchers_per_caller, in_all=settings.watchers
    )
    limits.install(app, timeout_s=settings.client_timeout_s)
    web.install(app)
    tenants = (organizations, operation, keys, webhooks, integrations)
    tuning = (jobs, stability, comparisons, permissions, graders, environments)
    for part in (*tuning, files, uploads, models, previews, workers, *tenants, health, metrics):
        app.include_router(part.router)
    openapi.install(app)
    dashboard.install(app)
    return app


def app_from_env() -> FastAPI:
    """Return the API with the environment's settings: what uvicorn's --factory calls."""
    settings = ApiSettings()
    logs.configure(settings.log_format)
    return create_app(settings)
