"""Credentials of HTTP models: from the environment, into one header, and nowhere else.

``RAYBENCH_HTTP_TOKEN_API_EXAMPLE_COM`` is for the host api.example.com alone, and goes before
``RAYBENCH_HTTP_TOKEN``, which is for every host. An empty one of a host keeps the other from it.
"""

import base64
import os
import re

from raybench.core.errors import SpecError

__all__ = ["TOKEN", "auth_header", "credential", "token_names"]

TOKEN = "RAYBENCH_HTTP_TOKEN"
"""Environment variable with the credential; with _HOST_NAME behind it, of that host alone."""


def token_names(host: str) -> tuple[str, str]:
    """Return the environment variables that may hold the credential of `host`, the first first."""
    return f"{TOKEN}_{re.sub('[^A-Za-z0-9]', '_', host).upper()}", TOKEN


def credential(host: str) -> str:
    """Return the credential for `host`, or '' where there is none.

    Raises:
        SpecError: it holds what no HTTP header can; its value is not shown.
    """
    for name in token_names(host):
        value = os.environ.get(name)
        if value is not None:
            value = value.strip()
            if not value.isascii() or not value.isprintable():
                raise SpecError(f"{name} holds letters that no HTTP header can; check its value")
            return value
    return ""


def auth_header(auth: str, secret: str) -> dict[str, str]:
    """Return the header that carries `secret`: "bearer", "basic" (user:password), or a name."""
    if not secret:
        return {}
    if auth == "bearer":
        return {"Authorization": f"Bearer {secret}"}
    if auth == "basic":
        return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
    return {auth: secret}
