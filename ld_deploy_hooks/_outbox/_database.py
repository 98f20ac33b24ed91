"""One outbox file in use: opened whatever its state, its transactions, and faults that say what to do.

Nothing of sqlite3 leaves this place: every fault is an OutboxError.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ld_deploy_hooks._errors import OutboxError
from ld_deploy_hooks._log import say_once
from ld_deploy_hooks._outbox._connection import FAULTS, Damaged, abandon, connect, is_damage, name_of
from ld_deploy_hooks._outbox._file import (
    file_id,
    folder_lock,
    is_gone,
    leftover_log,
    make_file,
    make_folder,
    set_aside,
    uri_of,
)
from ld_deploy_hooks._outbox._refusals import os_error_name, refusal

__all__ = ["Database"]


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
        except FAULTS as error:
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
        except FAULTS:
            # A part that cannot be undone alone: no half of it may be committed.
            with suppress(*FAULTS):
                connection.execute("ROLLBACK")

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            if self._path is None:
                return self._connect(":memory:")
            if self._read_only:
                return self._look_at(self._path)
            make_folder(self._path)
            with suppress(Damaged), folder_lock(self._path.parent):
                return self._connect_file(self._path)
            with folder_lock(self._path.parent, moving=True):
                try:
                    return self._connect_file(self._path)  # another process may have put a new one there meanwhile
                except Damaged:
                    self.set_aside = set_aside(self._path)
                return self._connect_file(self._path)
        except FAULTS as error:
            raise refusal(self._path, name_of(error)) from None
        except OSError as error:
            raise refusal(self._path, os_error_name(error)) from None
        except Damaged:
            raise refusal(self._path, "SQLITE_CORRUPT") from None

    def _connect(self, where: str) -> sqlite3.Connection:
        connection, self.has_log = connect(where, self._path, read_only=self._read_only)
        return connection

    def _look_at(self, path: Path) -> sqlite3.Connection:
        if leftover_log(path):
            raise Damaged
        # Where nobody has it open SQLite would make files beside it, and leave them there.
        alone = not any(os.path.lexists(f"{path}{companion}") for companion in ("-journal", "-wal"))
        return self._connect(f"{uri_of(path)}?mode=ro{'&immutable=1' if alone else ''}")

    def _connect_file(self, path: Path) -> sqlite3.Connection:
        make_file(path)
        if leftover_log(path):
            raise Damaged
        self._file = file_id(path)
        # Never rwc: a file that SQLite makes could be read by others.
        return self._connect(f"{uri_of(path)}?mode=rw")

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, error: Exception) -> OutboxError:
        name = name_of(error)
        if self._path is None or self._read_only or not is_damage(name):
            return refusal(self._path, name)
        if self._connection is not None:
            abandon(self._connection)
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
