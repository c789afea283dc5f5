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
