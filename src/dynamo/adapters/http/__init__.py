"""``@api`` routes over HTTP: ``serve_http`` on a port of their own, ``http_application`` below a path of an
aiohttp application.
"""

from dynamo.core.errors import MissingExtraError

try:
    from dynamo.adapters.http.server import http_application, serve_http
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    raise MissingExtraError("HTTP routes need aiohttp: pip install 'dynamo-runtime-py[http]'") from error

__all__ = ["http_application", "serve_http"]
