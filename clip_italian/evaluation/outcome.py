"""What a finished run leaves to read and to look at: report, table, curves and galleries."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from clip_italian.collection import Collection
from clip_italian.evaluation import (
    examples,
    gallery,
    plots,
    report,
    report_tables,
    tasks,
    zero_shot,
)
from clip_italian.evaluation.languages import naming
from clip_italian.evaluation.retrieval import LabelledSet, NamedSet

RESAMPLES = 1000  # of the bootstrap
MODEL = "this run"
_PAIRS_PER_SECOND = "rate/pairs_per_second"


class PictureSet(NamedSet, Protocol):
    """An evaluation set that can also say what it is made of and show its pictures."""

    @property
    def collection(self) -> Collection:
        """What the set is made of."""
        ...

    def thumbnails(self, indices: Sequence[int]) -> Sequence[np.ndarray] | np.ndarray:
        """Uint8 [height, width, 3] for each index."""
        ...


def write_outcome(
    workdir: str,
    encoded: Sequence[tuple[PictureSet | LabelledSet, np.ndarray, np.ndarray]],
    *,
    metrics_lines: Sequence[Mapping[str, Any]],
    phases: Sequence[tuple[int, str]],
    data_fingerprint: str,
    command: str,
    step: int,
    classify: bool,
) -> str:
    """Writes `report.json`, `items.npz`, `curves.png` and a gallery (HTML, PNG) of each set.

    Args:
      workdir: the run folder.
      encoded: sets with their image and text embeddings, float32 [n, dim]; texts are captions, or
        the prompts of a labelled set.
      metrics_lines: the run's metrics, as logged.
      phases: (first step, label) of each phase.
      data_fingerprint: of the records the run has read.
      command: the command line that was run.
      step: steps done.
      classify: captions are class labels: also report zero-shot accuracy among them.

    Returns:
      What to print at the end of a run: the table and where everything is.
    """
    folder, outcomes, lines = epath.Path(workdir), [], []
    for one, images, texts in encoded:
        if isinstance(one, LabelledSet):
            outcomes.append(_labelled(one, images, texts))
            continue
        outcomes.append(tasks.retrieval(_subject(one), images, texts))
        if classify and one.labels is None:
            outcomes.append(_captions_as_labels(one, images, texts))
        page = _write_gallery(folder, one, images, texts, step)
        lines.append(f"gallery:    {page} (and .png)")
    made = report.make_report(
        [one.result for one in outcomes],
        command=command,
        step=step,
        training_data=data_fingerprint,
        speed=training_speed(metrics_lines),
    )
    report.write(folder, made, [one.items for one in outcomes])
    curves = plots.read_metrics(json.dumps(line) for line in metrics_lines)
    figure = plots.plot_curves(curves, phases, title=workdir)
    (folder / "curves.png").write_bytes(plots.png(figure))
    places = [f"curves:     {folder / 'curves.png'}", *lines, f"run folder: {folder}"]
    speed = " · ".join(f"{name} {value}" for name, value in report_tables.speed_rows(made))
    if speed:
        places.insert(0, f"training:   {speed}")
    return "\n".join([report.table(made), *places])


def training_speed(metrics_lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians of what the run has logged of its speed, and its peak of memory.

    The first line with rates after each start of the run is left out, unless there is no other.
    """
    lines = [one for one in metrics_lines if _PAIRS_PER_SECOND in one]
    lines = [one for one in lines if "start" not in one] or lines
    found = {}
    for name in report_tables.SPEED:
        values = [one[name] for one in lines if name in one]
        if values:
            found[name] = float(max(values) if name.startswith("memory/") else np.median(values))
    return found


def _subject(one: PictureSet) -> tasks.Subject:
    return tasks.Subject(MODEL, "", one.collection, RESAMPLES)


def _labelled(one: LabelledSet, images: np.ndarray, prompts: np.ndarray) -> tasks.Outcome:
    """Zero-shot with the prompts of a language pack."""
    embeds = zero_shot.pack_embeds(one.pack, lambda texts: prompts)
    inner: Any = one.inner
    return tasks.classification(_subject(inner), images, embeds, one.labels, one.pack, one.variant)


def _captions_as_labels(one: PictureSet, images: np.ndarray, texts: np.ndarray) -> tasks.Outcome:
    """Zero-shot among the distinct captions."""
    captions = list(one.captions)
    names, labels = zero_shot.classes_from_captions(captions, one.caption_image)
    embeds = texts[[captions.index(name) for name in names]]
    pack = naming.plain_pack(names, names)
    return tasks.classification(_subject(one), images, embeds, labels, pack, "captions, {}")


def _write_gallery(
    folder: epath.Path, one: PictureSet, images: np.ndarray, texts: np.ndarray, step: int
) -> epath.Path:
    chosen = examples.choose_examples(images, texts, one.caption_image, one.captions)
    title = f"{one.name}, step {step:,}"
    page = folder / f"gallery_{one.name}.html"
    page.write_text(
        gallery.gallery_html(chosen, one.thumbnails, title=title, language=one.collection.language)
    )
    figure = gallery.gallery_figure(chosen, one.thumbnails, title=title)
    page.with_suffix(".png").write_bytes(plots.png(figure))
    return page
