"""Batches prepared in the background, so that the device never waits for the host."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from lamjax.threads import same_settings

PATIENCE = 30.0  # s that closing waits for an item in the making; the thread never keeps the interpreter alive


def prefetch(items: Iterable, depth: int = 2, put: Callable[[Any], Any] = jax.device_put) -> "Prefetch":
    """The items after `put` (by default onto the device), in their order, at most `depth` of them made ahead.

    What they raise, the consumer gets where the item would have been. Used with `with`, or left to the garbage
    collector, the thread that makes them ends with the loop, however it ends.
    """
    if depth < 1:
        raise ValueError(f"prefetch needs a depth of at least 1; got {depth}.")
    return Prefetch(items, depth, put)


class Prefetch(Iterator):
    """An iterator whose items are prepared in advance, a context manager, and a clock of the time spent waiting."""

    def __init__(self, items: Iterable, depth: int, put: Callable[[Any], Any]) -> None:
        self._shared = _Shared(iter(items), put, depth)
        thread = threading.Thread(target=self._shared.work, name="lamjax prefetch", daemon=True)
        self._close = weakref.finalize(self, _end, self._shared, thread)  # the thread knows only what is shared
        self.waited = 0.0  # s that the consumer waited for all items but the first
        self._first: float | None = None
        thread.start()

    def __next__(self) -> Any:
        begin = time.perf_counter()
        try:
            item = self._shared.next()
        except BaseException:
            self.close()
            raise
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        else:
            self.waited += now - begin
        return item

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; items made but not taken are dropped."""
        self._close()

    @property
    def wait_fraction(self) -> float:
        """Share of the time since the first item that the consumer waited for the next ones."""
        return 0.0 if self._first is None else self.waited / max(time.perf_counter() - self._first, 1e-9)


class _Shared:
    """State that producer and consumer share."""

    def __init__(self, source: Iterator, put: Callable[[Any], Any], depth: int) -> None:
        self.source, self.put, self.depth = source, put, depth
        self.settings = same_settings()
        self.changed = threading.Condition()
        self.made: deque[tuple[Any, BaseException | None]] = deque()
        self.ended = self.closed = False

    def work(self) -> None:
        """The producer: draw an item, put it, say so; until the end or an error."""
        with self.settings():
            while self._has_room():
                try:
                    made = self.put(next(self.source)), None
                except StopIteration:
                    made = None
                except BaseException as error:
                    made = None, error
                with self.changed:
                    self.ended = made is None or made[1] is not None
                    if made is not None and not self.closed:
                        self.made.append(made)
                    self.changed.notify_all()

    def _has_room(self) -> bool:
        """Waits for room; False if nothing more is wanted."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.ended or len(self.made) < self.depth)
            return not (self.closed or self.ended)

    def next(self) -> Any:
        """Wait for the next item and return it."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.made or self.ended)
            if not self.made:
                raise StopIteration
            item, error = self.made.popleft()
            self.changed.notify_all()
        if error is not None:
            raise error
        return item


def _end(shared: _Shared, thread: threading.Thread) -> None:
    """Tell the producer to stop and wait until it has."""
    with shared.changed:
        shared.closed = True
        shared.made.clear()
        shared.changed.notify_all()
    if threading.current_thread() is thread:  # the garbage collector may call from there
        return
    thread.join(PATIENCE)
    if hasattr(shared.source, "close") and not thread.is_alive():
        shared.source.close()
