"""When collectives occupy a device, and how long compute takes beside them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Overlap:
    """The union of a device's collectives as disjoint, ordered intervals in seconds."""

    __slots__ = ("_ends", "_starts", "slowdown", "until")

    def __init__(self, slowdown: float) -> None:
        self.slowdown = slowdown
        self.until = 0.0  # the end of the last interval
        self._starts: list[float] = []
        self._ends: list[float] = []

    def add(self, start: float, end: float, now: float) -> None:
        """Add [start, end); what ended at `now` or before is forgotten: nothing starts there."""
        if end <= start or self.slowdown == 1:
            return
        gone = bisect_right(self._ends, now)
        del self._starts[:gone], self._ends[:gone]
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self.until = self._ends[-1]

    def end_of(self, start: float, seconds: float) -> float:
        """When compute ends that begins at `start` and takes `seconds` alone.

        It goes at full pace outside of the intervals and at 1 / `slowdown` inside. With one
        interval [s, e) that begins during the compute: `start + seconds + (f - 1) x` where `x` is
        the work done inside, `min(seconds - (s - start), (e - s) / f)`.
        """
        left, at = seconds, start
        for index in range(bisect_right(self._ends, start), len(self._ends)):
            begin, end = self._starts[index], self._ends[index]
            if begin > at:
                if left <= begin - at:
                    break
                left -= begin - at
                at = begin
            if left * self.slowdown <= end - at:
                return at + left * self.slowdown
            left -= (end - at) / self.slowdown
            at = end
        return at + left
