"""How many bytes of photos a reading process holds, from the moment that one is asked for until it is decoded."""

from __future__ import annotations

import itertools
import threading


class BytesInFlight:
    """A budget of bytes that photos share in the order in which they are begun; one larger than all of it goes alone.

    The thread that begins photos asks `fits` first, and ends each `Share` once its photo is decoded, in that order.
    Where a photo proves larger than it was listed, its fetching thread asks for more: that is given where it fits, and
    always to the photo that was begun first, which nobody waits for but itself. So at most the budget and one photo are
    held, and nobody waits for ever.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._held_bytes: dict[int, int] = {}
        self._is_closed = False

    def fits(self, size_bytes: int) -> bool:
        """Whether a photo of that size may be begun now."""
        with self._changed:
            return not self._held_bytes or self._total_bytes() + size_bytes <= self._budget_bytes

    def begin(self, size_bytes: int) -> Share:
        """Count a photo, or several that come together, from now on."""
        with self._changed:
            number = next(self._numbers)
            self._held_bytes[number] = size_bytes
        return Share(self, number)

    def close(self) -> None:
        """Let nobody wait any longer: no photo is wanted any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _total_bytes(self) -> int:
        return sum(self._held_bytes.values())

    def _has_grown(self, number: int, size_bytes: int) -> bool:
        held_bytes = self._held_bytes.get(number)
        if held_bytes is None or self._is_closed or held_bytes >= size_bytes:
            return True
        is_first = number == min(self._held_bytes)
        if is_first or self._total_bytes() - held_bytes + size_bytes <= self._budget_bytes:
            self._held_bytes[number] = size_bytes
            return True
        return False


class Share:
    """What one photo, or several that come together, take of a `BytesInFlight`."""

    def __init__(self, budget: BytesInFlight, number: int) -> None:
        self._budget, self._number = budget, number

    def has_grown(self, size_bytes: int) -> bool:
        """Count at least so much from now on; return False, and count as before, where there is no room for it now."""
        with self._budget._changed:
            return self._budget._has_grown(self._number, size_bytes)

    def wait_for(self, size_bytes: int) -> None:
        """Wait until at least so much may be counted, and count it."""
        with self._budget._changed:
            self._budget._changed.wait_for(lambda: self._budget._has_grown(self._number, size_bytes))

    def end(self) -> None:
        """Count nothing any more."""
        with self._budget._changed:
            self._budget._held_bytes.pop(self._number, None)
            self._budget._changed.notify_all()
