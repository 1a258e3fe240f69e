"""The client's management half: deployments, endpoints, nodes, logs. JSON in and out, as the API has it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from headrace.errors import ControlAway, DeadlineExceeded, EndpointFailed, NotFound, NotRunning

if TYPE_CHECKING:
    from headrace.sdk.inspect import Inspection
    from headrace.sdk.transport import Reply

Doc = dict[str, Any]
POLL_S = 10.0
PROGRESS_S = 1.0
"""The same for somebody who watches."""
AWAY_S = 90.0
"""A platform that is away for longer than a restart takes is not waited for."""
AWAY_TOLD_S = 10.0
"""While it is away, so often is said that it is waited for."""
AWAY_POLL_S = 0.2
"""A long poll asks the platform to wait this long."""
UPLOAD_TIMEOUT_S = 120.0


class Management:
    """Methods on ``/api/v1``; all raise `headrace.errors.RequestError` or ``NotRunning``."""

    def _manage(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json: Any = None,
        body: bytes | None = None,
        timeout: float = 30.0,
    ) -> Reply:
        raise NotImplementedError

    # -- deployments -----------------------------------------------------------------------

    def deploy(
        self,
        source: str | os.PathLike[str] | Inspection,
        *,
        verify: bool = True,
        on_progress: Callable[[Doc], None] | None = None,
        timeout: float = 900.0,
        check: bool = True,
    ) -> Doc:
        """Bundle, send and start the endpoints of a file; wait until they are ready or have failed.

        The file is imported in a fresh process. ``verify``: start an instance of each before it takes
        requests. ``on_progress`` gets the deployment's document whenever it changes, and with ``away`` (a
        text) while no answer comes. Raises ``BundleError`` and ``SpecError`` before anything is sent;
        ``EndpointFailed`` with the reason and, in ``extra["deployment"]``, everything known, unless
        ``check`` is False; ``DeadlineExceeded``.
        """
        from headrace.sdk.inspect import Inspection, inspect_fresh  # noqa: PLC0415 - only to deploy

        if isinstance(source, Inspection):
            return self._deploy(source, verify, on_progress, timeout, check)
        with tempfile.TemporaryDirectory(prefix="headrace-bundle-") as folder:
            return self._deploy(inspect_fresh(source, folder), verify, on_progress, timeout, check)

    def _deploy(
        self,
        inspection: Inspection,
        verify: bool,
        on_progress: Callable[[Doc], None] | None,
        timeout: float,
        check: bool,
    ) -> Doc:
        for file in (inspection.bundle, *inspection.contexts):
            self.put_bundle(Path(file.path), file.sha256)
        request = {"specs": [msgspec.to_builtins(spec) for spec in inspection.specs], "verify": verify}
        started = _doc(self._manage("POST", "/deployments", json=request, timeout=60.0))
        return self.wait_deployment(started, on_progress=on_progress, timeout=timeout, check=check)

    def put_bundle(self, path: Path, sha256: str) -> bool:
        """Send a bundle unless the platform has it; whether it was sent."""
        target = f"/bundles/{sha256}"
        known = self._manage("HEAD", target)
        if known.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            # An answer to HEAD has no body: another question says what is wrong, or waits until it is over.
            known.close()
            self.status()
            known = self._manage("HEAD", target)
        if known.status == NotFound.status:
            known.close()
            _doc(self._manage("PUT", target, body=path.read_bytes(), timeout=UPLOAD_TIMEOUT_S))
            return True
        known.raise_for_problem()
        known.close()
        return False

    def wait_deployment(
        self,
        deployment: Doc,
        *,
        on_progress: Callable[[Doc], None] | None = None,
        timeout: float = 900.0,
        check: bool = True,
    ) -> Doc:
        """Follow a deployment (of `deploy` or `rollback`) until it ends; see `deploy`."""
        until = time.monotonic() + timeout
        shown: Doc | None = None
        away = told = 0.0
        while True:
            if on_progress is not None and not away and deployment != shown:
                on_progress(deployment)
                shown = deployment
            if deployment["state"] != "running":
                break
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"the deployment is not done after {timeout:g} s; it goes on.", deployment=deployment
                )
            wait = min(POLL_S if on_progress is None else PROGRESS_S, left)
            try:
                reply = self._manage(
                    "GET",
                    f"/deployments/{deployment['id']}",
                    query={"wait": round(wait, 1)},
                    timeout=wait + 30.0,
                )
                deployment = _doc(reply)
            except (ControlAway, NotRunning):
                # A restart is waited for; the deployment goes on after it.
                away = away or time.monotonic()
                if time.monotonic() >= min(until, away + AWAY_S):
                    raise
                if on_progress is not None and time.monotonic() >= told:
                    told = time.monotonic() + AWAY_TOLD_S
                    wait = away + AWAY_S - time.monotonic()
                    words = f"the platform does not answer; waiting for it, {wait:.0f} s at most"
                    on_progress({**deployment, "away": words})
                    shown = None
                time.sleep(AWAY_POLL_S)
            else:
                away = told = 0.0
        if check and deployment["state"] == "failed":
            raise _failure(deployment)
        return deployment

    def cancel_deployment(self, id: str) -> Doc:
        """Give up what of a deployment is not current yet; what runs already stays."""
        return _doc(self._manage("DELETE", f"/deployments/{quote(id, safe='')}"))

    # -- endpoints -------------------------------------------------------------------------

    def endpoints(self) -> list[Doc]:
        """All endpoints, with their states."""
        return self._all("/endpoints")

    def endpoint(self, name: str) -> Doc:
        """One endpoint: state, spec, versions, instances, last decisions, what it waits for."""
        return _doc(self._manage("GET", f"/endpoints/{quote(name, safe='')}"))

    def openapi(self, name: str) -> Doc:
        """The endpoint's OpenAPI document."""
        return _doc(self._manage("GET", f"/endpoints/{quote(name, safe='')}/openapi.json"))

    def delete(self, name: str) -> None:
        """Remove an endpoint; its instances finish what they work on."""
        _doc(self._manage("DELETE", f"/endpoints/{quote(name, safe='')}"))

    def scale(
        self, name: str, *, min: int | None = None, max: int | None = None, to: int | None = None
    ) -> Doc:
        """Change the bounds, or (``to``) the number of instances now; 0 releases the idle ones."""
        wish = {"min": min, "max": max, "to": to}
        given = {key: value for key, value in wish.items() if value is not None}
        return _doc(self._manage("POST", f"/endpoints/{quote(name, safe='')}/scale", json=given))

    def rollback(
        self,
        name: str,
        version: int | None = None,
        *,
        on_progress: Callable[[Doc], None] | None = None,
        timeout: float = 900.0,
    ) -> Doc:
        """Go back to a version (default: the one before), and wait; see `deploy`."""
        wish = {} if version is None else {"version": version}
        started = _doc(
            self._manage("POST", f"/endpoints/{quote(name, safe='')}/rollback", json=wish, timeout=60.0)
        )
        return self.wait_deployment(started, on_progress=on_progress, timeout=timeout)

    def logs(
        self, name: str, *, follow: bool = False, instance: str | None = None, limit: int = 1000
    ) -> Iterator[Doc]:
        """Log lines, oldest first; with ``follow`` it goes on for ever."""
        cursor: str | None = None
        path = f"/endpoints/{quote(name, safe='')}/logs"
        while True:
            query = {
                "cursor": cursor,
                "limit": limit,
                "instance": instance,
                "wait": POLL_S if follow else None,
            }
            page = _doc(self._manage("GET", path, query=query, timeout=POLL_S + 30.0))
            yield from page["items"]
            done = not page["items"] or page.get("next") in (None, cursor)
            cursor = page.get("next") or cursor
            if done and not follow:
                return

    # -- the platform ----------------------------------------------------------------------

    def status(self) -> Doc:
        """Version, epoch, and the numbers of gateways, hosts, endpoints and instances."""
        return _doc(self._manage("GET", "/status", timeout=10.0))

    def instances(self) -> list[Doc]:
        """All instances."""
        return self._all("/instances")

    def hosts(self) -> list[Doc]:
        """All hosts."""
        return self._all("/hosts")

    def runtimes(self) -> list[Doc]:
        """The runtimes of the hosts: where each is, what it can do there, and why not."""
        return self._all("/runtimes")

    def nodes(self) -> list[Doc]:
        """All nodes that providers launched."""
        return self._all("/nodes")

    def providers(self) -> list[Doc]:
        """The providers found on the platform."""
        return self._all("/providers")

    def add_nodes(self, provider: str = "local", count: int = 1, **wish: Any) -> list[Doc]:
        """Launch nodes; ``wish``: ``cpu``, ``memory``, ``gpu``, ``labels``."""
        given = {name: value for name, value in wish.items() if value is not None}
        doc = _doc(
            self._manage(
                "POST", "/nodes", json={"provider": provider, "count": count, **given}, timeout=120.0
            )
        )
        items: list[Doc] = doc["items"] if isinstance(doc, dict) else doc
        return items

    def remove_node(self, node: str) -> Doc:
        """Drain and terminate a node; the node. Its state is ``removed`` when there was nothing to drain."""
        return _doc(self._manage("DELETE", f"/nodes/{quote(node, safe='')}", timeout=120.0))

    # -- keys ------------------------------------------------------------------------------

    def keys(self) -> list[Doc]:
        """All API keys, without the keys themselves. Needs the scope ``admin``, as do the two below."""
        return self._all("/keys")

    def create_key(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("invoke",),
        endpoints: Sequence[str] = (),
        requests_per_s: float | None = None,
        burst: int | None = None,
    ) -> Doc:
        """A new API key; ``key`` of the answer is shown this once only.

        Without ``endpoints`` it may call all. ``requests_per_s`` holds per gateway process.
        """
        body: Doc = {"name": name, "scopes": list(scopes), "endpoints": list(endpoints)}
        if requests_per_s is not None:
            body["rate_limit"] = {"requests_per_s": requests_per_s, "burst": burst}
        return _doc(self._manage("POST", "/keys", json=body))

    def revoke_key(self, id: str) -> None:
        """Refuse the key from now on; what runs under it goes on."""
        _doc(self._manage("DELETE", f"/keys/{quote(id, safe='')}"))

    # -- secrets ---------------------------------------------------------------------------

    def secrets(self) -> list[Doc]:
        """All secrets, without their values: those are never told."""
        return self._all("/secrets")

    def set_secret(self, name: str, value: str) -> Doc:
        """Store a secret, or a new version of it; new instances of endpoints that name it get this one."""
        return _doc(self._manage("PUT", f"/secrets/{quote(name, safe='')}", json={"value": value}))

    def delete_secret(self, name: str) -> Doc:
        """Delete a secret that no endpoint uses."""
        return _doc(self._manage("DELETE", f"/secrets/{quote(name, safe='')}"))

    def rotate_secrets_key(self) -> int:
        """Seal all secrets with a new key; how many. Needs the scope ``admin``."""
        return int(_doc(self._manage("POST", "/secrets/rotate-key"))["sealed"])

    def _all(self, path: str) -> list[Doc]:
        found: list[Doc] = []
        cursor: str | None = None
        while True:
            page = _doc(self._manage("GET", path, query={"limit": 1000, "cursor": cursor}))
            found += page["items"]
            following = page.get("next")
            if not following or following == cursor:
                return found
            cursor = following


def _doc(reply: Reply) -> Doc:
    reply.raise_for_problem()
    body = reply.body
    return msgspec.json.decode(body) if body else {}


def _failure(deployment: Doc) -> EndpointFailed:
    failed = [item for item in deployment.get("endpoints", []) if item.get("state") == "failed"]
    what = "; ".join(f"{item.get('endpoint')}: {item.get('detail') or 'failed'}" for item in failed)
    return EndpointFailed(f"the deployment failed: {what or 'no reason given'}", deployment=deployment)
