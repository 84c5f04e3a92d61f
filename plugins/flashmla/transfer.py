"""Progress of pages between a file and the cache, in a thread of its own, while decoding continues with other pages.

    transfer = file.load(pages, blocks, cache)
    ...                                # decode with other blocks
    transfer.wait_for(0)               # the first page is there
    transfer.wait()                    # all are

    transfer = file.load_layers(pages, blocks, cache)
    for number, layer in enumerate(model.layers):
        transfer.wait_for_layer(number)    # this layer of all pages is there; later ones are still being read
        x = layer(x, cache.layers[number])

The blocks of a transfer belong to it until it is done: nothing else may write them, and a load's may be read only
after a wait for that page or layer.
"""

import threading
from collections.abc import Callable


class Transfer:
    """The progress of some pages. `wait` and `wait_for` raise what went wrong with them."""

    def __init__(self, count: int) -> None:
        self.cancelled = False
        self._changed = threading.Condition()
        self._landed: list[bool] = [False] * count
        self._errors: dict[int, BaseException] = {}
        self._finished = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._landed)

    @property
    def done(self) -> bool:
        """Return whether the transfer has ended."""
        with self._changed:
            return self._finished

    def wait_for(self, place: int, timeout_s: float | None = None) -> bool:
        """Wait until the page at that place of the request has landed; False if that takes too long."""
        with self._changed:
            settled = self._changed.wait_for(lambda: self._is_settled(place), timeout_s)
            self._raise_for(place)
            return settled

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for all pages; False if that takes too long. Raises: the error of the first page that has one."""
        with self._changed:
            settled = self._changed.wait_for(lambda: self._finished, timeout_s)
            for place in range(len(self._landed) if settled else 0):
                self._raise_for(place)
            if self._failure is not None:
                raise self._failure
            return settled

    def errors(self) -> dict[int, BaseException]:
        """Wait for the end, and return what went wrong, by place."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished)
            return dict(self._errors)

    def cancel(self) -> None:
        """Begin no further read or write. Pages that have not landed fail with CancelledError.

        Returns at once: the blocks are free when the transfer is done, as always (`errors` waits for that).
        """
        self.cancelled = True

    def start(self, work: Callable[[], None]) -> None:
        """Carry out `work` in a thread, which calls `land` or `fail` for each page."""

        def run() -> None:
            failure: BaseException | None = None
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (raised by the waits)
                failure = error
            with self._changed:
                if failure is not None:
                    for place, landed in enumerate(self._landed):
                        if not landed:
                            self._errors.setdefault(place, failure)
                self._failure, self._finished = failure, True
                self._changed.notify_all()

        threading.Thread(target=run, name="luciola-kv-pages", daemon=True).start()

    def land(self, place: int) -> None:
        """Record that the page at `place` has arrived."""
        with self._changed:
            self._landed[place] = True
            self._changed.notify_all()

    def fail(self, place: int, error: BaseException) -> None:
        """Fail a page. Of several errors of a page the first stays."""
        with self._changed:
            self._errors.setdefault(place, error)
            self._changed.notify_all()

    def has_failed(self, place: int) -> bool:
        """Return whether the page at `place` failed."""
        with self._changed:
            return place in self._errors

    def _is_settled(self, place: int) -> bool:
        return self._landed[place] or place in self._errors or self._finished

    def _raise_for(self, place: int) -> None:
        if (error := self._errors.get(place)) is not None:
            raise error


class LayerTransfer(Transfer):
    """The progress of pages that are loaded layer by layer, for attention that begins before the last is there."""

    def __init__(self, count: int, layers: int) -> None:
        super().__init__(count)
        self._ready: list[Callable[[], None] | None] = [None] * layers

    def wait_for_layer(self, layer: int, timeout_s: float | None = None) -> bool:
        """Wait until that layer of all pages is in the cache; False if that takes too long.

        On a GPU the caller's current stream waits, not the host: what it is given from now on sees the layer.
        Raises: the error of a page that lacks any layer, as soon as there is one: without it no layer is of use.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready[layer] is not None or self._errors or self._finished, timeout_s
            )
            for place in sorted(self._errors):
                raise self._errors[place]
            if self._failure is not None:
                raise self._failure
            ready, finished = self._ready[layer], self._finished
        if ready is not None:
            ready()
        return ready is not None or finished

    def set_ready(self, layer: int, wait: Callable[[], None]) -> None:
        """Note that the layer's copies have begun; `wait` orders the caller's stream after them."""
        with self._changed:
            self._ready[layer] = wait
            self._changed.notify_all()


__all__ = ["LayerTransfer", "Transfer"]
