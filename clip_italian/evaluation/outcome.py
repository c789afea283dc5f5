"""What a finished run leaves to read and to look at: report, table, curves and galleries."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from clip_italian.evaluation import gallery, plots, report
from clip_italian.evaluation.retrieval import EvaluationSet, set_metrics


class PictureSet(EvaluationSet, Protocol):
    """An evaluation set that can also show its pictures."""

    def thumbnails(self, indices: Sequence[int]) -> Sequence[np.ndarray] | np.ndarray:
        """Uint8 [height, width, 3] for each index."""
        ...


def write_outcome(
    workdir: str,
    encoded: Sequence[tuple[PictureSet, np.ndarray, np.ndarray]],
    *,
    metrics_lines: Sequence[Mapping[str, Any]],
    phases: Sequence[tuple[int, str]],
    data_fingerprint: str,
    command: str,
    step: int,
    classify: bool,
) -> str:
    """Writes `report.json`, `curves.png` and a gallery for each set (HTML and PNG).

    Args:
      workdir: the run folder.
      encoded: sets with their image and caption embeddings, float32 [n, dim].
      metrics_lines: the run's metrics, as logged.
      phases: (first step, label) of each phase.
      data_fingerprint: of the validation records.
      command: the command line that was run.
      step: steps done.
      classify: also report zero-shot accuracy.

    Returns:
      What to print at the end of a run: the table and where everything is.
    """
    folder, results, lines = epath.Path(workdir), [], []
    for one, images, texts in encoded:
        values = set_metrics(one, images, texts, classify=classify)
        results.append(report.Result("this run", one.name, len(images), len(texts), values))
        chosen = gallery.choose_examples(images, texts, one.caption_image, one.captions)
        title = f"{one.name}, step {step:,}"
        page = folder / f"gallery_{one.name}.html"
        page.write_text(gallery.gallery_html(chosen, one.thumbnails, title=title))
        figure = gallery.gallery_figure(chosen, one.thumbnails, title=title)
        page.with_suffix(".png").write_bytes(plots.png(figure))
        lines.append(f"gallery:    {page} (and .png)")
    made = report.make_report(
        results,
        protocol="records_validation",
        data_fingerprint=data_fingerprint,
        command=command,
        step=step,
    )
    (folder / "report.json").write_text(report.dump(made))
    curves = plots.read_metrics(json.dumps(line) for line in metrics_lines)
    figure = plots.plot_curves(curves, phases, title=workdir)
    (folder / "curves.png").write_bytes(plots.png(figure))
    places = [f"curves:     {folder / 'curves.png'}", *lines, f"run folder: {folder}"]
    return "\n".join([report.table(made), *places])
