"""An exported folder → ONNX graphs of its two towers, and those graphs as functions.

`onnx/vision_model.onnx` takes `pixel_values` float32 [batch, 3, height, width] and gives
`image_embeds` float32 [batch, dim]; `onnx/text_model.onnx` takes `input_ids` and `attention_mask`
int64 [batch, length] and gives `text_embeds` float32 [batch, dim]. Embeddings have length 1.
The metadata of either file holds `logit_scale`, a plain factor, and for sigmoid models
`logit_bias`: similarity = logit_scale · cosine + logit_bias.
"""

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_italian.config import ConfigError

OPSET = 18  # the lowest that torch's exporter writes, so the one that most runtimes read
VISION_FILE, TEXT_FILE = "onnx/vision_model.onnx", "onnx/text_model.onnx"
_PACKAGES = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")  # to write and to check
_EMBEDDED = 2**31 - 2**24  # bytes of weights in one file: protobuf ends at 2 GiB, graph included
_ROWS = 32  # at a time through a graph: bounds the memory

EmbedImages = Callable[[np.ndarray], np.ndarray]
EmbedTexts = Callable[[np.ndarray, np.ndarray], np.ndarray]


def check_packages(names: Sequence[str] = _PACKAGES) -> None:
    """Says what to install before any work is done.

    Raises:
      ConfigError: a package that writing or checking the graphs needs is missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs the packages {', '.join(missing)}; "
            "install the extras: pip install 'clip-italian[torch,onnx]'"
        )


def write_onnx(folder: str) -> list[Path]:
    """Writes both graphs into an exported folder, from its own config and weights.

    Weights are embedded; only those above 2 GB lie beside their graph, in a file `*.onnx_data`.
    The files are the same, byte for byte, whenever they are written by the same versions.

    Args:
      folder: holds `config.json` and `model.safetensors`.

    Returns:
      The files written.

    Raises:
      ConfigError: a package is missing, weights do not fit, or a tower cannot be exported.
    """
    check_packages()
    import torch

    model = _load(folder)
    size = model.config.vision_config.image_size
    facts = {"logit_scale": str(np.float32(math.exp(model.logit_scale.item())))}
    if (bias := getattr(model.config, "logit_bias", None)) is not None:
        facts["logit_bias"] = str(float(bias))
    vision, text = _graphs(model)
    # Sizes of examples do not matter, but 1 would be taken for a constant.
    pixels = torch.zeros(2, 3, size, size)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    files = []
    for name, graph, output, examples, shapes in (
        (VISION_FILE, vision, "image_embeds", {"pixel_values": pixels}, {0: batch}),
        (
            TEXT_FILE,
            text,
            "text_embeds",
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            {0: batch, 1: length},
        ),
    ):
        program = _export(graph, output, examples, shapes)
        files += _save(program, Path(folder, name), facts)
    return files


def _load(folder: str) -> Any:
    """The folder's model in PyTorch; all its weights are there, and no others."""
    import torch
    from transformers import VisionTextDualEncoderModel

    # "eager" masks by plain arithmetic; others look into the mask and may skip it while traced.
    loaded: Any = VisionTextDualEncoderModel.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        use_safetensors=True,
        output_loading_info=True,
    )
    model, report = loaded
    for fault in ("missing_keys", "unexpected_keys"):
        if report[fault]:  # transformers would go on, with random ones
            names = ", ".join(sorted(report[fault]))
            raise ConfigError(f"--onnx: {folder}/model.safetensors has {fault}: {names}")
    return model


def _graphs(model: Any) -> tuple[Any, Any]:
    """Both sides as modules of what a graph takes; their weights keep the folder's names."""
    from torch import nn

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_model = model.vision_model
            self.visual_projection = model.visual_projection

        def forward(self, pixel_values):
            pooled = self.vision_model(pixel_values=pixel_values).pooler_output
            embeds = self.visual_projection(pooled)
            return embeds / embeds.norm(dim=-1, keepdim=True)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.text_model = model.text_model
            self.text_projection = model.text_projection

        def forward(self, input_ids, attention_mask):
            outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
            embeds = self.text_projection(outputs.pooler_output)
            return embeds / embeds.norm(dim=-1, keepdim=True)

    return Vision().eval(), Text().eval()


def _export(graph: Any, output: str, examples: dict[str, Any], shapes: dict[int, Any]) -> Any:
    """One module → torch's `ONNXProgram`.

    Args:
      graph: one of `_graphs`.
      output: name of what it gives.
      examples: names of what it takes, and tensors of the right kind.
      shapes: number of a dimension that may vary → `torch.export.Dim` of its name.
    """
    import torch

    automatic = dict.fromkeys(shapes, torch.export.Dim.AUTO)  # varies along, and needs no name
    first = next(iter(examples))
    with _quiet():
        try:
            return torch.onnx.export(
                graph,
                kwargs=examples,
                input_names=list(examples),
                output_names=[output],
                dynamic_shapes={name: shapes if name == first else automatic for name in examples},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter and the towers raise many kinds
            while error.__cause__ is not None:
                error = error.__cause__
            kind = (graph.vision_model if first == "pixel_values" else graph.text_model).config
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"--onnx: a tower of model_type {kind.model_type!r} cannot be exported "
                f"({type(error).__name__}: {reason}); export without --onnx"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what PyTorch tells itself, and only that."""
    with warnings.catch_warnings():
        # torch.export, about a class of its own that it copies
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        yield


def _save(program: Any, path: Path, facts: dict[str, str]) -> list[Path]:
    """Writes one graph; returns its files."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    model = program.model
    # The exporter notes for each node where in which file of this machine it comes from.
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".onnx_data")
    if size <= _EMBEDDED:
        onnx_ir.save(model, path)
        return [path]
    onnx_ir.save(model, path, external_data=beside.name)
    return [path, beside]


def open_onnx(folder: str) -> tuple[EmbedImages, EmbedTexts]:
    """The graphs of an exported folder as functions, run by onnxruntime on the CPU.

    Returns:
      Two functions. The first: pixel_values float [n, 3, height, width], normalised → float32
      [n, dim]. The second: input_ids and attention_mask, integers [n, length] → likewise.

    Raises:
      ConfigError: a package or a graph is missing.
    """
    vision, text = _session(folder, VISION_FILE), _session(folder, TEXT_FILE)

    def embed_images(pixel_values: np.ndarray) -> np.ndarray:
        return _run(vision, {"pixel_values": np.asarray(pixel_values, np.float32)})

    def embed_texts(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        return _run(text, {name: np.asarray(value, np.int64) for name, value in tokens.items()})

    return embed_images, embed_texts


def read_scale(folder: str) -> tuple[float, float]:
    """`logit_scale`, a plain factor, and `logit_bias`, 0 where there is none, of the graphs.

    Raises:
      ConfigError: a package or a graph is missing.
    """
    facts = _session(folder, VISION_FILE).get_modelmeta().custom_metadata_map
    return float(facts["logit_scale"]), float(facts.get("logit_bias", 0))


def _session(folder: str, name: str) -> Any:
    check_packages(["onnxruntime"])
    import onnxruntime

    path = Path(folder, name)
    if not path.is_file():
        raise ConfigError(f"{folder} holds no {name}; export it again, with --onnx")
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """All rows through a graph, a few at a time."""
    (rows,) = {len(value) for value in inputs.values()}
    parts = [
        session.run(None, {name: value[i : i + _ROWS] for name, value in inputs.items()})[0]
        for i in range(0, rows, _ROWS)
    ]
    return np.concatenate(parts)
