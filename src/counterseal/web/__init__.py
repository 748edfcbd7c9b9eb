"""The web side: one ASGI application over the services of a `Counterseal`."""

from counterseal.web.app import create_app

__all__ = ["create_app"]
