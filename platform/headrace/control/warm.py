"""Which zygotes hosts shall hold: bases of endpoints used or deployed last, most recent first, bounded."""

from __future__ import annotations

from collections import OrderedDict

from headrace import wire
from headrace.control.claims import Claims, base_of
from headrace.control.model import Host, World
from headrace.sdk.spec import EndpointSpec

KEPT = 16
"""Plain bases; those with a loaded endpoint come on top, within the host's byte budget."""
KEPT_LOADED = 64


class Warm:
    """Remembers recent bases, and tells hosts when the set (not only its order) changed."""

    def __init__(self, world: World, claims: Claims, *, spares: int) -> None:
        self._world = world
        self._claims = claims
        self.spares = spares
        """Of each base where nothing else was decided."""
        self._recent: OrderedDict[wire.BaseSpec, None] = OrderedDict()
        self._wanted: tuple[tuple[wire.BaseSpec, int], ...] = ()
        self._sizes: dict[str, dict[wire.BaseSpec, int]] = {}
        """By host: spares of bases that were decided for it; all others have the setting's."""

    def seed(self, specs: list[tuple[EndpointSpec, int]]) -> None:
        """At start: specs with their versions, most recently changed first."""
        bases: dict[wire.BaseSpec, None] = {}
        for spec, version in specs:
            bases.setdefault(base_of(spec, version, self._world.secrets_of(spec)))
        for base in reversed(list(bases)[: KEPT + KEPT_LOADED]):
            self._use(base)
        self._compute()

    def use(self, spec: EndpointSpec, version: int) -> wire.BaseSpec:
        """A version is deployed or started; gives its base. Hosts that lack it are told at once."""
        base = base_of(spec, version, self._world.secrets_of(spec))
        new = base not in self._recent
        self._use(base)
        if new:
            self._compute()
            self.push()
        return base

    def forget(self, endpoint: str, keep: int | None = None) -> None:
        """An endpoint is gone, or only its version ``keep`` is wanted: let its loaded bases go.

        So do waiting containers that no version of any endpoint is for any more; zygotes of Python alone
        serve whoever comes next.
        """
        stale = [
            b for b in self._recent if b.loaded and b.loaded.endpoint == endpoint and b.loaded.version != keep
        ]
        dear = [b for b in self._recent if b.loaded is None and (b.image or b.runtime != "process")]
        if dear:
            used = self._used()
            stale += [base for base in dear if base not in used]
        for base in stale:
            del self._recent[base]
        if stale:
            self._compute()
            self.push()
            self._unreported(stale)

    def drop(self, base: wire.BaseSpec) -> None:
        """Its image could not be made: hosts forget it, and try anew when it is wanted again."""
        if base not in self._recent:
            return
        del self._recent[base]
        self._compute()
        self.push()
        self._unreported([base])

    def renew(self) -> None:
        """Secrets have new versions: bases that have loaded an old one are replaced; what runs goes on."""
        changed = False
        for base in [b for b in self._recent if b.loaded is not None and b.loaded.secrets]:
            assert base.loaded is not None
            endpoint = self._world.endpoints.get(base.loaded.endpoint)
            spec = endpoint.spec_of(base.loaded.version) if endpoint is not None else None
            if spec is not None and base_of(spec, base.loaded.version, self._world.secrets_of(spec)) != base:
                self._use(base_of(spec, base.loaded.version, self._world.secrets_of(spec)))
                changed = True
        if changed:
            self._compute()
            self.push()

    def push(self) -> None:
        """Tell all hosts what is new for them."""
        for host in self._world.living_hosts():
            self.push_to(host)

    def push_to(self, host: Host) -> None:
        """Tell one host, if it does not know yet."""
        sizes = self._sizes.get(host.id)
        wanted = self._wanted
        if sizes:
            wanted = tuple((base, sizes.get(base, spares)) for base, spares in wanted)
        self._claims.warm(host, wanted)

    def bases(self) -> list[wire.BaseSpec]:
        """Those that hosts shall hold, most wanted first."""
        return [base for base, _ in self._wanted]

    def size(self, host: Host, base: wire.BaseSpec) -> int:
        """Spares that the host shall have of a base."""
        return self._sizes.get(host.id, {}).get(base, self.spares)

    def resize(self, host: Host, base: wire.BaseSpec, count: int) -> None:
        """So many spares from now on, for as long as the base is wanted and the host lives."""
        self._sizes.setdefault(host.id, {})[base] = count
        self.push_to(host)

    def tidy(self) -> None:
        """Forget sizes of hosts and bases that are gone."""
        alive = {host.id for host in self._world.living_hosts()}
        self._sizes = {
            id: {base: count for base, count in sizes.items() if base in self._recent}
            for id, sizes in self._sizes.items()
            if id in alive
        }

    def _unreported(self, bases: list[wire.BaseSpec]) -> None:
        """Hosts let them go without a word: what they told of them before is true no more."""
        for host in self._world.living_hosts():
            for base in bases:
                host.warm.pop(base, None)

    def _used(self) -> set[wire.BaseSpec]:
        """Of all versions that are current, on trial, or called by their number."""
        return {
            base_of(spec, 0, ())
            for endpoint in self._world.endpoints.values()
            if not endpoint.deleting
            for spec in (
                *([endpoint.spec] if endpoint.version is not None else []),
                *endpoint.trials.values(),
                *(pin.spec for pin in endpoint.pins.values()),
            )
            if spec.snapshot != "loaded"
        }

    def _use(self, base: wire.BaseSpec) -> None:
        if base.loaded is not None:
            # Of a version there is one: another differs by the secrets that it has seen.
            who = (base.loaded.endpoint, base.loaded.version)
            for old in [b for b in self._recent if b.loaded and (b.loaded.endpoint, b.loaded.version) == who]:
                if old != base:
                    del self._recent[old]
        self._recent[base] = None
        self._recent.move_to_end(base)
        for loaded, bound in ((False, KEPT), (True, KEPT_LOADED)):
            kind = [b for b in self._recent if (b.loaded is not None) is loaded]
            for old in kind[: max(0, len(kind) - bound)]:
                del self._recent[old]

    def _compute(self) -> None:
        self._wanted = tuple((base, self.spares) for base in reversed(self._recent))
