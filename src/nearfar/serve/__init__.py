"""A run as a service: an HTTP interface with its description, and a page to draw on.

In the order of a request: `guard` lets it in, `api` reads it (`bodies`), `batching` brings it together with others, `state`
answers from the run, `schemas` describes both sides. `service` holds the parts of one server, `app` makes the application,
`run` serves it.
"""

from nearfar.serve.run import serve
from nearfar.serve.settings import Settings

__all__ = ["Settings", "serve"]
