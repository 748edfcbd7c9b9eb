"""create_app: the ASGI application, its routes and what stands around them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from counterseal.app import Counterseal
from counterseal.web.auth import AUTH_ROUTES, identify_caller, install_auth
from counterseal.web.boundary import Boundary
from counterseal.web.health import install_health
from counterseal.web.jobs import install_jobs
from counterseal.web.limits import ROUTES, RateLimitMiddleware
from counterseal.web.metrics import HttpMetrics, install_metrics
from counterseal.web.mount import Prefix
from counterseal.web.page import install_page
from counterseal.web.problems import install_problems
from counterseal.web.sessions import SessionMiddleware

REST_PATH = "/redis"
STATIC_PATH = "/static"


def create_app(seal: Counterseal, *, rest: ASGIApp | None = None) -> FastAPI:
    """The application over services that are open for as long as it serves.

    `rest` is the Redis REST server that appears at `/redis`; `open_redis_rest` makes it. No input or output happens
    here, and two applications share nothing.
    """
    registry = CollectorRegistry()
    app = FastAPI(
        title="counterseal",
        version=version("counterseal"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(Boundary, metrics=HttpMetrics(registry), mounts=(REST_PATH, STATIC_PATH)),
            Middleware(
                RateLimitMiddleware,
                seal=seal,
                routes={**ROUTES, **AUTH_ROUTES},
                identify=identify_caller(seal),
            ),
            Middleware(SessionMiddleware, seal=seal),
        ],
    )
    install_problems(app)
    install_auth(app, seal)
    install_health(app, seal)
    install_jobs(app, seal)
    install_metrics(app, seal, registry)
    install_page(app, seal, has_rest=rest is not None)
    app.mount(STATIC_PATH, StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    if rest is not None:
        app.router.routes.append(Prefix(REST_PATH, rest))
    return app
