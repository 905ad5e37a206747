"""An estimate with the interval around it."""

import dataclasses

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its interval, at `LEVEL` unless another level was requested."""

    estimate: float
    low: float
    high: float

    def format(self, digits: int = 3) -> str:
        """Formats it as `estimate [low, high]`."""
        return f"{self.estimate:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"
