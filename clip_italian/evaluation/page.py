"""The report as one page: tables, curves, classes, comparisons and a gallery. Needs no other file.

Made from the report's JSON, the ranks beside it, and pictures; the template is
`templates/report.html.j2`.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath

from clip_italian.evaluation import page_plots, page_sections, report_tables
from clip_italian.evaluation.examples import BestAndWorst, Example
from clip_italian.evaluation.gallery import Thumbnails, fetch_pictures, picture_uri
from clip_italian.evaluation.metrics import DIRECTIONS

_SIDE, _QUALITY = 128, 80  # of a picture: pixels of its longer side, and of the JPEG
_ORDER = ("retrieval", "zero_shot", "linear_probe", "knn", "contrast")


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """Queries of one set to be shown with pictures.

    Attributes:
      set: its name in the report.
      language: of the captions, as a BCP 47 tag.
      chosen: from `examples.best_and_worst`, for each model that chooses.
      thumbnails: gives the pictures, which are shown at their own proportions.
    """

    set: str
    language: str
    chosen: Sequence[BestAndWorst]
    thumbnails: Thumbnails


def write_page(
    path: str | os.PathLike[str],
    report: Mapping[str, Any],
    items: Sequence[Mapping[str, np.ndarray]],
    examples: Sequence[Exhibit] = (),
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      report: from `report.make_report` or `report.parse`.
      items: for each result its arrays, as `report.write` takes them; where they are empty, the
        page does not say how often only one of two models was right.
      examples: queries to show, for each set.
    """
    template = _environment().get_template("report.html.j2")
    html = template.render(_values(report, items, examples))
    # Captions may hold halves of surrogate pairs, which UTF-8 has no bytes for.
    epath.Path(path).write_bytes(html.encode("utf-8", "backslashreplace"))


def _values(
    report: Mapping[str, Any],
    items: Sequence[Mapping[str, np.ndarray]],
    exhibits: Sequence[Exhibit],
) -> dict[str, Any]:
    """What the template is given."""
    models = {
        name: n for n, name in enumerate(dict.fromkeys(r["model"] for r in report["results"]))
    }
    tables = sorted(report_tables.collect(report), key=lambda one: _ORDER.index(one.task))
    sets = dict.fromkeys(result["set"] for result in report["results"])
    return {
        "report": report,
        "models": models,
        "styles": {name: page_plots.style_of(n) for name, n in models.items()},
        "sets": {
            name: [page_sections.section(one, models) for one in tables if one.set == name]
            for name in sets
        },
        "compared": report_tables.COMPARED,
        "comparisons": _comparisons(report, items),
        "seeds": [
            (report_tables.comparison_name(one), one["model"], *report_tables.seed_cells(one),
             one["seeds"])
            for one in report["seeds"]
        ],
        "exhibits": list(map(_exhibit, exhibits)),
        "made_by": report_tables.made_by(report),
    }  # fmt: skip


def _comparisons(
    report: Mapping[str, Any], items: Sequence[Mapping[str, np.ndarray]]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(a, b) → the tests of these two models; places are in percent of an axis with 0 amid."""
    cells = [report_tables.difference_cell(one) for one in report["comparisons"]]
    ends = [abs(end) for one in cells if not one.rank for end in (one.low, one.high) if end]
    end = max([0.01, *ends])
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one, cell in zip(report["comparisons"], cells, strict=True):
        places = [50 + 50 * value / end for value in (one["difference"], one["low"], one["high"])]
        shown = {
            "name": report_tables.comparison_name(one),
            "cell": cell,
            "places": None if cell.rank else places,
            "p": report_tables.p_value(one["p_value"]),
            "counts": _agreement(one, report, items),
        }
        pairs.setdefault((one["a"], one["b"]), []).append(shown)
    return pairs


def _agreement(
    one: Mapping[str, Any], report: Mapping[str, Any], items: Sequence[Mapping[str, np.ndarray]]
) -> tuple[int, int, int, int] | None:
    """Queries that both models find among their first k, only a, only b, neither.

    None where that cannot be said: a metric that is no share, several seeds, no ranks.
    """
    prefix, at, k = one["metric"].partition("/")[0], *one["metric"].rpartition("@")[1:]
    if not at or "MRR" in one["metric"]:
        return None
    if one.get("seeds_a", 1) > 1 or one.get("seeds_b", 1) > 1:
        return None
    name = prefix if prefix in DIRECTIONS else "ranks"
    found = []
    for model in (one["a"], one["b"]):
        wanted = (model, one["set"], one["task"], one.get("variant", ""))
        own = [
            arrays[name] <= int(k)
            for result, arrays in zip(report["results"], items, strict=True)
            if tuple(result[key] for key in ("model", "set", "task", "variant")) == wanted
            and name in arrays
        ]
        found += own if len(own) == 1 else []
    if len(found) != 2 or len(found[0]) != len(found[1]):
        return None
    a, b = found
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def _exhibit(one: Exhibit) -> dict[str, Any]:
    shown: list[Example] = [
        example for chosen in one.chosen for row in (*chosen.best, *chosen.worst) for example in row
    ]
    pictures = fetch_pictures(shown, one.thumbnails)
    uris = {image: picture_uri(array, _SIDE, _QUALITY) for image, array in pictures.items()}
    return {"set": one.set, "language": one.language, "chosen": one.chosen, "uris": uris}


def _environment() -> Any:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clip_italian.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = "{:,}".format
    return environment
