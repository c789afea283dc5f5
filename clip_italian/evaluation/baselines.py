"""Models of others to compare with, each through its own library, in PyTorch.

A spec names the library, then the model: `OPENERS`, at the foot, has one line for each library.
Only weights are read, never code: neither pickles nor a repository's own Python files.
"""

import contextlib
import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_italian.collection import ReadImages
from clip_italian.config import ConfigError
from clip_italian.evaluation.encoders import Encoder, config_facts, digest, tokenizer_facts

_VERSION = 1  # part of each fingerprint: to be raised when an adapter would answer otherwise
_MCLIP = "sentence-transformers/clip-ViT-B-32+sentence-transformers/clip-ViT-B-32-multilingual-v1"
# Modules that a sentence-transformers model may consist of: others can name code to be run.
_MODULES = ("Transformer", "CLIPModel", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")
_FULL_LENGTH = ("clip", "siglip", "siglip2")  # were trained on texts padded to their full length

Embed = Callable[[list[Any]], Any]  # RGB pictures or texts → tensor [n, dim]


@dataclasses.dataclass(frozen=True)
class TorchEncoder:
    """An `Encoder` over the model of another library.

    Attributes:
      name: for people.
      fingerprint: over weights, preprocessing and tokenizer.
      batch_size: pictures or texts at a time.
      embed_images: RGB pictures → tensor [n, dim], of any length.
      embed_texts: texts → likewise.
    """

    name: str
    fingerprint: str
    batch_size: int
    embed_images: Embed
    embed_texts: Embed

    def encode_images(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        return _encode(self.embed_images, _pictures(read, names, self.batch_size))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        starts = range(0, len(texts), self.batch_size)
        return _encode(self.embed_texts, (list(texts[i : i + self.batch_size]) for i in starts))


def open_baseline(spec: str, *, batch_size: int = 64, device: str = "") -> Encoder:
    """The model that a spec names.

    Args:
      spec: `mclip`; `st:MODEL` or `st:IMAGE_MODEL+TEXT_MODEL` (sentence-transformers);
        `hf:MODEL` (a dual encoder of transformers); `open_clip:ARCHITECTURE/WEIGHTS`,
        `open_clip:local-dir:FOLDER` or `open_clip:hf-hub:MODEL`. A MODEL is a folder or hub id.
      batch_size: pictures or texts at a time.
      device: PyTorch's name of it; empty takes a GPU where there is one.

    Raises:
      ConfigError: an unknown library, one that is not installed, or a model that cannot be loaded.
    """
    library, _, model = (f"st:{_MCLIP}" if spec == "mclip" else spec).partition(":")
    if library not in OPENERS or not model:
        known = ", ".join(f"{name}:..." for name in OPENERS)
        raise ConfigError(f"model {spec!r} is neither a run folder nor one of mclip, {known}")
    with _loading(spec):
        import torch

        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        embed_images, embed_texts, models, facts = OPENERS[library](model, place)
    weights = {
        f"{number}.{name}": value.detach().cpu().numpy()
        for number, one in enumerate(models)
        for name, value in one.state_dict().items()
    }
    fingerprint = digest(weights, [_VERSION, library, facts])
    name = spec if spec == "mclip" else "+".join(Path(part).name for part in model.split("+"))
    if library == "open_clip" and not model.startswith(("local-dir:", "hf-hub:")):
        name = model  # weights like "openai" come in many architectures
    return TorchEncoder(name, fingerprint, batch_size, embed_images, embed_texts)


@contextlib.contextmanager
def _loading(spec: str) -> Iterator[None]:
    """Turns what other libraries raise, which is anything, into errors that say what to do."""
    try:
        yield
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model {spec!r} needs the package {error.name or error}; "
            "install the extras: pip install 'clip-italian[torch,openclip]'"
        ) from error
    except Exception as error:
        raise ConfigError(
            f"model {spec!r} cannot be loaded ({type(error).__name__}: {error}); "
            "give a folder that holds it, or a name that can be fetched"
        ) from error


def _encode(embed: Embed, batches: Iterator[list[Any]]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        rows = np.concatenate([embed(batch).float().cpu().numpy() for batch in batches])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _pictures(
    read: ReadImages, names: Sequence[str], batch_size: int
) -> Iterator[list[Image.Image]]:
    """RGB pictures, a batch at a time; the next batch is decoded while the last one is used."""
    ahead = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(names), batch_size):
            stop = min(start + batch_size, len(names))
            ahead.append(pool.map(_decode, read(np.arange(start, stop)), names[start:stop]))
            if len(ahead) > 1:
                yield list(ahead.pop(0))
        for batch in ahead:
            yield list(batch)


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # Pillow raises many kinds at bytes that are no image
        raise ConfigError(
            f"image {name!r} cannot be decoded ({error}); replace it or take it away"
        ) from error


# Each opener: (model, device) → the two functions of `TorchEncoder`, the modules whose weights
# count, and what else decides the vectors.
Opened = tuple[Embed, Embed, list[Any], Any]


def _open_sentence_transformers(model: str, device: str) -> Opened:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    def load(name: str) -> Any:
        listed = load_file_path(name, "modules.json")
        if listed is None:
            raise ConfigError(f"st: {name!r} has no modules.json, or cannot be reached")
        for part in json.loads(Path(listed).read_text(encoding="utf-8")):
            package, _, rest = part["type"].partition(".")
            if package != "sentence_transformers" or rest.rpartition(".")[2] not in _MODULES:
                raise ConfigError(f"st: {name!r} consists of {part['type']}, which is not allowed")
        return SentenceTransformer(name, device=device, trust_remote_code=False).eval().float()

    names = model.split("+")
    if len(names) > 2:
        raise ConfigError(f"st: {model!r} names {len(names)} models; give one, or IMAGES+TEXTS")
    models = [load(name) for name in names]
    dims = [one.get_embedding_dimension() for one in models]
    if dims[0] != dims[-1]:
        raise ConfigError(f"st: {model!r}: images have {dims[0]} dimensions, texts {dims[-1]}")

    def embed(one: Any) -> Embed:
        return lambda batch: one.encode(
            batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False
        )

    facts = [
        [one.prompts, one.default_prompt_name, one.max_seq_length]
        + [[type(part).__name__, repr(part.get_config_dict()), _inner_facts(part)] for part in one]
        for one in models
    ]
    return embed(models[0]), embed(models[-1]), models, facts


def _inner_facts(part: Any) -> Any:
    """What a module of sentence-transformers takes from transformers, if anything."""
    inner = getattr(part, "auto_model", None)
    return None if inner is None else [config_facts(inner.config), _processor_facts(part.processor)]


def _open_transformers(model: str, device: str) -> Opened:
    from transformers import AutoModel, AutoProcessor

    network, report = AutoModel.from_pretrained(
        model, trust_remote_code=False, weights_only=True, output_loading_info=True
    )
    if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
        raise ConfigError(f"hf: {model!r} is a {type(network).__name__}, not a dual encoder")
    if report["missing_keys"]:  # transformers would go on with random ones
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ConfigError(f"hf: {model!r} lacks the weights {missing}")
    network = network.to(device).eval().float()
    processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ConfigError(f"hf: {model!r} has no tokenizer, or no preprocessor_config.json")
    kind = network.config.model_type
    # SigLIP 2 was trained on lower case, which its tokenizer here does not see to.
    lower = kind.startswith("siglip") and "Gemma" in type(processor.tokenizer).__name__
    options = {
        "padding": "max_length" if kind in _FULL_LENGTH else "longest",
        "truncation": True,
        "max_length": _longest_text(network.config.text_config, processor.tokenizer),
        "return_tensors": "pt",
    }

    def embed_images(pictures: list[Any]) -> Any:
        return network.get_image_features(
            **processor(images=pictures, return_tensors="pt").to(device)
        )

    def embed_texts(texts: list[str]) -> Any:
        texts = [text.lower() for text in texts] if lower else texts
        return network.get_text_features(**processor(text=texts, **options).to(device))

    facts = [config_facts(network.config), _processor_facts(processor), options]
    return embed_images, embed_texts, [network], facts


def _longest_text(config: Any, tokenizer: Any) -> int:
    """Tokens that a text tower can take."""
    # RoBERTa's first position is `pad_token_id` + 1.
    offset = config.pad_token_id + 1 if config.model_type in _ROBERTAS else 0
    return min(tokenizer.model_max_length, config.max_position_embeddings - offset)


_ROBERTAS = ("roberta", "xlm-roberta", "camembert")


def _processor_facts(processor: Any) -> Any:
    """Of a processor of both, or of a tokenizer."""
    images = getattr(processor, "image_processor", None)
    return [
        tokenizer_facts(getattr(processor, "tokenizer", processor)),
        images and json.loads(images.to_json_string()),
    ]


def _open_open_clip(model: str, device: str) -> Opened:
    import open_clip
    import torch

    name, weights = model, None
    if not model.startswith(("local-dir:", "hf-hub:")):
        name, _, weights = model.partition("/")
        if not weights:
            raise ConfigError(f"open_clip: {model!r} names no weights; give {model}/WEIGHTS")
    config = open_clip.get_model_config(name)
    if config and "trust_remote_code" in json.dumps(config):
        raise ConfigError(f"open_clip: {model!r} asks to run code of its own, which is not allowed")
    with warnings.catch_warnings():
        # Another activation than it was trained with: open_clip would only warn.
        warnings.filterwarnings("error", "QuickGELU mismatch")
        network, preprocess = open_clip.create_model_from_pretrained(
            name, weights, device=device, weights_only=True
        )
    network.eval()
    tokenizer = open_clip.get_tokenizer(name)

    def embed_images(pictures: list[Any]) -> Any:
        return network.encode_image(torch.stack([preprocess(one) for one in pictures]).to(device))

    def embed_texts(texts: list[str]) -> Any:
        return network.encode_text(tokenizer(texts).to(device))

    facts = [config, open_clip.get_model_preprocess_cfg(network), tokenizer.context_length]
    facts.append(tokenizer_facts(getattr(tokenizer, "tokenizer", tokenizer)))
    return embed_images, embed_texts, [network], facts


OPENERS: dict[str, Callable[[str, str], Opened]] = {
    "st": _open_sentence_transformers,
    "hf": _open_transformers,
    "open_clip": _open_open_clip,
}
