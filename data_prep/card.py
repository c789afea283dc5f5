"""The data card: what a prepared source holds, and what became of everything that was read."""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_italian.data.records import Record
from data_prep.card_numbers import Lengths, Line, TokenCounter, check_summary, count_lengths, funnel
from data_prep.card_plots import funnel_figure, lengths_figure, png, sheet_figure
from data_prep.pages import data_uri, picture_uri, plain, render_html, render_markdown

EXAMPLES = 3  # rejects shown for each reason
_SIDE = 320  # longer side of an embedded picture, in pixels
_CAPTIONS = 3  # shown for each picture
_TEXT = 200  # characters of a caption that are shown
_FILE = 60  # characters of a file name that are shown
_SHEET_DPI = 100
_EMPTY: dict[str, Any] = {"inputs": [], "leakage": {}, "versions": {}}
_TASKS = ("image-to-text", "text-to-image", "zero-shot-image-classification")
_SIZES = {
    "n<1K": 1e3, "1K<n<10K": 1e4, "10K<n<100K": 1e5, "100K<n<1M": 1e6, "1M<n<10M": 1e7,
    "10M<n<100M": 1e8, "100M<n<1B": 1e9,
}  # fmt: skip
# What the hub's card metadata can name, of what sources of pictures state.
_LICENSES = {
    "apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
}  # fmt: skip
_CC_URL = re.compile(
    r"https?://creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)"
    r"(?:/(?:deed|legalcode)[.\w-]*)?/?"
)


def write_card(
    folder: Path,
    summary: Mapping[str, Any],
    pictures: Sequence[Record],
    rejects: Iterable[Mapping[str, Any]],
    captions: Iterable[str],
    tokenizer: TokenCounter | None = None,
) -> None:
    """Writes the card as a page of its own, as Markdown for the hub, and as numbers.

    `README.md` (with `funnel.png`, `caption_lengths.png` and `pictures.png`), `card.html` (needs
    no other file) and `summary.json` (the summary and the lengths of captions).

    Args:
      folder: where to; made if it is not there.
      summary: what the preparation counted, see `check_summary`.
      pictures: the records to show.
      rejects: `stage`, `reason`, `file`, `line`, `detail`, `image` and `captions` of all that was
        set aside; consumed once, of each reason a few random ones are kept.
      captions: all captions of the records; consumed once.
      tokenizer: texts → number of tokens of each; without one, words are counted.

    Raises:
      ValueError: the numbers do not add up, or there are not as many captions as they say.
    """
    check_summary(summary)
    lengths = count_lengths(captions, tokenizer)
    promised = sum(summary["captions"].values())
    if lengths[0].captions != promised:
        raise ValueError(f"captions: {lengths[0].captions} were given, the summary has {promised}")
    folder.mkdir(parents=True, exist_ok=True)
    funnels = funnel(summary)
    title = plain(summary.get("title") or summary["source"], 120)
    images = _images(funnels, lengths, pictures, title)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    values = {
        **_facts(summary, title),
        "funnels": funnels,
        "lengths": lengths,
        "lengths_rows": _length_rows(lengths),
        "lengths_text": ". ".join(map(_describe, lengths)),
        "pictures": [_picture(one) for one in pictures],
        "rejects": _examples(rejects),
    }
    histogram = data_uri(images["caption_lengths.png"], "image/png")
    matter = _front_matter(summary, title)
    facts = {**summary, "caption_lengths": {one.unit: one.facts() for one in lengths}}
    for name, text in {
        "card.html": render_html("card.html.j2", **values, histogram=histogram),
        "README.md": render_markdown("card.md.j2", **values, front_matter=matter),
        "summary.json": json.dumps(facts, indent=1, ensure_ascii=False) + "\n",
    }.items():
        # A file name from the system may hold bytes that are no UTF-8.
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _images(
    funnels: Mapping[str, Sequence[Line]],
    lengths: Sequence[Lengths],
    pictures: Sequence[Record],
    title: str,
) -> dict[str, bytes]:
    """File name → PNG."""
    images = {
        "funnel.png": png(funnel_figure(funnels, title)),
        "caption_lengths.png": png(lengths_figure(lengths)),
    }
    if pictures:
        cells = [(one.image, one.captions[0]) for one in pictures]
        images["pictures.png"] = png(sheet_figure(cells), _SHEET_DPI)
    return images


def _facts(summary: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Values of both templates; what a summary lacks is empty."""
    languages = summary.get("languages", {})
    keys = ("inputs", "leakage", "versions", "command", "date", "fingerprint", "translator")
    translation = dict(summary.get("translation") or {})
    if summary.get("translated_characters"):
        translation["characters of the originals"] = summary["translated_characters"]
    tables = {
        "Language": languages,
        "Source": summary.get("sources", {}),
        "License": summary.get("licenses", {}),
        "Translator": summary.get("translators", {}),
    }
    return {
        **{key: summary.get(key) or _EMPTY.get(key, "") for key in keys},
        "translation": translation,
        **{key: summary[key] for key in ("source", "entries", "steps", "records", "captions")},
        "options": {key: _option(value) for key, value in summary.get("options", {}).items()},
        "title": title,
        "language": _tag(max(languages, key=languages.__getitem__, default="")),
        "shares": {name: _ranked(counts) for name, counts in tables.items() if _told(counts)},
        "total_records": sum(summary["records"].values()),
        "total_captions": sum(summary["captions"].values()),
    }


def _told(counts: Mapping[str, int]) -> bool:
    return any(counts.values()) and set(counts) != {""}


def _ranked(counts: Mapping[str, int], most: int = 20) -> list[tuple[str, int]]:
    """The largest first; what is beyond `most` is summed up."""
    order = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    rows = [(plain(name, 100) or "not stated", count) for name, count in order if count]
    if len(rows) > most:
        rest = rows[most - 1 :]
        rows = [*rows[: most - 1], (f"{len(rest):,} others", sum(count for _, count in rest))]
    return rows


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _tag(language: str) -> str:
    """The code of a language ("pt-BR" is "pt") that can stand in front matter; else empty."""
    code = language.partition("-")[0]
    return code if re.fullmatch(r"[a-z]{2,3}", code) else ""


def _length_rows(lengths: Sequence[Lengths]) -> list[tuple[Any, ...]]:
    names = {"mean": "mean", "median": "median", "p95": "95% up to", "p99": "99% up to",
             "max": "longest"}  # fmt: skip
    facts = [one.facts() for one in lengths]
    return [(name, *(one[key] for one in facts)) for key, name in names.items()]


def _describe(lengths: Lengths) -> str:
    facts = lengths.facts()
    return (
        f"Length in {lengths.unit}: mean {facts['mean']:,}, median {facts['median']:,}, "
        f"95% up to {facts['p95']:,}, 99% up to {facts['p99']:,}, longest {facts['max']:,}"
    )


def _picture(record: Record) -> dict[str, Any]:
    aligned = len(record.original_captions) == len(record.captions)
    originals = record.original_captions if aligned else [""] * len(record.captions)
    pairs = list(zip(record.captions, originals, strict=True))
    return {
        "uri": picture_uri(record.image, _SIDE),
        "captions": [
            (plain(one, _TEXT), plain(before, _TEXT)) for one, before in pairs[:_CAPTIONS]
        ],
        "more": max(len(pairs) - _CAPTIONS, 0),
        "image_id": plain(record.image_id, 80),
    }


def _examples(rejects: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(stage, reason) → up to `EXAMPLES` of its rejects, each equally likely; always the same."""
    rng = random.Random(0)
    seen: dict[tuple[str, str], int] = {}
    kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for reject in rejects:
        key = plain(reject["stage"], 80), plain(reject["reason"], 160)
        number = seen[key] = seen.get(key, 0) + 1
        place = number - 1 if number <= EXAMPLES else rng.randrange(number)
        if place < EXAMPLES:
            kept.setdefault(key, [])[place : place + 1] = [_example(reject)]
    return kept


def _example(reject: Mapping[str, Any]) -> dict[str, Any]:
    captions = [plain(one, _TEXT) for one in reject.get("captions") or ()]
    file = plain(reject.get("file", ""))
    file = file if len(file) <= _FILE else "…" + file[-_FILE:]  # the end tells more
    return {
        "place": f"{file}, line {plain(reject.get('line', ''), 20)}",
        "captions": captions[:_CAPTIONS],
        "more": max(len(captions) - _CAPTIONS, 0),
        "image": plain(reject.get("image") or "", 160),
        "detail": plain(reject.get("detail") or "", 160),
    }


def _front_matter(summary: Mapping[str, Any], title: str) -> Any:
    """YAML that the hub reads; every value is JSON, which YAML contains."""
    import markupsafe

    languages = summary.get("languages", {})
    total = sum(languages.values())
    tags = {_tag(name) for name, n in languages.items() if n >= 0.01 * total} - {""}
    records = sum(summary["records"].values())
    size = next((name for name, limit in _SIZES.items() if records < limit), "n>1T")
    stated = summary.get("licenses") or {"": records}
    licenses = sorted({hub_license(text) for text, n in stated.items() if n} or {"unknown"})
    fields = {
        "pretty_name": title,
        **({"language": sorted(tags)} if tags else {}),
        "license": licenses if len(licenses) > 1 else licenses[0],
        **({"license_name": "as-stated-by-each-record"} if "other" in licenses else {}),
        "task_categories": list(_TASKS),
        "size_categories": [size],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return markupsafe.Markup("\n".join(["---", *lines, "---"]))


def hub_license(text: str) -> str:
    """A license as a source states it → the hub's name of it, `other`, or `unknown` when empty.

    Args:
      text: "CC BY-SA 3.0", "https://creativecommons.org/licenses/by-sa/3.0/", "cc0-1.0", ...
        Versions of one country ("3.0/it") are other licenses.
    """
    stated = text.strip().lower()
    if not stated:
        return "unknown"
    found = _CC_URL.fullmatch(stated)
    name = f"cc-{found[1]}-{found[2]}" if found else re.sub(r"[ _-]+", "-", stated)
    name = {"cc-zero-1.0": "cc0-1.0", "cc0": "cc0-1.0", "apache-license-2.0": "apache-2.0",
            "mit-license": "mit"}.get(name, name)  # fmt: skip
    return name if name in _LICENSES else "other"
