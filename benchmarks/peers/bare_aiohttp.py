"""A bare aiohttp server that answers a JSON POST: the limit of what Python on one core gives.

It prints ``ready`` and serves until its standard input ends.
"""

import argparse
import asyncio
import sys

import uvloop
from aiohttp import web


async def _noop(request: web.Request) -> web.Response:
    body = await request.json()
    return web.json_response({"echo": body["x"]})


async def _serve(port: int) -> None:
    app = web.Application()
    app.router.add_post("/", _noop)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
