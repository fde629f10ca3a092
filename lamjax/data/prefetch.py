"""Batches prepared in the background, so that the device never waits for the host."""

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from lamjax.threads import same_settings

PATIENCE = 30.0  # s that closing waits for an item in the making; the threads never keep the interpreter alive


def prefetch(
    items: Iterable, depth: int = 2, workers: int = 1, put: Callable[[Any], Any] = jax.device_put
) -> "Prefetch":
    """The items after `put` (by default onto the device), in their order, at most `depth` of them made ahead.

    Items are drawn by one thread at a time; with more `workers`, `put` runs on several items at once. What they raise,
    the consumer gets where the item would have been. Used with `with`, or left to the garbage collector, the threads
    end with the loop, however it ends.
    """
    if depth < 1 or workers < 1:
        raise ValueError(f"prefetch needs a depth and a number of workers of at least 1; got {depth} and {workers}.")
    return Prefetch(items, depth, workers, put)


class Prefetch(Iterator):
    """What `prefetch` returns: an iterator, a context manager, and a clock."""

    def __init__(self, items: Iterable, depth: int, workers: int, put: Callable[[Any], Any]):
        self._shared = _Shared(iter(items), put, max(depth, workers))
        threads = [
            threading.Thread(target=self._shared.work, name=f"lamjax prefetch {k}", daemon=True) for k in range(workers)
        ]
        self._close = weakref.finalize(self, _end, self._shared, threads)  # the threads know only what is shared
        self.waited = 0.0  # s that the consumer waited for all items but the first
        self._first: float | None = None
        for thread in threads:
            thread.start()

    def __next__(self):
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

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the threads; items made but not taken are dropped."""
        self._close()

    @property
    def wait_fraction(self) -> float:
        """Share of the time since the first item that the consumer waited for the next ones."""
        return 0.0 if self._first is None else self.waited / max(time.perf_counter() - self._first, 1e-9)


class _Shared:
    """What producers and consumer share."""

    def __init__(self, source: Iterator, put: Callable[[Any], Any], depth: int):
        self.source, self.put, self.depth = source, put, depth
        self.settings = same_settings()
        self.changed = threading.Condition()
        self.drawing = threading.Lock()
        self.made: dict[int, tuple[Any, BaseException | None]] = {}
        self.drawn, self.taken = 0, 0
        self.end: int | None = None  # number of items, once known
        self.closed = False

    def work(self) -> None:
        """A producer: draw an item, put it, say so; until the end or an error."""
        with self.settings():
            while self._make():
                pass

    def _make(self) -> bool:
        """Make one item; False if there is no more to do."""
        with self.drawing:
            with self.changed:
                self.changed.wait_for(lambda: self.closed or self.end is not None or self._room())
                if self.closed or self.end is not None:
                    return False
                number = self.drawn
                self.drawn += 1
            try:
                item = next(self.source)
            except StopIteration:
                return self._ended(number)
            except BaseException as error:
                self._done(number, None, error)
                return self._ended(number + 1)
        try:
            self._done(number, self.put(item), None)
        except BaseException as error:
            self._done(number, None, error)
            return self._ended(number + 1)
        return True

    def next(self):
        """The next item, when it is there."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.taken in self.made or self._over())
            if self.taken not in self.made:
                raise StopIteration
            item, error = self.made.pop(self.taken)
            self.taken += 1
            self.changed.notify_all()
        if error is not None:
            raise error
        return item

    def _room(self) -> bool:
        return self.drawn - self.taken < self.depth

    def _over(self) -> bool:
        return self.end is not None and self.taken >= self.end

    def _done(self, number: int, item, error: BaseException | None) -> None:
        with self.changed:
            self.made[number] = (item, error)
            self.changed.notify_all()

    def _ended(self, n: int) -> bool:
        with self.changed:
            self.end = n if self.end is None else min(self.end, n)
            self.changed.notify_all()
        return False


def _end(shared: _Shared, threads: list[threading.Thread]) -> None:
    """Tell the producers to stop and wait until they have."""
    with shared.changed:
        shared.closed = True
        shared.made.clear()
        shared.changed.notify_all()
    if threading.current_thread() in threads:  # the garbage collector may call from there
        return
    for thread in threads:
        thread.join(PATIENCE)
    if hasattr(shared.source, "close") and not any(thread.is_alive() for thread in threads):
        shared.source.close()
