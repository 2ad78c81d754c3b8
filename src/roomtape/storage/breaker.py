"""When to try a failing store again: at once for nobody, by one probe at a time, later and later."""

import random
from collections.abc import Callable
from itertools import count

FIRST_S = 1.0
LONGEST_S = 30.0
JITTER = 0.2


class Breaker:
    """Closed while the store answers. A failure opens it for 1, 2, 4 … 30 s (± 20 %); then one call may try, and its end decides."""

    def __init__(self, clock: Callable[[], float], *, spread: Callable[[float, float], float] = random.uniform) -> None:
        """`clock`: monotonic seconds; `spread(low, high)`: a number between, by chance."""
        self._clock = clock
        self._spread = spread
        self._failures = 0
        self._until = 0.0
        self._tickets = count(1)
        self._probe = 0

    @property
    def closed(self) -> bool:
        """The last call worked."""
        return not self._failures

    @property
    def wait_s(self) -> float:
        """Seconds until the next call may try."""
        return max(0.0, self._until - self._clock()) if self._failures else 0.0

    def enter(self) -> int:
        """A ticket for a call that may try, 0 for one that may not. Who has one says `worked` or `failed`, and `left` at the end."""
        if self.closed:
            return next(self._tickets)
        if self._probe or self.wait_s:
            return 0
        self._probe = next(self._tickets)
        return self._probe

    def worked(self) -> None:
        """The store answered."""
        self._failures = 0

    def failed(self, ticket: int) -> None:
        """The store failed. Calls that were under way together count as one failure."""
        if self._failures and ticket != self._probe:
            return
        self._failures += 1
        self._until = self._clock() + min(LONGEST_S, FIRST_S * 2.0 ** (min(self._failures, 10) - 1)) * self._spread(1 - JITTER, 1 + JITTER)

    def left(self, ticket: int) -> None:
        """The call is over, whatever it said."""
        if ticket == self._probe:
            self._probe = 0
