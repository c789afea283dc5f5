"""Two towers, two bias-free projections and a similarity scale: the hybrid CLIP.

The parameter tree is that of transformers' `FlaxVisionTextDualEncoderModule`: `vision_model`,
`text_model`, `visual_projection/kernel`, `text_projection/kernel`, `logit_scale` (a log), and
`logit_bias` when the loss wants one.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clip_italian.batch import POOLED_OUTPUT, Array, TokenGroup
from clip_italian.config import ConfigError
from clip_italian.model.contributions import Anatomy, without_each_patch
from clip_italian.model.layers import Running, running

_EPSILON = 1e-12  # of squared norms: an all-zero row gives zeros and a finite gradient


class HybridClipOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
      image_embeds: float32 [images, projection_dim], L2-normalised.
      text_embeds: float32 [captions, projection_dim], L2-normalised, rows as in `pixel_values`.
      logit_scale: float32 [], the *log* of the factor on cosine similarities.
      logit_bias: float32 [], added to the scaled similarities by the sigmoid loss, else None.
    """

    image_embeds: Array
    text_embeds: Array
    logit_scale: Array
    logit_bias: Array | None


class HybridClip(nn.Module):
    """Encodes images and captions into one space; `towers.build` makes one.

    Dropout needs `rngs={"dropout": key}` when a `deterministic` flag is False and the rate is
    above 0.

    Attributes:
      vision_model: Flax module, called with float pixels [n, height, width, 3] (NHWC).
      text_model: Flax module, called with `text_inputs`.
      vision_pool: the vision tower's outputs → [n, width].
      text_pool: the text tower's outputs → [n, width].
      vision_anatomy: where in the vision tower its patches' parts are found.
      text_inputs: a token group → keyword arguments of the text tower.
      vision_running: how the vision tower's layers run.
      text_running: how the text tower's layers run.
      projection_dim: width of the shared space.
      image_size: height and width of the images, in pixels.
      image_mean: mean of each channel, of pixels scaled to [0, 1].
      image_std: standard deviation of each channel, likewise.
      max_positions: longest caption that the text tower can take, in tokens.
      initial_logit_scale: similarity scale at the start, a plain factor.
      initial_logit_bias: bias of the sigmoid loss at the start; None leaves the parameter out.
    """

    vision_model: nn.Module
    text_model: nn.Module
    vision_pool: Callable[[Any], Array]
    text_pool: Callable[[Any], Array]
    vision_anatomy: Anatomy
    text_inputs: Callable[[TokenGroup], dict[str, Array]]
    vision_running: Running
    text_running: Running
    projection_dim: int
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    max_positions: int
    initial_logit_scale: float
    initial_logit_bias: float | None = None

    def setup(self) -> None:
        self.visual_projection = _projection(self.projection_dim)
        self.text_projection = _projection(self.projection_dim)
        log_scale = nn.initializers.constant(math.log(self.initial_logit_scale))
        self.logit_scale = self.param("logit_scale", log_scale, ())
        if self.initial_logit_bias is not None:
            bias = nn.initializers.constant(self.initial_logit_bias)
            self.logit_bias = self.param("logit_bias", bias, ())

    def __call__(
        self,
        pixel_values: Array | None,
        text: tuple[TokenGroup, ...],
        *,
        image_features: Array | None = None,
        text_features: Array | None = None,
        vision_deterministic: bool = True,
        text_deterministic: bool = True,
        shards: int = 1,
    ) -> HybridClipOutput:
        """Embeds pairs of images and captions.

        Args:
          pixel_values: uint8 [pairs, height, width, 3].
          text: token groups, int32 [pairs_g, length_g] each, rows shard-major (see `Batch`).
          image_features: [pairs, width], what `pool_image` gave earlier, in place of pixels.
          text_features: [pairs, width], what `pool_text` gave earlier, in place of `text`.
          vision_deterministic: True turns the vision tower's dropout off.
          text_deterministic: True turns the text tower's dropout off.
          shards: device shards whose rows lie in this batch; 1 under pmap.
        """
        image, captions = image_features, text_features
        if image is None:
            image = self.pool_image(pixel_values, vision_deterministic)
        if captions is None:
            captions = self.pool_text(text, text_deterministic, shards)
        # Under a name, so that a step that encodes micro-batches again may keep just these.
        image, captions = checkpoint_name((image, captions), POOLED_OUTPUT)
        return HybridClipOutput(
            _normalised(self.visual_projection(image.astype(jnp.float32))),
            _normalised(self.text_projection(captions.astype(jnp.float32))),
            self.logit_scale,
            None if self.initial_logit_bias is None else self.logit_bias,
        )

    def encode_image(self, pixel_values: Array, *, deterministic: bool = True) -> Array:
        """Uint8 [n, height, width, 3] → float32 [n, projection_dim], L2-normalised."""
        return _normalised(self.visual_projection(self.pool_image(pixel_values, deterministic)))

    def encode_text(
        self, text: tuple[TokenGroup, ...], *, deterministic: bool = True, shards: int = 1
    ) -> Array:
        """Token groups → float32 [Σ pairs_g, projection_dim], L2-normalised, shard-major."""
        return _normalised(self.text_projection(self.pool_text(text, deterministic, shards)))

    def pool_image(self, pixel_values: Array, deterministic: bool = True) -> Array:
        """Uint8 [n, height, width, 3] → the vision tower's pooled output, float32 [n, width].

        Raises:
          ConfigError: the images have another size than the tower's, or another type.
        """
        pixels = self._normalised_pixels(pixel_values)
        with running(self.vision_running, deterministic=deterministic):
            pooled = self.vision_pool(self.vision_model(pixels, deterministic=deterministic))
        return pooled.astype(jnp.float32)

    def encode_patches(self, pixel_values: Array) -> Array:
        """What a picture's embedding owes to each patch: where in it is what a text says?

        The embedding, less the one that comes out when what each layer's attention carried straight
        from that patch into what the tower pools is taken out again; see `contributions`. Times a
        text's embedding it is the similarity that goes with the patch.

        Args:
          pixel_values: uint8 [n, height, width, 3].

        Returns:
          float32 [n, rows, columns, projection_dim], differences of L2-normalised embeddings,
          patches from top left.

        Raises:
          ConfigError: the images have another size than the tower's, or another type.
        """
        pixels = self._normalised_pixels(pixel_values)
        pooled = without_each_patch(
            self.vision_model, self.vision_anatomy, self.vision_running, pixels
        )
        whole, without = (
            _normalised(self.visual_projection(some.astype(jnp.float32))) for some in pooled
        )
        images, patches, dim = without.shape
        side = math.isqrt(patches)
        return (whole - without).reshape(images, side, side, dim)

    def _normalised_pixels(self, pixel_values: Array) -> Array:
        expected = (self.image_size, self.image_size, 3)
        if pixel_values.shape[1:] != expected or pixel_values.dtype != jnp.uint8:
            raise ConfigError(
                f"pixel_values are {pixel_values.dtype} {pixel_values.shape}; the vision tower "
                f"takes uint8 [n, {', '.join(map(str, expected))}]: resize the images to "
                f"{self.image_size} pixels, or choose a tower for their size"
            )
        mean, std = (
            jnp.asarray(constants, jnp.float32).reshape(1, 1, 1, 3)
            for constants in (self.image_mean, self.image_std)
        )
        return (pixel_values.astype(jnp.float32) / 255 - mean) / std

    def pool_text(
        self, text: tuple[TokenGroup, ...], deterministic: bool = True, shards: int = 1
    ) -> Array:
        """Token groups → the text tower's pooled outputs, float32 [Σ pairs_g, width].

        Rows of each shard lie together, its groups one after another, as in `pixel_values`;
        joining within a shard keeps rows on their device.

        Raises:
          ConfigError: a group is longer than the tower's positions, or its rows do not divide.
        """
        pooled = []
        for group in text:
            rows, length = group.input_ids.shape
            if length > self.max_positions:
                raise ConfigError(
                    f"max_length: captions of {length} tokens; the text tower has positions for "
                    f"{self.max_positions}: set --max_length {self.max_positions} or less"
                )
            if rows % shards:
                raise ConfigError(f"batch_size: {rows} captions do not divide by {shards} shards")
            with running(self.text_running, deterministic=deterministic):
                outputs = self.text_model(**self.text_inputs(group), deterministic=deterministic)
            vectors = self.text_pool(outputs).astype(jnp.float32)
            pooled.append(vectors.reshape(shards, rows // shards, vectors.shape[-1]))
        joined = jnp.concatenate(pooled, axis=1)
        return joined.reshape(-1, joined.shape[-1])


def _projection(width: int) -> nn.Dense:
    # TPUs and GPUs multiply float32 at lower precision unless told otherwise.
    return nn.Dense(
        width,
        use_bias=False,
        dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        kernel_init=nn.initializers.normal(0.02),
    )


def _normalised(vectors: Array) -> Array:
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, _EPSILON))
