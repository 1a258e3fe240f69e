"""The way to PostgreSQL: a bounded pool, retries within a budget, migrations; no password in any message."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
)

from headrace.errors import BadRequest, DataDirError, RequestError, SettingsError
from headrace.jobs.sql import load_migrations
from headrace.jobs.store import StoreUnavailable
from headrace.jobs.text import masked

T = TypeVar("T")
Connection = Any
"""asyncpg's connections are not typed."""

POOL_SIZE = 10
RETRY_BUDGET_S = 8.0
"""A call that began so long ago is not tried again. Clients give up after 10 s."""
STATEMENT_S = 5.0
CONNECT_S = 3.0
CLOSE_S = 5.0
MIGRATION_LOCK = 0x68656164
_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS headrace;
CREATE TABLE IF NOT EXISTS headrace.migrations (
    number integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
"""
_PLATFORM = """
CREATE TABLE headrace.platform (one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL);
COMMENT ON TABLE headrace.platform IS 'Whose jobs these are: another one would run or end them as its own.';
"""
_SESSION = {
    "application_name": "headrace",
    "statement_timeout": f"{STATEMENT_S * 1000:.0f}",
    "lock_timeout": f"{STATEMENT_S * 1000:.0f}",
    "idle_in_transaction_session_timeout": "10000",
    # What was acknowledged survives a power cut, whatever the role's default is.
    "synchronous_commit": "on",
    # Plans are made while tables are small and kept while they grow. Every statement here has its index:
    # these keep the planner from scanning or sorting a queue of 100,000.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_TRANSIENT = (
    OSError,  # TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    asyncpg.exceptions.InternalClientError,
    asyncpg.InterfaceError,
)
_REFUSED = (
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.InvalidCatalogNameError,
    asyncpg.exceptions.InsufficientPrivilegeError,
)
_VALUE = (
    asyncpg.exceptions.DataError,
    asyncpg.exceptions.ProgramLimitExceededError,
    UnicodeError,
)


def transient(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment: the connection, the server's state, a lock."""
    return isinstance(error, _TRANSIENT) and not isinstance(error, asyncpg.exceptions.DataError | ValueError)


class Link:
    """The pool. Make it with `connect`."""

    def __init__(self, pool: Any, dsn: str, budget_s: float) -> None:
        self.pool = pool
        self.where = masked(dsn)
        self._dsn = dsn
        self._budget_s = budget_s
        self._closed = False

    async def run(self, work: Callable[[Connection, bool], Awaitable[T]], *, retry: bool = True) -> T:
        """Do ``work(connection, repeated)``, again after a lost connection, within the budget.

        ``repeated``: an earlier try may have been committed. Raises `StoreUnavailable`, or `BadRequest` for a
        value that PostgreSQL does not take.
        """
        if self._closed:
            raise StoreUnavailable("the job store is closed.", hint="The gateway is stopping; try again.")
        try:
            async for attempt in _retrying(self._budget_s if retry else 0.0):
                with attempt:
                    async with self.pool.acquire(timeout=CONNECT_S) as connection:
                        return await work(connection, attempt.retry_state.attempt_number > 1)
        except RequestError:
            raise
        except Exception as error:
            told = self.told(error)
            if told is error:
                raise
            raise told from None
        raise AssertionError("a retry ends with a value or an error")

    async def listen(
        self, channel: str, callback: Callable[[str], None], lost: Callable[[], None]
    ) -> Connection:
        """A connection of its own that hears a channel; ``lost`` is called once when it ends."""
        connection = await asyncpg.connect(self._dsn, timeout=CONNECT_S, server_settings=_SESSION)
        connection.add_termination_listener(lambda _: lost())
        await connection.add_listener(channel, lambda *args: callback(str(args[3])))
        return connection

    async def close(self) -> None:
        """Close all connections, within `CLOSE_S`."""
        self._closed = True
        try:
            await asyncio.wait_for(self.pool.close(), CLOSE_S)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.pool.terminate()

    def told(self, error: Exception) -> Exception:
        """The error as callers see it: only PostgreSQL's code, its own words may hold what was stored.

        Our own mistakes stay what they are.
        """
        code = getattr(error, "sqlstate", None) or type(error).__name__
        if transient(error) or isinstance(error, _REFUSED):
            return StoreUnavailable(f"{self.where} does not answer ({code}).", hint="Try again in a moment.")
        if isinstance(error, _VALUE):
            return BadRequest(f"the job store cannot keep this text ({code}).", hint="Unicode without NUL.")
        return error


async def connect(
    dsn: str, *, platform: str = "", budget_s: float = RETRY_BUDGET_S, pool_size: int = POOL_SIZE
) -> Link:
    """Connect and bring the schema up to date. TLS is what the DSN says (``sslmode``, ``sslrootcert``, ...).

    The database belongs to the first ``platform`` (if not empty) that opens it. Raises `SettingsError` (the
    DSN, the password, another platform's database), `DataDirError` (a newer schema), `StoreUnavailable`.
    """
    where = masked(dsn)
    pool: Any = None
    try:
        async for attempt in _retrying(budget_s):
            with attempt:
                pool = await asyncpg.create_pool(
                    dsn,
                    min_size=1,
                    max_size=pool_size,
                    timeout=CONNECT_S,
                    command_timeout=STATEMENT_S + 1.0,
                    max_inactive_connection_lifetime=60.0,
                    server_settings=_SESSION,
                )
                await _migrate(pool, platform)
                return Link(pool, dsn, budget_s)
    except (DataDirError, SettingsError):
        raise
    except ssl.SSLError as error:
        raise SettingsError(
            f"--store {where}: no TLS ({type(error).__name__}).",
            hint="Check sslmode and sslrootcert, and the server's certificate.",
        ) from None
    except (ValueError, asyncpg.exceptions.ClientConfigurationError) as error:
        raise SettingsError(
            f"--store {where} is not understood ({type(error).__name__}).",
            hint="Write postgresql://user@host:5432/database.",
        ) from None
    except _REFUSED as error:
        raise SettingsError(
            f"--store {where}: PostgreSQL refuses ({error.sqlstate}, {type(error).__name__}).",
            hint="Check user, password, database, and that the user may create a schema.",
        ) from None
    except _TRANSIENT as error:
        code = getattr(error, "sqlstate", None) or type(error).__name__
        raise StoreUnavailable(
            f"{where} does not answer ({code}).", hint="Is PostgreSQL running, and is the address right?"
        ) from None
    raise AssertionError("a retry ends with a value or an error")


async def _migrate(pool: Any, platform: str) -> None:
    """Apply what is missing, one gateway at a time, all or nothing."""
    try:
        async with pool.acquire(timeout=CONNECT_S) as connection, connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 0")
            await connection.execute("SET LOCAL lock_timeout = '60s'")
            await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK, timeout=60.0)
            if not await connection.fetchval("SELECT to_regclass('headrace.migrations') IS NOT NULL"):
                await connection.execute(_SCHEMA)
            await _apply(connection, load_migrations("postgres"))
            if platform:
                await _claim(connection, platform)
    except BaseException:
        pool.terminate()
        raise


async def _apply(connection: Connection, migrations: Sequence[str]) -> None:
    have = int(await connection.fetchval("SELECT coalesce(max(number), 0) FROM headrace.migrations"))
    if have > len(migrations):
        raise DataDirError(
            f"the job store has schema {have}, and this version knows up to {len(migrations)}.",
            hint="Upgrade headrace, or use another database.",
        )
    for number in range(have + 1, len(migrations) + 1):
        await connection.execute(migrations[number - 1], timeout=600.0)
        await connection.execute("INSERT INTO headrace.migrations (number) VALUES ($1)", number)


async def _claim(connection: Connection, platform: str) -> None:
    """The database is this platform's, or nobody's yet."""
    if not await connection.fetchval("SELECT to_regclass('headrace.platform') IS NOT NULL"):
        await connection.execute(_PLATFORM)
    await connection.execute(
        "INSERT INTO headrace.platform (id) VALUES ($1) ON CONFLICT DO NOTHING", platform
    )
    if (owner := await connection.fetchval("SELECT id FROM headrace.platform")) != platform:
        raise SettingsError(
            f"--store: this database has the jobs of another platform ({owner}; this one is {platform}).",
            hint="Give each platform a database of its own. If that one is gone for good: "
            "DELETE FROM headrace.platform.",
        )


def _retrying(budget_s: float) -> AsyncRetrying:
    return AsyncRetrying(
        stop=stop_after_delay(budget_s),
        wait=wait_exponential_jitter(multiplier=0.05, max=1.0, jitter=0.1),
        retry=retry_if_exception(transient),
        reraise=True,
    )
