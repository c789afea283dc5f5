"""A model as the rest of the program sees it: module, sizes, initial parameters."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_italian.batch import Array, Batch, TokenGroup
from clip_italian.model.flops import matmul_flops
from clip_italian.model.hybrid_clip import HybridClip, HybridClipOutput

# Weights drawn here and not by their module: transformers' Flax ViT and CLIP draw far smaller
# than the PyTorch originals (a ViT kernel from N(0, 0.02 / √width)), which starts a tower all but
# blind. Biases, scales and layer scales stay as the module makes them.
_DRAWN = ("kernel", "embedding", "cls_token", "class_embedding", "position_embeddings")


@dataclasses.dataclass(frozen=True)
class Model:
    """A hybrid CLIP with the numbers that data and evaluation need; `towers.build` makes one.

    Attributes:
      module: the Flax module.
      vision_config: Hugging Face configuration object of the vision tower.
      text_config: Hugging Face configuration object of the text tower.
      load: shapes of the parameters, names joined with dots → those that come pretrained.
    """

    module: HybridClip
    vision_config: Any
    text_config: Any
    load: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self.module.image_size

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of each channel, of pixels scaled to [0, 1]."""
        return self.module.image_mean

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, of pixels scaled to [0, 1]."""
        return self.module.image_std

    @property
    def vocab_size(self) -> int:
        """Rows of the token table: token ids must be below it."""
        return self.text_config.vocab_size

    @property
    def max_positions(self) -> int:
        """Longest caption, in tokens, special tokens included."""
        return self.module.max_positions

    def shapes(self) -> dict[str, Any]:
        """The parameter tree as `jax.ShapeDtypeStruct`s; needs no weights and no network."""
        return unflatten_dict(jax.eval_shape(self._start), sep=".")

    def init(self, seed: int) -> dict[str, Any]:
        """The parameter tree: float32 numpy arrays, the same on every host and device.

        Pretrained towers come from their weights. Other weights are drawn from N(0, 0.02), in a
        tower from N(0, `initializer_range`); biases are 0 and layer norm scales 1.

        Raises:
          ConfigError: weights cannot be found, do not fit, or lack something.
        """
        shapes: dict[str, Any] = flatten_dict(self.shapes(), sep=".")
        params = self.load(shapes)
        spreads = {
            "vision_model": self.vision_config.initializer_range,
            "text_model": self.text_config.initializer_range,
        }
        for name, shape in shapes.items():
            if name not in params and name.rpartition(".")[2] in _DRAWN:
                spread = spreads.get(name.partition(".")[0], 0.02)
                random = np.random.default_rng([seed, zlib.crc32(name.encode())])
                params[name] = random.standard_normal(shape.shape, np.float32) * np.float32(spread)

        def others() -> dict[str, Array]:
            return {key: leaf for key, leaf in self._start().items() if key not in params}

        # What is loaded or drawn is dead code here, so only constants are compiled.
        params |= jax.device_get(jax.jit(others)())
        return unflatten_dict({name: params[name] for name in shapes}, sep=".")

    def apply_pairs(
        self, params: Any, batch: Batch, key: Array, moving: Collection[str], shards: int
    ) -> HybridClipOutput:
        """One forward pass of a training batch: what the loop takes as its `apply_fn`.

        Args:
          params: parameter tree.
          batch: training pairs.
          key: dropout key.
          moving: groups that train; towers outside it never drop.
          shards: device shards whose rows lie in `batch`.
        """
        outputs: Any = self.module.apply(
            {"params": params},
            batch.pixel_values,
            batch.text,
            image_features=batch.image_features,
            text_features=batch.text_features,
            vision_deterministic="vision" not in moving,
            text_deterministic="text" not in moving,
            shards=shards,
            rngs={"dropout": key},
        )
        return outputs

    def encode_image(self, params: Any, pixel_values: Array) -> Array:
        """Parameters and uint8 [n, height, width, 3] → float32 [n, projection_dim]."""
        return self.module.apply({"params": params}, pixel_values, method="encode_image")

    def encode_patches(self, params: Any, pixel_values: Array) -> Array:
        """Parameters and uint8 [n, height, width, 3] → float32 [n, rows, columns, dim]."""
        return self.module.apply({"params": params}, pixel_values, method="encode_patches")

    def encode_text(self, params: Any, tokens: TokenGroup) -> Array:
        """Parameters and int32 [n, length] → float32 [n, projection_dim]."""
        return self.module.apply({"params": params}, (tokens,), method="encode_text")

    def pool_image(self, params: Any, pixel_values: Array) -> Array:
        """Parameters and uint8 [n, height, width, 3] → float32 [n, width], before projection."""
        return self.module.apply({"params": params}, pixel_values, method="pool_image")

    def pool_text(self, params: Any, tokens: TokenGroup) -> Array:
        """Parameters and int32 [n, length] → float32 [n, width], before projection."""
        return self.module.apply({"params": params}, (tokens,), method="pool_text")

    def _start(self) -> dict[str, Any]:
        """What the module itself would start from, by name."""
        pixels = jnp.zeros((1, self.image_size, self.image_size, 3), jnp.uint8)
        tokens = TokenGroup(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32))
        return flatten_dict(
            self.module.init(jax.random.key(0), pixels, (tokens,))["params"], sep="."
        )

    @property
    def image_flops(self) -> float:
        """FLOPs of the vision tower's forward pass on one picture."""
        return self._flops[0]

    @property
    def trained_image_flops(self) -> float:
        """The same while the tower trains, which may leave patches out."""
        return self._flops[1]

    def text_flops(self, lengths: Array) -> np.ndarray:
        """FLOPs of the text tower's forward pass: tokens of captions, int [n] → float64 [n]."""
        return np.polyval(self._flops[2], np.asarray(lengths, np.float64))

    @functools.cached_property
    def _flops(self) -> tuple[float, float, np.ndarray]:
        """Of a picture, twice, and the polynomial in a caption's length, highest power first."""

        def count(method: str, inputs: Any, **options: Any) -> float:
            def pool(params: Any, inputs: Any) -> Any:
                return self.module.apply({"params": params}, inputs, method=method, **options)

            return matmul_flops(pool, shapes, inputs)

        shapes, size = self.shapes(), self.image_size
        pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        whole = image = count("pool_image", pixels)
        if self.module.vision_running.patch_dropout:
            random = {"dropout": jax.random.PRNGKey(0)}
            image = count("pool_image", pixels, deterministic=False, rngs=random)
        ids = [jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (1, 2, 3)]
        # Attention grows with the square of the length and the rest in line: three lengths tell.
        one, two, three = (count("pool_text", (TokenGroup(x, x),)) for x in ids)
        square = (three - 2 * two + one) / 2
        line = two - one - 3 * square
        return whole, image, np.array([square, line, one - line - square])
