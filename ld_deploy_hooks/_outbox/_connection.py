"""A connection of SQLite's that is ready to be used, and what its faults are called."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._outbox._file import on_network
from ld_deploy_hooks._outbox._tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION

__all__ = ["FAULTS", "Damaged", "abandon", "connect", "is_damage", "name_of"]

# Milliseconds to wait for other writers: more than any was ever seen to take, so that nothing is given up.
_BUSY = 15_000
_PAUSE = 10
# Who only looks has no need to know it all.
_BUSY_LOOKING = 1_000

# What SQLite answers with; MemoryError in the place of an error of its own.
FAULTS = (sqlite3.Error, MemoryError)

# Python 3.10 knows the texts of SQLite's errors only (`sqlite3_errstr` and a few of its own).
_NAMES = {
    "attempt to write a readonly database": "SQLITE_READONLY",
    "database disk image is malformed": "SQLITE_CORRUPT",
    "database is locked": "SQLITE_BUSY",
    "database or disk is full": "SQLITE_FULL",
    "database schema is locked": "SQLITE_LOCKED",
    "database table is locked": "SQLITE_LOCKED",
    "disk I/O error": "SQLITE_IOERR",
    "file is encrypted or is not a database": "SQLITE_NOTADB",
    "file is not a database": "SQLITE_NOTADB",
    "locking protocol": "SQLITE_PROTOCOL",
    "unable to open database file": "SQLITE_CANTOPEN",
}


class Damaged(Exception):
    """The file is no database, or a broken one."""


def connect(where: str, path: Path | None, *, read_only: bool) -> tuple[sqlite3.Connection, bool]:
    """Return a connection whose tables are there and can be used, and whether it writes a log, and not a journal.

    Args:
        where: the file as a URI, or ``:memory:``.
        path: the file; None for a database in memory.
        read_only: neither write the file nor what lies beside it.

    Raises:
        Damaged: it is no database, or a broken one.
        OutboxError: it was written by a newer version or by another program.
        sqlite3.Error, MemoryError: SQLite says no.
    """
    connection = sqlite3.connect(
        where,
        timeout=0,
        isolation_level=None,
        uri=True,
        # In a forked child another thread closes it.
        check_same_thread=False,
    )
    # One row whose bytes have changed on the disk may not keep all others from being read.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    # A reference to itself, which only close() ends. Otherwise a forked child that forgets its parent's connection
    # would close it, and with that undo in the file what the parent is about to commit.
    connection.create_function("keep", 0, lambda kept=connection: None)
    try:
        has_log = _prepare(connection, path, read_only=read_only)
    except BaseException as error:
        if isinstance(error, sqlite3.Error) and is_damage(name_of(error)):
            abandon(connection)
            raise Damaged from None
        connection.close()
        raise
    return connection, has_log


def _prepare(connection: sqlite3.Connection, path: Path | None, *, read_only: bool) -> bool:
    if read_only:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_LOOKING}")
        _check_kind(connection, path)
        return False
    mode = "MEMORY" if path is None else "DELETE" if on_network(path) else "WAL"
    for pause in range(_BUSY // _PAUSE, -1, -1):
        try:
            _check_kind(connection, path)
            # Where the system has no shared memory SQLite stays with DELETE.
            ((found,),) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            has_log = bool(found == "wal")
            break
        except sqlite3.OperationalError as error:
            # Of several that start with a new file, SQLite refuses some without waiting.
            if pause == 0 or not name_of(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
                raise
            time.sleep(_PAUSE / 1000)
    connection.execute(f"PRAGMA busy_timeout = {_BUSY}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("BEGIN IMMEDIATE")
    if _check_kind(connection, path) == 0:
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    # Written also where nothing changes: only that shows now whether the file can be written.
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
    return has_log


def _check_kind(connection: sqlite3.Connection, path: Path | None) -> int:
    """Return the version of the schema, 0 in a new file."""
    # In this order: another process may be making the tables, all at once.
    ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    ((version,),) = connection.execute("PRAGMA user_version")
    ((application,),) = connection.execute("PRAGMA application_id")
    if not tables and not version:
        return 0
    if application != APPLICATION_ID:
        what, step = "it is another program's database", "Set LD_DEPLOY_OUTBOX to a file of its own"
    elif version > SCHEMA_VERSION:
        what = f"a newer ld-deploy-hooks wrote it (schema {version}, this one knows {SCHEMA_VERSION})"
        step = "Upgrade ld-deploy-hooks, or set LD_DEPLOY_OUTBOX to another file"
    else:
        return int(version)
    where = ":memory:" if path is None else str(path)
    raise OutboxError(f"The outbox {where} cannot be used: {what}. {step}.", path=where)


def abandon(connection: sqlite3.Connection) -> None:
    """Leave a damaged file alone, but hold nobody up who has it open too.

    It is not closed: closing would write to the file and delete its log, whatever can still be read in them.
    """
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def is_damage(name: str) -> bool:
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def name_of(error: Exception) -> str:
    """Return SQLite's name of an error; its type's where there is none, never its text."""
    name = getattr(error, "sqlite_errorname", None) or _NAMES.get(str(error))
    if isinstance(error, MemoryError):
        name = "SQLITE_NOMEM"
    if name is None and isinstance(error, sqlite3.IntegrityError):
        name = "SQLITE_CONSTRAINT"
    if name is None and str(error).startswith("malformed database schema"):
        name = "SQLITE_CORRUPT"
    return str(name or type(error).__name__)
