"""Listing a prefix by several requests at once, in the order and with the result of one after the other.

An object store lists keys in order, a page at a time, and from any key on that it is asked for, there or not. So what
remains after a page can be cut in two at a guessed key, again and again: folders or none, guesses cost only requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_REQUESTS_AT_ONCE = 16
_PAGES_FIRST = 4
"""Read one after the other before anything is guessed: a few thousand objects are not worth it."""
_PAGES_AHEAD, _PAGES_HELD = 64, 256
"""Bound the memory: no page is asked for behind so many that wait for their turn; so many wait in all."""
_KINDS_OF_CHARACTERS = ((0x20, 0x7F), (0x7F, 0xD800), (0xE000, 0x110000))


@dataclass(frozen=True)
class Page(Generic[T]):
    """Objects, each with its key; `next_token` asks for the page after it, None where there is none."""

    keys: Sequence[str]
    entries: Sequence[T]
    next_token: str | None


Fetch = Callable[[str | None, str | None], Page[T]]
"""Return the page of a token, else the first one with keys after a given one, else the first one."""


@dataclass
class _Range(Generic[T]):
    """Keys after `last` (what is before is listed), up to `end` (None: all), and the pages that wait for their turn."""

    last: str | None
    end: str | None
    token: str | None = None
    shared: int = 0
    is_done: bool = False
    pages: list[Page[T]] = field(default_factory=list)
    request: Future[Page[T]] | None = None

    def take(self, page: Page[T]) -> None:
        """Add the range's next page; OSError where the store does not list in order."""
        if (self.last is not None and page.keys and page.keys[0] <= self.last) or not _is_ascending(page.keys):
            raise OSError("this object store does not list in the order of names")
        keys, entries = page.keys, page.entries
        self.is_done = page.next_token is None
        if self.end is not None and keys and keys[-1] > self.end:
            inside = sum(key <= self.end for key in keys)
            keys, entries, self.is_done = keys[:inside], entries[:inside], True
        if keys:
            self.pages.append(Page(keys, entries, None))
            self.last = keys[-1]
            self.shared = _shared_length(keys[0], keys[-1])
        self.token = page.next_token

    def split(self, prefix: str) -> _Range[T] | None:
        """Cut what remains in two; return the second part, None where no key to cut at can be guessed."""
        middle = None if self.is_done or self.last is None else _middle(self.last, self.end, len(prefix), self.shared)
        if middle is None:
            return None
        second: _Range[T] = _Range(middle, self.end)
        self.end = middle
        return second


def list_in_order(fetch: Fetch[T], prefix: str) -> Iterator[T]:
    """Yield the entries of every page below `prefix` in order, holding a bounded number of pages.

    A store that does not list in the order of names is listed one page after the other. `fetch` is called in threads.
    """
    token: str | None = None
    last = ""
    is_ordered = True
    pages = 0
    while pages < _PAGES_FIRST or not is_ordered:
        page = fetch(token, None)
        yield from page.entries
        token = page.next_token
        if token is None:
            return
        pages += 1
        if page.keys:
            is_ordered &= last < page.keys[0] and _is_ascending(page.keys)
            last = page.keys[-1]
    pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="list")
    try:
        yield from _in_parallel(fetch, prefix, _Range(last, None, token), pool)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_parallel(fetch: Fetch[T], prefix: str, rest: _Range[T], pool: ThreadPoolExecutor) -> Iterator[T]:
    ranges = [rest]
    _halve(ranges, prefix)
    while ranges:
        first = ranges[0]
        if first.pages:
            yield from first.pages.pop(0).entries
        elif first.is_done:
            ranges.pop(0)
            continue
        _ask(fetch, ranges, pool)
        requests = [one.request for one in ranges if one.request is not None]
        if not first.pages and not first.is_done:
            wait(requests, return_when=FIRST_COMPLETED)
        for one in ranges:
            if one.request is not None and one.request.done():
                page, one.request = one.request.result(), None
                one.take(page)
        _halve(ranges, prefix)


def _ask(fetch: Fetch[T], ranges: Sequence[_Range[T]], pool: ThreadPoolExecutor) -> None:
    """Send for the next page of the first ranges, as far as requests and memory go; the very first one always."""
    free = _REQUESTS_AT_ONCE - sum(one.request is not None for one in ranges)
    held = sum(len(one.pages) for one in ranges) + _REQUESTS_AT_ONCE - free
    before = 0
    for one in ranges:
        before += len(one.pages)
        is_first = one is ranges[0] and not one.pages
        if free == 0 or before >= _PAGES_AHEAD or (held >= _PAGES_HELD and not is_first):
            return
        if one.request is None and not one.is_done:
            one.request = pool.submit(fetch, one.token, one.last)
            free -= 1
            held += 1


def _halve(ranges: list[_Range[T]], prefix: str) -> None:
    """Cut the first ranges until there are enough for all requests: what comes next is needed first.

    Only what began to be listed and goes on: of a guess it isn't known yet whether anything is behind it.
    """
    before = index = 0
    missing = _REQUESTS_AT_ONCE - _to_ask(ranges)
    while index < len(ranges) and missing > 0 and before < _PAGES_AHEAD:
        one = ranges[index]
        before += len(one.pages)
        index += 1
        if one.request is None and one.token is not None and (second := one.split(prefix)) is not None:
            ranges.insert(index, second)
            missing -= 1
            index += 1


def _to_ask(ranges: Sequence[_Range[T]]) -> int:
    """Return how many ranges are unfinished among those for which there is memory."""
    before = count = 0
    for one in ranges:
        before += len(one.pages)
        if before >= _PAGES_AHEAD:
            break
        count += not one.is_done
    return count


def _middle(last: str, end: str | None, depth: int, shared: int) -> str | None:
    """Return a text between `last` and `end` (None: behind all names), None where there is none to guess.

    All names agree in `depth` characters, and the newest ones in `shared`.
    """
    if end is not None:
        depth = _shared_length(last, end)
        if depth == len(last):
            return None
        if (guess := _between(last[depth], end[depth])) is not None:
            return last[:depth] + guess
        depth += 1  # whatever follows, the character before it puts the text before `end`
    # Half way to where the names differ: guess by guess through all they share would take too long.
    for place in range(max(depth, (depth + shared) // 2), len(last)):
        if (guess := _between(last[place], None)) is not None:
            return last[:place] + guess
    return None


def _between(low: str, high: str | None) -> str | None:
    """Return a character between two, among those of the same kind as `low`: ASCII, other, beyond the surrogates."""
    first, behind = next(kind for kind in _KINDS_OF_CHARACTERS if ord(low) < kind[1])
    guess = (max(ord(low), first - 1) + min(ord(high) if high else behind, behind)) // 2
    return chr(guess) if guess > ord(low) and (high is None or guess < ord(high)) else None


def _is_ascending(keys: Sequence[str]) -> bool:
    return all(a < b for a, b in itertools.pairwise(keys))


def _shared_length(first: str, second: str) -> int:
    """Return how many characters two texts begin with in common."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in alike)
