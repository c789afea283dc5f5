"""Strict settings for all tests: eight fake CPU devices, no silent rank or dtype promotion."""

import importlib.util
import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Tiny programs spend their time in the compiler: LLVM's optimisations are off (9 times faster).
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("USE_TF", "0")  # as the command line does

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def _declare_operators() -> object:
    """PyPI's torchvision is built for CUDA: beside a CPU build of torch its operators are absent.

    Nothing here needs them, but without their declarations it cannot be imported, nor can those
    parts of transformers that look for it.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


TORCHVISION = _declare_operators()  # declarations live as long as this does

CONFIG = """
from clip_italian.config import *

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
config = Config(
    model=ModelConfig(
        vision_config=dict(model_type="vit", image_size=32, patch_size=8, **SMALL),
        text_config=dict(
            model_type="bert", vocab_size={vocab_size}, max_position_embeddings=48, **SMALL
        ),
        tokenizer="{data}/sample/tokenizer",
        projection_dim=16,
        learn_logit_scale=True,
    ),
    data=DataConfig(data_dir="{data}", max_length=40, reader_threads=2),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=2, vision_thaw_step=4),
    train=TrainConfig(steps=8, batch_size=16, log_every=1, save_every=3, compile_cache=""),
    eval=EvalConfig(eval_every=4, eval_batch_size=16),
)
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A config of tiny towers on a small sample of its own."""
    from clip_italian.cli import main as clip_italian

    folder = tmp_path_factory.mktemp("end_to_end")
    data = folder / "data"
    sizes = ["--train_scenes", "60", "--validation_scenes", "20", "--image_size", "32"]
    assert clip_italian(["prepare", "sample", "--data_dir", str(data), *sizes]) == 0
    vocab_size = len((data / "sample/tokenizer/vocab.txt").read_text().splitlines())
    path = folder / "config.py"
    path.write_text(CONFIG.format(data=data, vocab_size=vocab_size))
    return path
