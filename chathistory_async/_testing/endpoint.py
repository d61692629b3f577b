"""Finds the engine that a test run uses."""

from __future__ import annotations

import http.client
import json
import os

_VARIABLES = ("CHATHISTORY_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL")
_LOCALSTACK_PORT = 4566
# LocalStack answers at once, unless something else has its port.
_ANSWER_SECONDS = 2.0


def endpoint_in_environment() -> str | None:
    """Return the endpoint that an environment variable names, or None."""
    return next(filter(None, map(os.environ.get, _VARIABLES)), None)


def localstack_url() -> str:
    """Return where LocalStack is if it runs: at LOCALSTACK_HOST, or else on port 4566 of this host."""
    name, _, port = os.environ.get("LOCALSTACK_HOST", "").partition(":")
    # An address, because asyncio looks names up in threads.
    host = "127.0.0.1" if name in ("", "localhost", "localhost.localstack.cloud") else name
    return f"http://{host}:{port or _LOCALSTACK_PORT}"


def running_localstack() -> str | None:
    """Return the URL of LocalStack if it runs with DynamoDB, or else None."""
    url = localstack_url()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/_localstack/health")
        state = json.load(connection.getresponse())["services"].get("dynamodb")
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError, AttributeError):
        # Nothing is there, or something else.
        return None
    finally:
        connection.close()
    return url if state in ("available", "running") else None
