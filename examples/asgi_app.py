"""An ASGI app: any framework's app object works; this one needs no framework.

    headrace dev examples/asgi_app.py     # with `headrace up`: headrace deploy, and curl needs the key
    curl http://127.0.0.1:8700/e/api/time
    curl -d 'some text' http://127.0.0.1:8700/e/api/count

With a framework: ``app = headrace.endpoint(name="api")(FastAPI())``.
"""

import json
from datetime import UTC, datetime
from typing import Any

import headrace


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Tell the time at ``/time``, count the words of what is posted to ``/count``."""
    if scope["type"] != "http":
        return
    route = (scope["method"], scope["path"])
    if route == ("GET", "/time"):
        await _answer(send, 200, {"now": datetime.now(UTC).isoformat()})
    elif route == ("POST", "/count"):
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await _answer(send, 200, {"words": len(body.split()), "bytes": len(body)})
    else:
        await _answer(send, 404, {"error": "there are GET /time and POST /count"})


async def _answer(send: Any, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = headrace.endpoint(name="api")(application)
