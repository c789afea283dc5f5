"""Training records that cannot be read or decoded: named, counted, and not too many."""

import logging

import numpy as np

from clip_italian.config import ConfigError

SHARE = 0.01  # of records that may be broken
# Fewer broken ones never end a run. Their share counts from so many records on (or all): with one
# broken record in 200 a run is ended wrongly once in 5,000.
FEWEST, FROM = 10, 3000


class Broken:
    """What one host met of the records since its process started; a resumed run meets them anew.

    Attributes:
      records: (name, reason) of each broken record, in the order in which they were found.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.records: list[tuple[str, str]] = []
        self._read: dict[int, np.ndarray] = {}  # source → bool [largest record met + 1]

    def note_read(self, source: np.ndarray, record: np.ndarray) -> None:
        """Counts the records of a batch, each once: int64 [n] both."""
        for number in np.unique(source):
            some = record[source == number]
            read = self._read.get(int(number), np.zeros(0, bool))
            if len(read) <= some.max():
                read = np.concatenate([read, np.zeros(some.max() + 1, bool)])
            read[some] = True
            self._read[int(number)] = read

    def note_broken(self, name: str, reason: str) -> None:
        """A record that is replaced from now on."""
        self.records.append((name, reason))
        logging.warning(
            "%s is replaced: %s (%d broken records, %d sound ones read)",
            name, reason, len(self.records), self.sound,
        )  # fmt: skip

    @property
    def sound(self) -> int:
        """Different records that were read and decoded."""
        return sum(int(np.count_nonzero(read)) for read in self._read.values())

    def check(self, total: int) -> None:
        """Raises `ConfigError` if too many are broken; `total` is the number of all records.

        Too many are ten or more that make up over 1% of the records read so far, or of the first
        3,000 (of all, where there are fewer).
        """
        count = len(self.records)
        read = count + self.sound
        if count < FEWEST or count <= SHARE * max(read, min(total, FROM)):
            return
        some = "; ".join(f"{name}: {reason}" for name, reason in self.records[:3])
        raise ConfigError(
            f"sources: {count} of {read} records read so far ({count / read:.1%}) cannot be "
            f"decoded, and no more than {SHARE:.0%} may be ({some}; ...): prepare or copy these "
            "sources again, or leave them out; each broken record is named in the log above"
        )
