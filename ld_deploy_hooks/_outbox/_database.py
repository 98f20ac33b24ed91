"""One connection to the outbox's file: opening it whatever its state, transactions, and faults that say what to do.

The only place where sqlite3 lives. Nothing of sqlite3 leaves it: every fault is an OutboxError.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outbox._file import (
    file_id,
    folder_lock,
    is_gone,
    leftover_log,
    make_file,
    make_folder,
    on_network,
    set_aside,
    uri_of,
)
from ld_deploy_hooks._outbox._refusals import os_error_name, refusal
from ld_deploy_hooks._outbox._tables import APPLICATION_ID, SCHEMA, SCHEMA_VERSION

__all__ = ["Database"]

# Milliseconds to wait for other writers: more than any was ever seen to take, so that nothing is given up.
_BUSY = 15_000
_PAUSE = 10
# Who only looks has no need to know it all.
_BUSY_LOOKING = 1_000

# What SQLite answers with; MemoryError in the place of an error of its own.
_FAULTS = (sqlite3.Error, MemoryError)

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


class _Damaged(Exception):
    """The file is no database, or a broken one."""


class Database:
    """A connection that is made and used by one thread of one process.

    Args:
        path: the file; None for a database in memory.
        read_only: only look at the file, which is there: it is neither written nor moved, whatever is wrong with it.

    Attributes:
        set_aside: where a damaged file was moved to, the last one if there were several; None if there was none.
        has_log: whether it writes a log, and not a journal.

    Raises:
        OutboxError: the file cannot be opened or written, was written by a newer version or by another program.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self.set_aside: Path | None = None
        self._path = path
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._depth = 0
        self._closed = False
        self._file: tuple[int, int] | None = None
        self.has_log = False
        self._connection: sqlite3.Connection | None = self._open()

    @property
    def is_gone(self) -> bool:
        """Whether the file that is open was removed, or another took its place."""
        return (
            self._connection is not None
            and self._path is not None
            and self._file is not None
            and is_gone(self._path, self._file)
        )

    def close(self) -> None:
        """Close the connection; not in a forked child, where that would undo the parent's transaction."""
        self._closed = True
        if os.getpid() == self._process and self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def close_inherited(self) -> None:
        """Close the connection in a forked child, whose fork has waited for the end of every transaction.

        SQLite knows a file by one record in a process: over a connection of its parent's a child would take locks for
        its own that only the parent has.
        """
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what the block does, or undo it if it raises.

        A transaction within another is a part of it that can be undone alone; durable it is when the outer one is.

        Raises:
            OutboxError: it could not be committed; nothing of it is kept.
        """
        # First of all: what is refused here may not undo what another thread is doing.
        self._usable()
        point = f"command_{self._depth}"
        outermost = self._depth == 0
        try:
            # IMMEDIATE: who reads first and wants to write then is refused without waiting, busy timeout or not.
            self.execute("BEGIN IMMEDIATE" if outermost else f"SAVEPOINT {point}")
            self._depth += 1
            try:
                yield
                self.execute("COMMIT" if outermost else f"RELEASE {point}")
            finally:
                self._depth -= 1
        except BaseException:
            self._undo(["ROLLBACK"] if outermost else [f"ROLLBACK TO {point}", f"RELEASE {point}"])
            raise

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        return self.execute(sql, parameters)[0]

    def change(self, sql: str, *parameters: object) -> int:
        """Return how many rows a statement changed."""
        return self.execute(sql, parameters)[1]

    def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> tuple[list[tuple[Any, ...]], int]:
        """Run one statement to its end; return its rows, and how many it changed."""
        connection = self._usable()
        try:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall(), cursor.rowcount
        except _FAULTS as error:
            raise self._fault(error) from None

    def _usable(self) -> sqlite3.Connection:
        if self._closed:
            raise self._error("cannot be used: it is closed.")
        if os.getpid() != self._process:
            raise self._error("cannot be used: it is another process's, which this one was forked from.")
        if threading.get_ident() != self._thread:
            raise self._error("cannot be used: it is another thread's.")
        if self._connection is None and self._depth == 0:
            self._connection = self._open()
        if self._connection is None or (self._depth > 0 and not self._connection.in_transaction):
            # SQLite undoes the whole of a transaction when the disk is full and the like. What follows in it may not be
            # committed one by one.
            raise self._error("undid a group of changes, because one of them failed.")
        return self._connection

    def _undo(self, statements: list[str]) -> None:
        connection = self._connection
        if connection is None or os.getpid() != self._process:
            return
        try:
            if connection.in_transaction:
                for statement in statements:
                    connection.execute(statement)
        except _FAULTS:
            # A part that cannot be undone alone: no half of it may be committed.
            with suppress(*_FAULTS):
                connection.execute("ROLLBACK")

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            if self._path is None:
                return self._connect(":memory:")
            if self._read_only:
                return self._look_at(self._path)
            make_folder(self._path)
            with suppress(_Damaged), folder_lock(self._path.parent):
                return self._connect_file(self._path)
            with folder_lock(self._path.parent, moving=True):
                try:
                    return self._connect_file(self._path)  # another process may have put a new one there meanwhile
                except _Damaged:
                    self.set_aside = set_aside(self._path)
                return self._connect_file(self._path)
        except _FAULTS as error:
            raise refusal(self._path, _name(error)) from None
        except OSError as error:
            raise refusal(self._path, os_error_name(error)) from None
        except _Damaged:
            raise refusal(self._path, "SQLITE_CORRUPT") from None

    def _look_at(self, path: Path) -> sqlite3.Connection:
        if leftover_log(path):
            raise _Damaged
        # Where nobody has it open SQLite would make files beside it, and leave them there.
        alone = not any(os.path.lexists(f"{path}{companion}") for companion in ("-journal", "-wal"))
        return self._connect(f"{uri_of(path)}?mode=ro{'&immutable=1' if alone else ''}")

    def _connect_file(self, path: Path) -> sqlite3.Connection:
        make_file(path)
        if leftover_log(path):
            raise _Damaged
        self._file = file_id(path)
        # Never rwc: a file that SQLite makes could be read by others.
        return self._connect(f"{uri_of(path)}?mode=rw")

    def _connect(self, where: str) -> sqlite3.Connection:
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
            self._prepare(connection)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and _is_damage(_name(error)):
                _abandon(connection)
                raise _Damaged from None
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self._read_only:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_LOOKING}")
            self._check_kind(connection)
            return
        mode = "MEMORY" if self._path is None else "DELETE" if on_network(self._path) else "WAL"
        for pause in range(_BUSY // _PAUSE, -1, -1):
            try:
                self._check_kind(connection)
                # Where the system has no shared memory SQLite stays with DELETE.
                ((found,),) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
                self.has_log = found == "wal"
                break
            except sqlite3.OperationalError as error:
                # Of several that start with a new file, SQLite refuses some without waiting.
                if pause == 0 or not _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
                    raise
                time.sleep(_PAUSE / 1000)
        connection.execute(f"PRAGMA busy_timeout = {_BUSY}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA mmap_size = 0")
        connection.execute("BEGIN IMMEDIATE")
        if self._check_kind(connection) == 0:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        # Written also where nothing changes: only that shows now whether the file can be written.
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _check_kind(self, connection: sqlite3.Connection) -> int:
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
        raise self._error(f"cannot be used: {what}. {step}.")

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, error: Exception) -> OutboxError:
        name = _name(error)
        if self._path is None or self._read_only or not _is_damage(name):
            return refusal(self._path, name)
        if self._connection is not None:
            _abandon(self._connection)
            self._connection = None
        moved = "another process has moved it aside"
        try:
            with folder_lock(self._path.parent, moving=True):
                # Unless another process was first.
                if file_id(self._path) == self._file:
                    self.set_aside = set_aside(self._path)
                    moved = f"it was moved to {self.set_aside}"
        except OSError as moving:
            return refusal(self._path, os_error_name(moving))
        # Here, once: whoever has asked may be sending or keeping house, where one fault more is no news.
        say_once(
            f"The outbox {self._path} is damaged ({name}); {moved} and a new one takes its place. What waited in it is "
            "not sent: keep that file if you need to know what it was."
        )
        return self._error(f"turned out to be damaged ({name}); a new one has taken its place.")

    def _error(self, what: str) -> OutboxError:
        where = ":memory:" if self._path is None else str(self._path)
        return OutboxError(f"The outbox {where} {what}", path=where)


def _abandon(connection: sqlite3.Connection) -> None:
    """Leave a damaged file alone, but hold nobody up who has it open too.

    It is not closed: closing would write to the file and delete its log, whatever can still be read in them.
    """
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _is_damage(name: str) -> bool:
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _name(error: Exception) -> str:
    """Return SQLite's name of an error; its type's where there is none, never its text."""
    name = getattr(error, "sqlite_errorname", None) or _NAMES.get(str(error))
    if isinstance(error, MemoryError):
        name = "SQLITE_NOMEM"
    if name is None and isinstance(error, sqlite3.IntegrityError):
        name = "SQLITE_CONSTRAINT"
    if name is None and str(error).startswith("malformed database schema"):
        name = "SQLITE_CORRUPT"
    return str(name or type(error).__name__)
