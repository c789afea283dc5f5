"""Exported folders, read by whatever version of transformers is installed beside PyTorch.

`CLIP_ITALIAN_EXPORTS` names a folder that `tests/hub/write_exports.py` has written; then this file
needs nothing of the project, so that it runs beside transformers 5:

    pytest --noconftest -m torch tests/hub/test_exported_torch.py
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch

EXPORTS = "CLIP_ITALIAN_EXPORTS"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    if os.environ.get(EXPORTS):
        return Path(os.environ[EXPORTS])
    from tests.hub import exports

    folder = tmp_path_factory.mktemp("exports")
    exports.main([str(folder)])
    return folder


def version():
    import transformers

    return int(transformers.__version__.partition(".")[0])


PAIRS = [
    "clip-bert-sigmoid",
    "vit-bert",
    "clip-bert",
    "vit-roberta",
    "vit-xlm-roberta",
    "dinov2-bert",
    "beit-bert",
]
TOKENS = ("input_ids", "attention_mask")
names = pytest.mark.parametrize("name", [*PAIRS, "trained"])


@pytest.fixture
def folder(root, name):
    if not (root / name).is_dir():
        pytest.skip(f"no model {name} was exported")
    return root / name


def read(folder):
    from PIL import Image

    reference = dict(np.load(folder / "reference.npz"))
    files = sorted((folder / "pictures").iterdir())
    pictures = [Image.open(file).convert("RGB") for file in files]
    return reference, pictures, json.loads((folder / "captions.json").read_text())


def best(reference):
    return (reference["image_embeds"] @ reference["text_embeds"].T).argmax(1)


def differences(reference, images, texts, logits):
    expected = reference["factor"] * reference["image_embeds"] @ reference["text_embeds"].T
    pairs = (
        (images, reference["image_embeds"]),
        (texts, reference["text_embeds"]),
        (logits, expected),
    )
    return [float(np.abs(one - other).max()) for one, other in pairs]


@names
def test_weights_and_embeddings(folder):
    import torch
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "VisionTextDualEncoderModel"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.logit_scale.shape == ()
    reference, _, _ = read(folder)
    inputs = {
        "pixel_values": torch.tensor(reference["pixel_values"]),
        "input_ids": torch.tensor(reference["input_ids"], dtype=torch.long),
        "attention_mask": torch.tensor(reference["attention_mask"], dtype=torch.long),
    }
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    embeds = outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image
    found = differences(reference, *(value.numpy() for value in embeds))
    print(f"{folder.name}: image, text, logits {found}; {len(reference['image_embeds'])} pictures")
    assert max(found[:2]) <= 1e-5 and found[2] <= 1e-4
    rows = reference["image_embeds"], reference["text_embeds"]
    # Rows must differ, or the comparison says nothing.
    assert all(np.ptp(part, axis=0).max() > 0.01 for part in rows)


@names
def test_auto_classes_find_the_same_caption(folder):
    import torch
    from transformers import AutoModel, AutoProcessor

    reference, pictures, captions = read(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "VisionTextDualEncoderProcessor"
    inputs = processor(
        text=captions, images=pictures, return_tensors="pt", padding=True, truncation=True
    )
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(folder).eval()(**inputs)
    embeds = outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image
    found = differences(reference, *(value.numpy() for value in embeds))
    assert max(found[:2]) <= 1e-5  # pictures need no resizing: pixels are the same
    np.testing.assert_array_equal(outputs.logits_per_image.argmax(1), best(reference))


@pytest.mark.parametrize("name", ["vit-bert-resized"])
def test_pictures_that_are_to_be_resized(folder):
    """Pillow resizes in both; we cut the square first, so that a few pixels at its edge differ."""
    import torch
    from transformers import AutoModel, AutoProcessor

    reference, pictures, _ = read(folder)
    processor = AutoProcessor.from_pretrained(folder)
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    steps = np.abs(pixels.numpy() - reference["pixel_values"]) * 255 / 2  # mean and deviation: 0.5
    assert steps.max() <= 2.01 and 0 < steps.mean() < 0.05 and (steps > 1.01).mean() < 1e-3
    inputs = {key: torch.tensor(reference[key], dtype=torch.long) for key in TOKENS}
    with torch.no_grad():
        outputs = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels, **inputs)
    found = np.abs(outputs.image_embeds.numpy() - reference["image_embeds"]).max()
    same = (outputs.logits_per_image.argmax(1).numpy() == best(reference)).mean()
    print(
        f"resized: pixels differ by {steps.max():.2f}, embeddings by {found:.2g}; same {same:.3f}"
    )
    assert found < 0.02 and same > 0.9


@pytest.mark.parametrize("name", ["vit-bert", "clip-bert", "trained"])
def test_pipeline_finds_the_same_caption(folder):
    from transformers import pipeline

    reference, pictures, captions = read(folder)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    answers = classify(pictures, candidate_labels=captions, hypothesis_template="{}")
    found = [captions.index(one[0]["label"]) for one in answers]
    np.testing.assert_array_equal(found, best(reference))
    logits = reference["factor"] * reference["image_embeds"] @ reference["text_embeds"].T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose([one[0]["score"] for one in answers], shares.max(1), atol=1e-4)


@pytest.mark.parametrize("name", ["vit-bert", "vit-xlm-roberta", "trained"])
def test_sentence_transformers_find_the_same_caption(folder):
    if version() < 5:
        pytest.skip("sentence-transformers reads such a folder with transformers 5 only")
    from sentence_transformers import SentenceTransformer

    reference, pictures, captions = read(folder)
    model = SentenceTransformer(str(folder))
    images, texts = model.encode(pictures), model.encode(captions)
    found = differences(reference, images, texts, 0)
    assert max(found[:2]) <= 1e-5
    np.testing.assert_array_equal((images @ texts.T).argmax(1), best(reference))


@pytest.mark.parametrize("name", ["vit-bert", "clip-bert-sigmoid", "trained"])
def test_onnxruntime_finds_the_same_caption(folder):
    if not (folder / "onnx").is_dir():
        pytest.skip("no graphs were exported")
    import onnxruntime
    from transformers import AutoProcessor

    reference, pictures, captions = read(folder)
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        text=captions, images=pictures, return_tensors="np", padding=True, truncation=True
    )
    vision, text = (
        onnxruntime.InferenceSession(folder / "onnx" / f"{side}_model.onnx")
        for side in ("vision", "text")
    )
    (images,) = vision.run(None, {"pixel_values": inputs["pixel_values"]})
    names = ("input_ids", "attention_mask")
    (texts,) = text.run(None, {key: inputs[key].astype(np.int64) for key in names})
    assert max(differences(reference, images, texts, 0)[:2]) <= 1e-5
    np.testing.assert_array_equal((images @ texts.T).argmax(1), best(reference))


# Heading in the card → the version of transformers whose classes its code needs.
NEEDS = {"Flax": 4, "sentence-transformers": 5}


@pytest.mark.parametrize("name", ["vit-bert", "vit-roberta", "clip-bert-sigmoid", "trained"])
def test_each_code_of_the_card_runs_and_they_agree(folder, monkeypatch, capsys):
    """To the four digits they are printed with: probabilities, and cosines."""
    from tests.hub.card_snippets import snippets

    monkeypatch.chdir(folder)  # where `foto.jpg` lies
    codes = dict(snippets((folder / "README.md").read_text(encoding="utf-8")))
    assert {"PyTorch", "Flax", "Pipeline", "sentence-transformers"} <= set(codes)
    answers = {}
    for title, code in codes.items():
        if NEEDS.get(title, version()) != version():
            continue
        capsys.readouterr()
        with relaxed():
            exec(compile(code, title, "exec"), {})
        lines = capsys.readouterr().out.splitlines()
        found = (re.fullmatch(r"(-?[01]\.\d{4})  (.+)", line) for line in lines)
        pairs = (match.groups() for match in found if match)
        answers[title] = sorted(pairs, key=lambda pair: -float(pair[0]))
        assert len(answers[title]) == 2, (title, lines)
    others = ("sentence-transformers", "ONNX Runtime")
    cosines = [answers.pop(title) for title in others if title in answers]
    pipeline = answers.pop("Pipeline")  # prints the labels without the sentence around them
    print(folder.name, answers, pipeline, cosines)
    expected = answers.pop("PyTorch")
    assert all(answer == expected for answer in answers.values()), answers
    reference = np.load("reference.npz")
    if "bias" not in reference:  # else the pipeline's scores are no probabilities of the model
        assert [score for score, _ in pipeline] == [score for score, _ in expected]
    for found in cosines:
        assert [text for _, text in found] == [text for _, text in expected]
        logits = reference["factor"] * np.array([float(cosine) for cosine, _ in found])
        if "bias" in reference:
            shares = 1 / (1 + np.exp(-logits - reference["bias"]))
        else:
            shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        # Four digits of a cosine are two of a logit.
        np.testing.assert_allclose(shares, [float(score) for score, _ in expected], atol=2e-3)
    assert cosines or version() == 4
    assert ("Flax" in answers) == (version() == 4)


def relaxed():
    """The promotions that a user's program has, and that this project's tests switch off."""
    if "jax" not in sys.modules:
        return contextlib.nullcontext()
    import jax

    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    return stack
