"""The model card: README.md of an exported folder, for the hub and for people."""

import dataclasses
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from clip_italian.config import Config, ConfigError, resolve
from clip_italian.evaluation import report as reports
from clip_italian.evaluation.outcome import MODEL
from clip_italian.evaluation.report_tables import metric_title
from clip_italian.hub.card_words import (
    LANGUAGES,
    LICENSES,
    describe_protocol,
    from_scratch,
    phase_rows,
    rate_rows,
    recipe,
)
from clip_italian.hub.verify import Check

# Task of a report → the hub's id of it, or one like it, and a name. Contrast pairs are left out:
# they are few and have no intervals, so they are no score of a model.
_TASKS = {
    "retrieval": ("image-text-retrieval", "Image–text retrieval"),
    "zero_shot": ("zero-shot-image-classification", "Zero-shot image classification"),
    "linear_probe": ("image-classification", "Image classification on frozen embeddings"),
    "knn": ("image-classification", "Image classification on frozen embeddings"),
}
_METRICS = {"R": "recall", "MRR": "mrr", "acc": "accuracy"}
# Control characters, what turns the direction of writing, and halves of surrogate pairs.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# Markup, and what makes links of bare addresses and mentions.
_MARKDOWN = re.compile(r"([\\`*_<>|~\[\]#$&@]|:(?=//)|(?<=www)\.)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of a model besides its results.

    Attributes:
      name: what the card's code loads: the hub id when it will be pushed, else the folder.
      language: of the captions, as a BCP 47 tag; empty when unknown.
      license: as the hub names it, or any other name; empty when unknown.
      base_models: hub ids of the towers that training started from.
      datasets: names of the training sources; "owner/name" is a hub id.
      config: of the run; None when the model is not of ours.
      hardware: that it was trained on, for people; empty when unknown.
      parameters: part of the model → how many it has.
      logit_scale: a plain factor, not a log.
      logit_bias: of sigmoid models (logit units).
      projection_dim: width of the shared space.
      image_size: side of the images, in pixels.
      max_length: longest caption, in tokens.
      step: optimizer steps the weights have seen; None when unknown.
      padding_idx: of text towers that count positions from behind it (RoBERTa); else None.
      sentence_transformers: whether the folder has the files of it; likewise the next two.
      onnx: see there.
      open_clip: see there.
      hypothesis_template: sentence around a label, with {}; empty takes the language's own.
      labels: a few to classify with, in the model's language.
    """

    name: str
    logit_scale: float
    projection_dim: int
    image_size: int
    max_length: int
    language: str = "it"
    license: str = ""
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    config: Config | None = None
    hardware: str = ""
    parameters: Mapping[str, int] = dataclasses.field(default_factory=dict)
    logit_bias: float | None = None
    step: int | None = None
    padding_idx: int | None = None
    sentence_transformers: bool = False
    onnx: bool = False
    open_clip: bool = False
    hypothesis_template: str = ""
    labels: tuple[str, ...] = ("un gatto", "un cane", "una bicicletta")


def model_card(
    facts: CardFacts,
    report: Mapping[str, Any] | None,
    checks: Sequence[Check],
    *,
    ours: str = MODEL,
) -> ModelCard:
    """The card of an exported model; `card.save(path)` writes it.

    Args:
      facts: what is not in the report.
      report: from `evaluation.report`, or None: then the card says that there are no numbers.
      checks: how far the exported files are from the model they were made of; may be empty.
      ours: what the report calls this model. Others are shown beside it, as baselines, and are
        not in the metadata.

    Raises:
      ConfigError: the report has no results of `ours`.
    """
    found = [] if report is None else reports.results(report)
    names = list(dict.fromkeys(one.model for one in found))
    if report is not None and ours not in names:
        raise ConfigError(
            f"report: it has no results of {ours!r}, but of {', '.join(map(repr, names)) or 'none'}"
            "; name the one that is exported, or leave the report out"
        )
    own = [one for one in found if one.model == ours]
    values = {
        **_words(facts),
        "facts": facts,
        "checks": checks,
        "results": _results(report) if report else "",
        "ours": ours,
        "baselines": [name for name in names if name != ours],
        "report_step": report["step"] if report else None,
        "tasks": {one.task for one in found},
        "protocols": {one.protocol: describe_protocol(one.protocol)[1] for one in found},
    }
    return ModelCard(f"---\n{_metadata(facts, own).to_yaml()}\n---\n\n{_render(values)}")


def _metadata(facts: CardFacts, results: Sequence[reports.Result]) -> ModelCardData:
    """What the hub reads. It refuses ids that cannot be ids, so these are left to the text."""
    tags = ["clip", "vision-text-dual-encoder", "image-text-retrieval", "jax", "flax"]
    optional = {
        "sentence-transformers": facts.sentence_transformers,
        "onnx": facts.onnx,
        "open_clip": facts.open_clip,
        "italian": _code_of(facts.language) == "it",
    }
    scores = [score for one in results for score in _scores(one)]
    return ModelCardData(
        language=_code_of(facts.language) or None,
        base_model=[name for name in facts.base_models if _is_id(name)] or None,
        datasets=[name for name in facts.datasets if "/" in name and _is_id(name)] or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=tags + [name for name, there in optional.items() if there],
        eval_results=scores or None,
        model_name=_title(facts.name) if scores else None,
        **_license(facts.license),
    )


def _license(name: str) -> dict[str, Any]:
    """One that the hub does not know is "other", with its name."""
    if not name or name.lower() in LICENSES:
        return {"license": name.lower() or None}
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-"),
    }


def _scores(one: reports.Result) -> list[EvalResult]:
    """The numbers of one result as the hub's metadata has them: fractions, and ranks."""
    if one.task not in _TASKS:
        return []
    kind, task = _TASKS[one.task]
    name, protocol = _plain(one.set), _plain(one.protocol)
    return [
        EvalResult(
            task_type=kind,
            task_name=task,
            dataset_type=re.sub(r"[^\w.-]+", "_", name),
            dataset_name=f"{name}, protocol {protocol}",
            dataset_config=protocol,
            dataset_split=_plain(describe_protocol(one.protocol)[0]) or None,
            dataset_revision=one.data_fingerprint or None,
            metric_type=_metric_id(metric),
            metric_name=_plain(metric_title(metric) + (f" ({one.variant})" if one.variant else "")),
            metric_value=float(value),
            metric_config=metric,
            metric_args={"interval_95": [float(end) for end in one.intervals[metric]]}
            if metric in one.intervals
            else None,
        )
        for metric, value in one.metrics.items()
        if math.isfinite(value)
    ]


def _metric_id(metric: str) -> str:
    """`text_to_image/R@5` → "recall_at_5", `zero_shot/acc@1` → "accuracy"."""
    last = metric.rpartition("/")[2]
    name, _, k = last.partition("@")
    if not k or name not in _METRICS:
        return last
    return _METRICS[name] if last == "acc@1" else f"{_METRICS[name]}_at_{k}"


def _results(report: Mapping[str, Any]) -> str:
    """The tables of the report, as a part of the card; how they were made is in the JSON."""
    tables, _, _ = reports.markdown(report).partition("\n\n## How it was made\n")
    return re.sub(r"(?m)^## ", "### ", tables.removeprefix("# Evaluation").strip())


def _words(facts: CardFacts) -> dict[str, Any]:
    """What the template says of the facts."""
    code = _code_of(facts.language)
    config = None if facts.config is None else resolve(facts.config)
    template = facts.hypothesis_template or ("una foto di {}" if code == "it" else "{}")
    return {
        "title": _title(facts.name),
        "language": LANGUAGES.get(code) or _plain(facts.language),
        "template": template,
        "texts": [template.replace("{}", label) for label in facts.labels],
        "demonstration": set(facts.datasets) == {"sample"},
        "scratch": config is not None and from_scratch(config),
        "recipe": recipe(config) if config else [],
        "phases": phase_rows(config) if config else [],
        "rates": rate_rows(config) if config else [],
    }


def _render(values: Mapping[str, Any]) -> str:
    """The template with these values, all of them shown as they are and not as Markdown."""

    def finalize(value: object) -> str:
        return value if isinstance(value, Markup) else _MARKDOWN.sub(r"\\\1", _plain(value))

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clip_italian.hub"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=finalize,
    )
    environment.filters["code"] = lambda text: Markup(f"`{_plain(text).replace('`', chr(39))}`")
    environment.filters["python"] = lambda value: Markup(json.dumps(value, ensure_ascii=False))
    environment.filters["shell"] = lambda text: Markup(shlex.quote(_plain(text)))
    environment.filters["markdown"] = Markup
    environment.filters["count"] = lambda count: Markup(f"{count:,}")
    environment.filters["number"] = lambda value: Markup(f"{value:g}")
    environment.filters["error"] = lambda value: Markup(f"{value:.1e}")
    text = environment.get_template("model_card.md.j2").render(values)
    # A file name from the system may hold bytes that are no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(text: object) -> str:
    """On one line, unsafe characters replaced."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))


def _title(name: str) -> str:
    return _plain(name.rstrip("/").rpartition("/")[2] or name)


def _code_of(language: str) -> str:
    """`pt-BR` → "pt": the hub takes codes of two or three letters; empty where there is none."""
    code = language.partition("-")[0].lower()
    return code if re.fullmatch(r"[a-z]{2,3}", code) else ""


def _is_id(name: str) -> bool:
    """Whether the hub could have it: NAME or OWNER/NAME, no path and no address."""
    return bool(re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", name, re.ASCII))
