"""The page at `/`: the health of the services, and what this server has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse

from counterseal.app import Counterseal
from counterseal.core.codec import JsonValue
from counterseal.health import HealthReport

_SERVICES: Final = {"redis": "Redis", "cache": "Cache", "jobQueue": "Job queue", "analytics": "Analytics"}
_ADDRESSES: Final = (
    ("/api/health/redis", "the health above, as JSON; 503 when something is unhealthy"),
    ("/health/live", "200 for as long as this process answers"),
    ("/health/ready", "200 when Redis and the database answer"),
    ("/metrics", "metrics for Prometheus"),
    ("/openapi.json", "a description of these addresses for programs"),
)


def install_page(app: FastAPI, seal: Counterseal, *, has_rest: bool) -> None:
    """Add `/`."""
    template = Template(files("counterseal.web").joinpath("templates", "root.html").read_text("utf-8"))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root(request: Request) -> HTMLResponse:
        report = await seal.health.check()
        base: str = request.scope.get("root_path", "")
        page = render_page(template, report, base=base, has_rest=has_rest)
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})


def render_page(template: Template, report: HealthReport, *, base: str, has_rest: bool) -> str:
    """The HTML of the page; `base` is the path below which the application is mounted.

    Everything that comes from a service or a request is escaped.
    """
    base = escape(base)
    body = report.body
    services = body["services"] if isinstance(body["services"], dict) else {}
    rows = [
        _row(f'<th scope="row">{escape(title)}</th>', _badge(service), escape("; ".join(_seen(service))))
        for name, title in _SERVICES.items()
        if isinstance(service := services.get(name), dict)
    ]
    addresses = [
        _row(f'<th scope="row"><a href="{base}{address}">{base}{address}</a></th>', escape(text))
        for address, text in _ADDRESSES
    ]
    if has_rest:
        addresses.append(_row(f'<th scope="row">{base}/redis</th>', "Redis over REST, for Upstash's clients"))
    return template.substitute(
        base=base,
        status="healthy" if report.healthy else "unhealthy",
        version=escape(version("counterseal")),
        services="\n".join(rows),
        addresses="\n".join(addresses),
        timestamp=escape(str(body["timestamp"])),
        duration=escape(str(body["responseTime"])),
    )


def _row(head: str, *cells: str) -> str:
    return f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _badge(service: Mapping[str, JsonValue]) -> str:
    status = escape(str(service["status"]))
    return f'<span class="{status}">{status}</span>'


def _seen(service: Mapping[str, JsonValue]) -> Iterable[str]:
    if error := service.get("error"):
        yield str(error)
    if "latency" in service:
        yield f"answered in {service['latency']} ms"
    if isinstance(operations := service.get("operations"), dict):
        yield ", ".join(f"{name} {'worked' if worked else 'failed'}" for name, worked in operations.items())
    if isinstance(stats := service.get("stats"), dict):
        counts = [row for row in stats.values() if isinstance(row, dict)]
        yield ", ".join(
            f"{sum(count for row in counts if isinstance(count := row.get(name), int))} {name}"
            for name in ("pending", "completed", "failed")
        )
    if "todayViews" in service:
        yield f"today {service['todayViews']} views, {service['todaySignatures']} signatures"
