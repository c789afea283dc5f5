"""The same towers in PyTorch, trained as open_clip trains them, as a peer to be timed.

transformers' `CLIPVisionModel` and `BertModel` (scaled dot-product attention), pooled outputs,
bias-free projections, symmetric InfoNCE, fused AdamW. On a CPU float32 and eager; on a GPU bf16
autocast and `torch.compile`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel

from clip_italian.batch import Batch
from clip_italian.hub.torch_layout import to_pytorch

SCALE = 20.0


class HybridClipTorch(torch.nn.Module):
    """Two towers and two projections."""

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any], dim: int):
        super().__init__()
        vision_config = CLIPVisionConfig.from_dict(dict(vision))
        text_config = BertConfig.from_dict(
            {**text, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        )
        for config in (vision_config, text_config):
            config._attn_implementation = "sdpa"
        self.vision_model = CLIPVisionModel(vision_config)
        self.text_model = BertModel(text_config)
        self.visual_projection = torch.nn.Linear(vision_config.hidden_size, dim, bias=False)
        self.text_projection = torch.nn.Linear(text_config.hidden_size, dim, bias=False)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Float [n, 3, height, width] → [n, dim] of length 1."""
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Int64 [n, length] twice → [n, dim] of length 1."""
        pooled = self.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.text_projection(pooled).float(), dim=-1)


def build(
    vision: Mapping[str, Any], text: Mapping[str, Any], dim: int, params: Any, device: str
) -> HybridClipTorch:
    """The model with the weights of a Flax parameter tree of ours."""
    model = HybridClipTorch(vision, text, dim)
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in to_pytorch(params).items()
        if name != "logit_scale"
    }
    model.load_state_dict(state, strict=True)
    return model.to(device).train()


def place(batch: Batch, device: str) -> tuple[torch.Tensor, list[Any]]:
    """Our batch → uint8 pixels [n, 3, height, width], and (ids, mask) for each token group."""
    pixels = torch.from_numpy(np.array(batch.pixel_values)).permute(0, 3, 1, 2).contiguous()
    groups = [
        tuple(torch.from_numpy(np.array(x)).long().to(device) for x in group)
        for group in batch.text
    ]
    return pixels.to(device), groups


def make_loss(
    model: HybridClipTorch, mean: Sequence[float], std: Sequence[float], *, fast: bool
) -> Callable[[Any], torch.Tensor]:
    """Placed batch → loss []; `fast` compiles the towers and computes in bf16 (GPU)."""
    device = next(model.parameters()).device
    image: Callable[..., torch.Tensor] = model.encode_image
    text: Callable[..., torch.Tensor] = model.encode_text
    if fast:
        image, text = (torch.compile(part, dynamic=False) for part in (image, text))
    means, stds = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (mean, std))

    def loss(batch: Any) -> torch.Tensor:
        pixels, groups = batch
        precision = torch.autocast("cuda", torch.bfloat16) if fast else contextlib.nullcontext()
        with precision:
            images = image((pixels.float() / 255 - means) / stds)
            texts = torch.cat([text(ids, mask) for ids, mask in groups])
        logits = SCALE * images @ texts.T
        own = torch.arange(len(logits), device=device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    return loss


def make_step(
    model: HybridClipTorch, loss: Callable[[Any], torch.Tensor], times: int = 1
) -> Callable[[Any], float]:
    """Placed batch → the last loss of some AdamW steps, when all are done; they share moments."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, eps=1e-6, weight_decay=0.0, fused=True
    )

    def step(batch: Any) -> float:
        value = torch.zeros(())
        for _ in range(times):
            optimizer.zero_grad(set_to_none=True)
            value = loss(batch)
            value.backward()
            optimizer.step()
        return value.item()  # waits for the GPU

    return step
