"""The options of ``headrace simulate`` that say what world is simulated; the command gets an `Asked`."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from headrace_autoscaler.configs import DemandConfig, KeepConfig
from headrace_autoscaler.simulate.world import WishTable

from headrace.cli.options import DEFAULT_DATA_DIR
from headrace.cli.simulate_world import SPOT_PART, START_S, SYNTHETIC_DAYS, Asked
from headrace.errors import UsageError


class Number(click.FloatRange):
    """A range of numbers; nan and inf, which ``float`` reads, are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises ``click.BadParameter``."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


MORE = Number(0, min_open=True)
NOT_LESS = Number(0)
COUNT = click.IntRange(0)
MOST_LATE_S, MOST_GOAL_S, MOST_SHARE = 1e6, 86400.0, 0.9999
"""As of the settings of the same names."""
FILE = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_TRACE: tuple[Decorator, ...] = (
    click.argument("trace", required=False, metavar="[TRACE]"),
    click.option("--from-history", is_flag=True, help="Take what this machine's platform has recorded."),
    click.option("--data-dir", metavar="DIR", help=f"Its data directory (default: {DEFAULT_DATA_DIR})."),
    click.option("--endpoint", metavar="NAME", help="Only requests to this endpoint."),
    click.option("--endpoint-column", metavar="NAME", help="The CSV's column with the endpoint's name."),
    click.option("--days", type=MORE, help=f"So many days (synthetic: {SYNTHETIC_DAYS:g}, else all)."),
    click.option("--from-day", type=NOT_LESS, default=0.0,
                 help="Count from the begin of this day; the first is 0."),
    click.option("--to-day", type=MORE, help="Count until the begin of this day."),
    click.option("--warm-up-days", type=NOT_LESS, default=7.0, show_default=True,
                 help="Of the days before --from-day the last so many are played and not counted."),
)  # fmt: skip
_SUPPLIES: tuple[Decorator, ...] = (
    click.option("--price", type=NOT_LESS, default=2.0, show_default=True,
                 help="Dollars per hour of one instance."),
    click.option("--start-seconds", type=MORE,
                 help=f"From launch to ready, +-10 % (default: {START_S:g}; of a history: as recorded)."),
    click.option("--min-billing", type=NOT_LESS, default=0.0, help="Seconds of each instance paid at least."),
    click.option("--home", type=COUNT, default=0, help="Instances that are owned; they are filled first."),
    click.option("--home-price", type=NOT_LESS, default=0.0, help="Dollars per hour of each, used or not."),
    click.option("--spot", type=FILE, multiple=True, help="Availability of spot in one zone; repeatable."),
    click.option("--spot-price", type=NOT_LESS, help=f"Dollars per hour (default: {SPOT_PART:g} x --price)."),
    click.option("--outage", "outages", metavar="FROM-UNTIL", multiple=True,
                 help="Hours since the first day that counts in which on demand fails; repeatable."),
    click.option("--timeout", type=MORE, help="Seconds of waiting after which a request is an error."),
    click.option("--queue-cap", type=COUNT, help="Requests that may wait per endpoint; more are errors."),
    click.option("--world", type=FILE, metavar="FILE", help="TOML with several providers, instead."),
)  # fmt: skip
_WISHES: tuple[Decorator, ...] = (
    click.option("--min", "least", type=COUNT, default=0, help="Instances at least."),
    click.option("--max", "most", type=click.IntRange(1), default=1000, help="Instances at most."),
    click.option("--idle-timeout", type=NOT_LESS, help="Seconds, for headrace (default: learnt)."),
    click.option("--concurrency", type=click.IntRange(1), default=1, help="Requests at once per instance."),
    click.option("--use-spot", type=click.Choice(["prefer", "never", "only"]), default="prefer"),
)
_OURS: tuple[Decorator, ...] = (
    click.option("--late-s", type=Number(0, MOST_LATE_S), metavar="SECONDS",
                 help="What a late request costs headrace, in seconds of an instance "
                 f"(default: {KeepConfig().late_s:g})."),
    click.option("--wait-goal", type=Number(0, MOST_GOAL_S, min_open=True), metavar="SECONDS",
                 help=f"Who waits for longer is late, for headrace (default: {DemandConfig().goal_s:g})."),
    click.option("--wait-share", type=Number(0, MOST_SHARE), metavar="SHARE",
                 help="So many shall not be late, for headrace; 0: --late-s alone decides "
                 f"(default: {KeepConfig().share:g})."),
)  # fmt: skip
_WORLDS_OWN = (
    "price", "start_seconds", "min_billing", "home", "home_price", "spot", "spot_price", "outages", "timeout",
    "queue_cap", "least", "most", "idle_timeout", "concurrency", "use_spot",
)  # fmt: skip
"""What a --world file says itself: given beside one they would be ignored, so they are refused."""


def world_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them as ``asked``."""

    @functools.wraps(function)
    def wrapper(*args: Any, from_history: bool, data_dir: str | None, **kwargs: Any) -> Any:
        context = click.get_current_context()
        given = [
            parameter.opts[0]
            for parameter in context.command.params
            if parameter.name in _WORLDS_OWN
            and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
        ]
        if kwargs["world"] is not None and given:
            raise UsageError(f"{given[0]} is said by the file of --world.", hint="Leave one of them out.")
        if from_history == (kwargs["trace"] is not None):
            raise UsageError(
                "say what to simulate: a TRACE or --from-history, one of them.",
                hint="`headrace simulate diurnal` needs nothing.",
            )
        where = data_dir or os.environ.get("HEADRACE_DATA_DIR") or DEFAULT_DATA_DIR
        history = Path(where).expanduser().absolute() if from_history else None
        names = ("least", "most", "idle_timeout", "concurrency", "use_spot")
        least, most, idle, concurrency, spot = (kwargs.pop(name) for name in names)
        if least > most:
            raise UsageError(f"--min {least} is more than --max {most}.")
        wish = WishTable(min=least, max=most, idle_timeout_s=idle, concurrency=concurrency, spot=spot)
        mine = {name: kwargs.pop(name) for name in Asked.__dataclass_fields__ if name in kwargs}
        return function(*args, asked=Asked(history=history, wish=wish, **mine), **kwargs)

    made: Callable[..., Any] = wrapper
    for option in reversed((*_TRACE, *_SUPPLIES, *_WISHES)):
        made = option(made)
    return made


def our_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the settings of our own policy."""
    for option in reversed(_OURS):
        function = option(function)
    return function
