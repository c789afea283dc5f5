"""A report with every kind of result and plausible numbers, for tests of what is made from it."""

import numpy as np
from PIL import Image, ImageDraw

from clip_italian.evaluation import examples, metrics, report
from clip_italian.evaluation.page import Exhibit

MODELS = ("CLIP-Italian", "mCLIP (clip-ViT-B-32-multilingual-v1 + clip-ViT-B-32)")
VARIANTS = ("it, una foto di {indefinite}", "legacy, {}")
_COLOURS = ("firebrick", "seagreen", "royalblue", "goldenrod", "slateblue", "chocolate")
_NAMES = ("tinca", "squalo bianco", "torpedine", "gallo", "fringuello delle nevi", "cardellino",
          "ponte sospeso in acciaio", "macchina da scrivere", "piastra per waffle")  # fmt: skip


def picture(number, size=(128, 96)):
    """A drawing; the even ones lie, the odd ones stand."""
    rng = np.random.default_rng(number)
    size = size if number % 2 == 0 else size[::-1]
    noise = rng.integers(150, 250, (size[1] // 8, size[0] // 8, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for colour in rng.choice(_COLOURS, 3):
        x, y = rng.integers(0, size[0] - 30), rng.integers(0, size[1] - 30)
        box = (int(x), int(y), int(x) + 40, int(y) + 30)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=str(colour))
    return np.asarray(image)


def thumbnails(indices):
    return [picture(int(index)) for index in indices]


def _around(value, width):
    return [max(value - width, 0.0), min(value + width * 0.9, 1.0)]


def retrieval(name, number, images, rng, noise):
    """One model's result, its arrays and what it embedded."""
    centres = rng.normal(size=(images, 32))
    caption_image = np.repeat(np.arange(images), 2).astype(np.int32)
    texts = centres[caption_image] + noise * rng.normal(size=(2 * images, 32))
    texts, centres = (
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        for rows in (texts, centres)
    )
    scores = texts @ centres.T
    own = scores[np.arange(len(texts)), caption_image]
    best = scores.reshape(images, 2, images)[np.arange(images), :, np.arange(images)].max(axis=1)
    of = {
        "text_to_image": (scores >= own[:, None]).sum(axis=1),
        "image_to_text": np.maximum((scores.T > best[:, None]).sum(axis=1) + 1, 1),
    }
    values, intervals, curves, items = {}, {}, {}, {}
    for direction, ranks in of.items():
        for k in (1, 5, 10):
            values[f"{direction}/R@{k}"] = metrics.recall_at_k(ranks, k)
            values[f"{direction}/MRR@{k}"] = metrics.mrr_at_k(ranks, k)
        intervals |= {f"{direction}/{k}": _around(values[f"{direction}/{k}"], 0.02)
                      for k in ("R@1", "R@5", "R@10", "MRR@1", "MRR@5", "MRR@10")}  # fmt: skip
        middle = metrics.median_rank(ranks)
        values[f"{direction}/median_rank"] = middle
        intervals[f"{direction}/median_rank"] = [middle, middle + 1]
        curves[direction] = [
            [k, metrics.recall_at_k(ranks, k)] for k in (1, 2, 3, 5, 7, 10, 20, 30, 50, 70, 100)
        ]
        cluster = caption_image if direction == "text_to_image" else np.arange(images)
        items |= {direction: ranks, f"{direction}/cluster": cluster.astype(np.int32)}
    result = report.Result(
        model=MODELS[number], model_fingerprint=f"{number}f" * 32, set=name, protocol="xm3600_p1",
        data_fingerprint="ab12" * 16, language="it", task="retrieval", images=images,
        captions=2 * images, metrics=values, intervals=intervals,
        details={"recall_curves": curves},
    )  # fmt: skip
    found = examples.Embedded(MODELS[number], centres, texts, of["text_to_image"])
    return result, items, found, caption_image


def zero_shot(number, variant, classes, rng, skill):
    names = [f"{_NAMES[c % len(_NAMES)]} {c // len(_NAMES) + 1}" for c in range(classes)]
    hits = rng.binomial(50, rng.beta(4 * skill, 4 * (1 - skill), classes))
    per_class = [
        [
            f"n{c:08d}",
            f"{name}{' alt' * (variant > 0)}",
            int(hit) / 50 if c else None,
            50 if c else 0,
        ]
        for c, (name, hit) in enumerate(zip(names, hits, strict=True))
    ]
    confusions = [
        [names[a], names[b], int(n)]
        for a, b, n in zip(
            rng.integers(0, classes, 40), rng.integers(0, classes, 40),
            sorted(rng.integers(3, 40, 40), reverse=True), strict=True,
        )
    ]  # fmt: skip
    ranks = np.where(rng.random(50 * classes) < skill, 1, rng.integers(1, classes, 50 * classes))
    values = {f"zero_shot/acc@{k}": float((ranks <= k).mean()) for k in (1, 5, 10, 100)}
    result = report.Result(
        model=MODELS[number], model_fingerprint=f"{number}f" * 32, set="tiny_imagenet",
        protocol="folder", data_fingerprint="cd34" * 16, language="it", task="zero_shot",
        variant=VARIANTS[variant], images=50 * classes, captions=classes * (1 + 34 * (not variant)),
        metrics=values, intervals={name: _around(v, 0.009) for name, v in values.items()},
        details={"per_class": per_class, "confusions": confusions},
    )  # fmt: skip
    return result, {"ranks": ranks}


def contrast(number, rng):
    values = {"contrast/accuracy": 0.55}
    for probe in ("left_right", "number", "colour_binding", "negation"):
        for score, chance in (("accuracy", 0.5), ("text", 0.25), ("image", 0.25), ("group", 1 / 6)):
            values[f"contrast/{probe}/{score}"] = float(np.clip(rng.normal(chance, 0.1), 0, 1))
    values["contrast/gendered_professions/accuracy"] = 0.7
    return report.Result(
        model=MODELS[number], set="contrast", protocol="contrast", data_fingerprint="ef56" * 16,
        language="it", task="contrast", images=160, captions=220, metrics=values,
        details={"left_right": {"items": 20}},
    )  # fmt: skip


def make(images=400, classes=200, queries=5):
    """(report, items, exhibits)."""
    rng = np.random.default_rng(0)
    results, items, exhibits = [], [], []
    for place, name in enumerate(("xm3600_it_p1", "mscoco_it_dev_unvalidated")):
        embedded, caption_image = [], np.zeros(0)
        for number in range(2):
            result, arrays, found, caption_image = retrieval(
                name, number, images, rng, 1.6 + 0.5 * number + 0.4 * place
            )
            results.append(result)
            items.append(arrays)
            embedded.append(found)
        captions = [f"Una foto di {_NAMES[q % len(_NAMES)]} accanto a {_NAMES[q % 7]}, numero {q}"
                    for q in range(len(caption_image))]  # fmt: skip
        chosen = [
            examples.best_and_worst(order, caption_image, captions, queries=queries)
            for order in (embedded, embedded[::-1])
        ]
        exhibits.append(Exhibit(name, "it", chosen, thumbnails))
    for number in range(2):
        for variant in range(2):
            made = zero_shot(number, variant, classes, rng, 0.55 - 0.2 * number - 0.06 * variant)
            results.append(made[0])
            items.append(made[1])
    results += [contrast(number, rng) for number in range(2)]
    items += [{}, {}]
    comparisons = [
        {"set": "xm3600_it_p1", "task": "retrieval", "variant": "", "metric": metric,
         "a": MODELS[1], "b": MODELS[0], "seeds_a": 1, "seeds_b": 1, "difference": difference,
         "low": difference - 0.031, "high": difference + 0.029, "p_value": p}
        for metric, difference, p in (("text_to_image/R@1", 0.094, 0.0005),
                                      ("text_to_image/MRR@10", 0.02, 0.21))
    ]  # fmt: skip
    comparisons.append(
        {"set": "tiny_imagenet", "task": "zero_shot", "variant": VARIANTS[1],
         "metric": "zero_shot/acc@1", "a": MODELS[1], "b": MODELS[0], "difference": -0.0071,
         "low": -0.012, "high": -0.002, "p_value": 0.004}
    )  # fmt: skip
    seeds = [{"model": MODELS[0], "set": "xm3600_it_p1", "task": "retrieval", "variant": "",
              "metric": "text_to_image/R@1", "mean": 0.412, "sd": 0.0061, "seeds": 3}]  # fmt: skip
    made = report.make_report(
        results,
        command="clip-italian evaluate --models runs/clip_italian@best mclip --sets xm3600_p1",
        step=12000,
        comparisons=comparisons,
        seeds=seeds,
        timing={"encoding": 812.4, "scoring": 12.91},
    )
    return made, items, exhibits
