"""Conceptual Captions (CC3M and CC12M): a caption and a URL a line, no header, no quoting.

P. Sharma et al., "Conceptual Captions: A Cleaned, Hypernymed, Image Alt-text Dataset For Automatic
Image Captioning", ACL 2018; S. Changpinyo et al., "Conceptual 12M", CVPR 2021.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from clip_italian.config import ConfigError
from data_prep.lines import find_files, text_lines
from data_prep.rows import Item, Reject, Row, Skip

_LOOKED_AT = 100  # lines that tell which column is which
_SCHEMES = ("http://", "https://")


@dataclasses.dataclass(frozen=True)
class ConceptualCaptions:
    """Reads Conceptual Captions; its captions are English, so they need --translate."""

    path: tuple[str, ...]
    """TSV files (.gz or not), folders with such files, or patterns."""
    columns: Literal["caption_url", "url_caption"] = "caption_url"
    """Order of the two columns: caption_url is CC3M's, url_caption is CC12M's."""

    name = "cc"

    def inputs(self) -> list[str]:
        """The files.

        Raises:
          ConfigError: naming `path`: nothing is there; naming `columns`: they are in another order.
        """
        files = find_files(self.path, [".tsv"])
        for file in files:
            start = (line for _, line in zip(range(_LOOKED_AT), text_lines(file), strict=False))
            pairs = [line.split("\t") for _, line in start if isinstance(line, str)]
            pairs = [pair for pair in pairs if len(pair) == 2]
            urls = [sum(pair[place].startswith(_SCHEMES) for pair in pairs) for place in (0, 1)]
            if urls[self._url_place()] < urls[1 - self._url_place()]:
                other = {"caption_url": "url_caption", "url_caption": "caption_url"}[self.columns]
                raise ConfigError(f"columns = {self.columns!r}, but {file} has {other!r}")
        return files

    def _url_place(self) -> int:
        return 1 if self.columns == "caption_url" else 0

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a line.

        Reasons: `wrong number of columns`, `no caption`, `no image URL`, and those of
        `data_prep.lines.text_lines`. Skipped: `blank line`.
        """
        place, blank = self._url_place(), 0
        for number, line in text_lines(path):
            if isinstance(line, Reject):
                yield line
            elif not line:
                blank += 1
            elif line.count("\t") != 1:
                yield Reject(number, "wrong number of columns", line[:100])
            else:
                pair = line.split("\t")
                yield _item(number, pair[1 - place], pair[place])
        if blank:
            yield Skip("blank line", blank)


def _item(number: int, caption: str, url: str) -> Row | Reject:
    if not caption.strip():
        return Reject(number, "no caption", url)
    if not url.startswith(_SCHEMES):
        return Reject(number, "no image URL", url)
    return Row(number, (caption,), url, image_id=url)
