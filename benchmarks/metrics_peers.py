"""Retrieval metrics against ranx, an independent library, on random cases with ties.

    pip install ranx
    python benchmarks/metrics_peers.py --cases 1000

A case has up to 8 images, up to 5 captions each, and embeddings of small whole numbers: scores are
whole numbers too, exact in float32, and often equal. ranx leaves the order of equal scores open,
while here a tie counts against the model: ranx is therefore handed the scores of all relevant
candidates lowered by 0.5, less than the gap between two different scores. R@k is its `hit_rate@k`,
MRR@k its `mrr@k`, and the median rank that of 1 / `mrr` over the queries.

Prints one line of JSON, exits with 1 if a value differs by more than 1e-12.
"""

import argparse
import json

import numpy as np
from ranx import Qrels, Run, evaluate

from clip_italian.evaluation import metrics

TOLERANCE = 1e-12


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="number of random cases")
    parser.add_argument("--seed", type=int, default=0, help="of the cases")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    largest = dict.fromkeys(metrics.RETRIEVAL_METRICS, 0.0)
    tied = 0
    for _ in range(arguments.cases):
        image_embeds, text_embeds, caption_image = random_case(rng)
        ours = metrics.retrieval_metrics(image_embeds, text_embeds, caption_image)
        scores = text_embeds @ image_embeds.T
        relevant = caption_image[:, None] == np.arange(len(image_embeds))
        theirs = peer(scores, relevant, "text_to_image")
        theirs |= peer(scores.T, relevant.T, "image_to_text")
        for name in largest:
            largest[name] = max(largest[name], abs(ours[name] - theirs[name]))
        tied += any(len(set(row)) < len(row) for row in scores.tolist())
    worst = max(largest.values())
    print(json.dumps({"cases": arguments.cases, "with_ties": tied, "largest_difference": worst}))
    if worst > TOLERANCE:
        raise SystemExit(f"differ by more than {TOLERANCE}: {largest}")


def random_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of images and captions, and each caption's image, in no order."""
    images, dim = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    caption_image = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 6, images)))
    image_embeds = rng.integers(-2, 3, (images, dim)).astype(np.float32)
    text_embeds = rng.integers(-2, 3, (len(caption_image), dim)).astype(np.float32)
    return image_embeds, text_embeds, caption_image


def peer(scores: np.ndarray, relevant: np.ndarray, direction: str) -> dict[str, float]:
    """The metrics of one direction from ranx; both arrays are [queries, candidates]."""
    scores = scores - 0.5 * relevant
    run, qrels = {}, {}
    for query, (row, own) in enumerate(zip(scores, relevant, strict=True)):
        run[f"q{query}"] = {f"c{i}": float(score) for i, score in enumerate(row)}
        qrels[f"q{query}"] = {f"c{i}": 1 for i in np.flatnonzero(own)}
    names = [f"{name}@{k}" for name in ("hit_rate", "mrr") for k in metrics.KS]
    found = evaluate(Qrels(qrels), Run(run), names)
    reciprocal = evaluate(Qrels(qrels), Run(run), "mrr", return_mean=False)
    values = [*(found[name] for name in names), np.median(1 / reciprocal)]
    return {
        f"{direction}/{name}": float(value)
        for name, value in zip(metrics.SUMMARY, values, strict=True)
    }


if __name__ == "__main__":
    main()
