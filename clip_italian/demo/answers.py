"""What the model says to the questions of the page; knows nothing of pages."""

import dataclasses
import functools
import threading
from collections.abc import Sequence

import numpy as np

from clip_italian.demo.index import Index
from clip_italian.demo.pictures import Picture
from clip_italian.evaluation import zero_shot
from clip_italian.evaluation.languages import naming
from clip_italian.hub.load import LoadedModel, RunEncoder

NEAR_DUPLICATE = 0.98  # cosine from which two pictures count as nearly the same
NEGATIVE_WEIGHT = 0.5  # of the text that pictures must not show
MOST_RESULTS = 48
_WIDER = 8  # times more pictures are looked at than shown, when some are folded
_REMEMBERED = 4096  # texts


@dataclasses.dataclass(frozen=True)
class Found:
    """Pictures for a query, best first.

    Attributes:
      rows: int64 [found], rows of the index.
      scores: float32 [found], cosine similarity to the query, less that to the negative text.
      folded: for each the rows that were folded into it.
    """

    rows: np.ndarray
    scores: np.ndarray
    folded: Sequence[Sequence[int]]


class Answers:
    """One model and the index of some pictures made with it. Safe to call from several threads."""

    def __init__(
        self, model: LoadedModel, encoder: RunEncoder, index: Index, exact: bool = True
    ) -> None:
        """Takes them as they are.

        Args:
          model: as loaded.
          encoder: the same model, compiled for single pictures and texts.
          index: made with this model.
          exact: how the index is searched, see `Index.search`.
        """
        self.model, self.encoder, self.index, self.exact = model, encoder, index, exact
        self._texts = functools.lru_cache(_REMEMBERED)(self._encode)
        self._packs: dict[str, np.ndarray] = {}
        self._pack_lock = threading.Lock()

    def warm_up(self) -> None:
        """Compiles and reads what the first visitors would wait for, or fail by.

        Texts of common lengths, a picture, the approximate index where it is used.
        """
        size = self.encoder.image_size
        pixels = np.zeros((1, size, size, 3), np.uint8)
        self.encoder.encode_pixels(pixels)
        self.encoder.patch_embeds(pixels)
        for words in (1, 8, 16):  # lengths are rounded up, so these stand for others
            query = self.encoder.encode_texts([" ".join(["una"] * words)])[0]
        self._search(query, 1, fold=False)

    def text_embeds(self, text: str) -> np.ndarray:
        """Float32 [dim], length 1."""
        return self._texts(text)

    def _encode(self, text: str) -> np.ndarray:
        return self.encoder.encode_texts([text])[0]

    def by_text(self, text: str, negative: str, k: int, *, fold: bool) -> Found:
        """Pictures for a text: score = cos(text) - `NEGATIVE_WEIGHT` × cos(negative).

        Args:
          text: query.
          negative: what pictures must not show; may be empty.
          k: how many pictures, at most `MOST_RESULTS`.
          fold: whether near-duplicates of a better picture are folded into it.
        """
        query = self.text_embeds(text)
        if negative:
            query = query - NEGATIVE_WEIGHT * self.text_embeds(negative)
        return self._search(query, k, fold)

    def by_row(self, row: int, k: int, *, fold: bool) -> Found:
        """Pictures like one of the index, itself first (if search is exact).

        Raises:
          IndexError: no such row.
        """
        if not 0 <= row < len(self.index.keys):
            raise IndexError(f"row {row} of {len(self.index.keys)}")
        return self._search(self.index.image_embeds[row], k, fold)

    def _search(self, query: np.ndarray, k: int, fold: bool) -> Found:
        k = max(1, min(k, MOST_RESULTS))
        rows, scores = self.index.search(query, k * _WIDER if fold else k, self.exact)
        if not fold:
            return Found(rows, scores, [()] * len(rows))
        groups = fold_duplicates(self.index.image_embeds[rows], NEAR_DUPLICATE)[:k]
        first = [group[0] for group in groups]
        folded = [[int(rows[place]) for place in group[1:]] for group in groups]
        return Found(rows[first], scores[first], folded)

    def image_embeds(self, picture: Picture) -> np.ndarray:
        """Float32 [dim], length 1: the picture as evaluation sees it."""
        return self.encoder.encode_images(lambda _: [picture.data], ["upload"])[0]

    def pixels(self, picture: Picture) -> np.ndarray:
        """Uint8 [size, size, 3]: the same picture as the model sees it, its middle square."""
        return self.encoder.pixels(lambda _: [picture.data], ["upload"])[0]

    def probabilities(self, picture: Picture, texts: Sequence[str]) -> np.ndarray:
        """Float64 [texts]: how probable the model finds each text for the picture.

        A softmax over the texts (Radford et al. 2021, arXiv:2103.00020, section 3.1.2), or for a
        model of the sigmoid loss each by itself (Zhai et al. 2023, arXiv:2303.15343, section 3.2).
        """
        embeds = np.stack([self.text_embeds(text) for text in texts])
        return self._probabilities(embeds @ self.image_embeds(picture))

    def pack_probabilities(self, picture: Picture, template: str) -> tuple[list[str], np.ndarray]:
        """Names of the 1,000 classes of ImageNet in Italian, and the probability of each.

        Classes of one name share a text, so the softmax is over distinct names.

        Raises:
          ConfigError: the template names no form of the pack.
        """
        pack = naming.single(naming.open_pack("it"), template)
        with self._pack_lock:  # encoded once, however many ask at the same time
            if template not in self._packs:
                self._packs[template] = zero_shot.pack_embeds(pack, self.encoder.encode_texts)
        names = [one.forms["bare"] for one in pack.classes]
        first = {name: place for place, name in reversed(list(enumerate(names)))}
        distinct = sorted(first.values())
        cosines = self._packs[template][distinct] @ self.image_embeds(picture)
        return [names[place] for place in distinct], self._probabilities(cosines)

    def _probabilities(self, cosines: np.ndarray) -> np.ndarray:
        logits = cosines.astype(np.float64) * self.encoder.logit_scale
        if self.encoder.logit_bias is not None:
            return 1 / (1 + np.exp(-(logits + self.encoder.logit_bias)))
        raised = np.exp(logits - logits.max())
        return raised / raised.sum()


def fold_duplicates(image_embeds: np.ndarray, threshold: float) -> list[list[int]]:
    """Groups of near-duplicates, in the order of their first members.

    Args:
      image_embeds: float32 [n, dim], rows of length 1, best first.
      threshold: cosine to a group's first member from which a picture joins the group.

    Returns:
      Places 0 to n - 1, each in one group; the first of a group is its best.
    """
    groups: list[list[int]] = []
    cosines = image_embeds @ image_embeds.T
    for place in range(len(image_embeds)):
        like = (group for group in groups if cosines[place, group[0]] >= threshold)
        group = next(like, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return groups
