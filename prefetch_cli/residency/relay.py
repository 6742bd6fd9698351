"""Several threads of which one works while the others wait for the storage.

Python lets one thread run at a time. If several of ours wanted to, the wait for their turn would
look like a wait for the storage. So one thread leads, until it has not come back for a while: it
waits for the storage, and the next one leads.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prefetch_cli.linux.threads import spawn_many

_SELDOM = 8  # times the patience

_Item = TypeVar("_Item")


class Relay(Generic[_Item]):
    """The items that are left, and who leads."""

    def __init__(
        self,
        items: Sequence[_Item],
        act: Callable[[_Item], None],
        *,
        patience_seconds: float,
        deadline: float,
    ) -> None:
        self._left: Iterator[_Item] = iter(items)
        self._act = act
        self._patience_seconds = patience_seconds
        self._deadline = deadline
        self._lock = threading.Lock()
        self._next = threading.Lock()  # held by the one thread that waits to lead
        self._leader: int | None = None
        self._since = 0.0  # when the leader began its item
        self._over = False

    def run(self, threads: int) -> None:
        """Act on the items, in their order, until the deadline; return when all that began ended.

        `deadline` is of time.monotonic(). `act` must not raise.
        """
        if threads == 1:
            self._work()
            return
        for thread in spawn_many(self._work, threads):
            thread.join()

    def _work(self) -> None:
        me = threading.get_ident()
        while not self._over:
            while self._leads(me) and (item := self._take()) is not None:
                self._act(item)
            with self._next:
                self._wait_to_lead(me)

    def _wait_to_lead(self, me: int) -> None:
        seconds = self._patience_seconds
        while not (self._over or self._leads(me, instead=True)):
            time.sleep(seconds)
            # Each look at a leader that need not wait disturbs it.
            seconds = min(2 * seconds, _SELDOM * self._patience_seconds)

    def _leads(self, me: int, *, instead: bool = False) -> bool:
        """Return whether this thread leads; `instead` of the leader if that one waits."""
        now = time.monotonic()
        with self._lock:
            waits = self._leader is None or now - self._since > self._patience_seconds
            if self._leader != me and instead and waits:
                self._leader, self._since = me, now
            return self._leader == me

    def _take(self) -> _Item | None:
        now = time.monotonic()
        with self._lock:
            item = None if self._over or now > self._deadline else next(self._left, None)
            self._since = now
            self._over = item is None
            return item
