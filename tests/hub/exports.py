"""Exported folders of models with random weights, and what the models themselves say."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig, resolve
from clip_italian.hub import export, onnx_graphs, verify
from clip_italian.hub.load import LoadedModel, load_model
from clip_italian.hub.model_card import CardFacts, model_card
from clip_italian.model.towers import build
from tests.data.conftest import WORDS, make_tokenizer
from tests.model.checkpoints import random_like
from tests.tiny import (
    TINY_BEIT,
    TINY_BERT,
    TINY_CLIP,
    TINY_DINOV2,
    TINY_ROBERTA,
    TINY_VIT,
    TINY_XLM_ROBERTA,
)

SIGMOID = "clip-bert-sigmoid"
RESIZED = "vit-bert-resized"  # its pictures are larger than its tower's
PAIRS = {
    SIGMOID: (TINY_CLIP, TINY_BERT),
    RESIZED: (TINY_VIT, TINY_BERT),
    "vit-bert": (TINY_VIT, TINY_BERT),
    "clip-bert": (TINY_CLIP, TINY_BERT),
    "vit-roberta": (TINY_VIT, TINY_ROBERTA),
    "vit-xlm-roberta": (TINY_VIT, TINY_XLM_ROBERTA),
    "dinov2-bert": (TINY_DINOV2, TINY_BERT),
    "beit-bert": (TINY_BEIT, TINY_BERT),
}


def tiny_loaded(vision=TINY_VIT, text=TINY_BERT, *, loss="infonce", tokenizer="", seed=0, **fields):
    """A model with random weights, as `load_model` gives one."""
    roberta = "roberta" in text["model_type"]
    model = ModelConfig(
        vision_config=vision,
        text_config={**text, "vocab_size": len(WORDS)},
        projection_dim=16,
        tokenizer=tokenizer,
        **fields,
    )
    config = resolve(
        Config(model, DataConfig(max_length=8), LossConfig(loss=loss), train=TrainConfig(steps=9))
    )
    built = build(config.model, loss=loss)
    params = random_like(built.shapes(), seed=seed)
    params["logit_scale"] = np.float32(np.log(20.0))
    if loss == "sigmoid":
        params["logit_bias"] = np.float32(-2.0)
    # [UNK] is where RoBERTa wants its padding: at 1.
    words = make_tokenizer("[UNK]" if roberta else "[PAD]")
    return LoadedModel("tiny", config, built, params, words, 9)


def pictures(count, size=(32, 32), seed=5):
    """Encoded pictures that differ; 32 × 32 is what towers take: then nothing is to be resized."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
        files.append(file.getvalue())
    return files


def sentences(count):
    """Different captions of three to five words, which nothing cuts."""
    found = []
    for number in range(count):
        words = [WORDS[4 + (number // 5**place) % 5] for place in range(3 + number % 3)]
        found.append(" ".join(words))
    return found


def collection(count=20, size=(32, 32)):
    files, captions = pictures(count, size), sentences(count)
    return Collection(
        "drawn",
        "drawn",
        [f"{number}.png" for number in range(count)],
        lambda numbers: [files[number] for number in numbers],
        "",
        captions,
        np.arange(count, dtype=np.int32),
    )


def write(folder: Path, loaded: LoadedModel, images: Collection, count: int, *, onnx: bool) -> None:
    """An exported folder, and beside its files `reference.npz`, `captions.json` and `pictures/`."""
    bias = loaded.params.get("logit_bias")
    folder.mkdir(parents=True)
    export.write(folder, loaded)
    export.write_sentence_transformers(folder)
    if onnx:
        onnx_graphs.write_onnx(str(folder))
    facts = CardFacts(
        name=str(folder),
        logit_scale=float(np.exp(loaded.params["logit_scale"])),
        logit_bias=float(bias) if bias is not None else None,
        projection_dim=loaded.model.module.projection_dim,
        image_size=loaded.model.image_size,
        max_length=loaded.config.data.max_length,
        padding_idx=export.padding_idx(loaded.model),
        labels=("un gatto", "un cane nero"),
        hypothesis_template="{} dorme",
        sentence_transformers=True,
        onnx=onnx,
    )
    model_card(facts, None, []).save(folder / "README.md")
    reference = verify.make_reference(loaded, images, count)
    np.savez(
        folder / "reference.npz",
        pixel_values=reference.pixel_values,
        **reference.tokens._asdict(),
        image_embeds=reference.image_embeds,
        text_embeds=reference.text_embeds,
        factor=reference.factor,
        **({} if bias is None else {"bias": bias}),
    )
    captions = [images.captions[int(n)] for n in np.unique(images.caption_image, True)[1]]
    captions = list(dict.fromkeys(captions[:count]))
    (folder / "captions.json").write_text(json.dumps(captions, ensure_ascii=False))
    (folder / "pictures").mkdir()
    Image.open(io.BytesIO(images.read(np.arange(1))[0])).convert("RGB").save(folder / "foto.jpg")
    for number, data in enumerate(images.read(np.arange(min(count, len(images))))):
        Image.open(io.BytesIO(data)).save(folder / "pictures" / f"{number:03}.png")


def main(words):
    """Folder to write to, and a trained run or nothing."""
    root = Path(words[0]).resolve()
    graphs = all(map(importlib.util.find_spec, ("torch", "onnxscript", "onnxruntime")))
    for name, (vision, text) in PAIRS.items():
        loaded = tiny_loaded(vision, text, loss="sigmoid" if name == SIGMOID else "infonce")
        images = collection(64, (60, 48) if name == RESIZED else (32, 32))
        # test_onnx.py has the others
        write(root / name, loaded, images, 64, onnx=graphs and name in ("vit-bert", SIGMOID))
    if len(words) > 1:
        from clip_italian.data.collections import open_records

        loaded = export.exact(load_model(words[1]))
        data = loaded.config.data
        images = open_records(data.data_dir, data.sources[0], "validation")
        write(root / "trained", loaded, images, 200, onnx=graphs)
