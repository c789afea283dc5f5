"""The contestants of `input_pipeline.py`: each an endless iterator of batches of pictures."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIZE, BATCH = 224, 64
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def ours(comparison: str, folder: Path, threads: int) -> Iterator[np.ndarray]:
    """Records → uint8 [BATCH, SIZE, SIZE, 3], in an order as random as that of training."""
    from clip_italian.data import augment, images
    from clip_italian.data.records import open_split, record_image

    file = open_split(folder.parent, folder.name, "train")

    def read(step: int) -> tuple[np.ndarray, augment.Draws]:
        rng = np.random.default_rng(step)
        records = np.empty(BATCH, object)
        records[:] = file.read(rng.integers(0, len(file), BATCH))
        draws = augment.draw(rng.random((BATCH, augment.NUM_UNIFORMS)), flip=True)
        if comparison == "crop":  # as open_clip's RandomResizedCrop
            area, aspect = 0.8 + 0.2 * draws.area, np.full_like(draws.aspect, 4 / 3)
            draws = draws._replace(area=area, aspect=aspect)
        return records, draws

    if comparison != "evaluation":
        policy = {"crop": "light", "paper": "paper"}[comparison]
        yield from images.training_images(
            read, 0, BATCH, augment=policy, image_size=SIZE, threads=threads
        )
    names = [str(number) for number in range(100 * BATCH)]

    def encoded(numbers: np.ndarray) -> list[bytes]:
        return [record_image(data) for data in file.read(numbers % len(file))]

    while True:
        yield from images.centre_crops(encoded, names, SIZE, BATCH, threads)


def transform(comparison: str) -> Callable[[Any], Any]:
    """Encoded picture → normalised float32 tensor [3, SIZE, SIZE], with torchvision on PIL."""
    from PIL import Image
    from torchvision import transforms as T

    cubic, linear = T.InterpolationMode.BICUBIC, T.InterpolationMode.BILINEAR
    crop = [T.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=cubic)]
    paper = [
        T.Resize(SIZE, cubic),
        T.RandomCrop(SIZE),
        T.ColorJitter(hue=0.1),
        T.RandomHorizontalFlip(),
        T.RandomAffine(15, (0.1, 0.1), (0.8, 1.2), (-15, 15, -15, 15), linear, fill=127),
        T.RandomPerspective(0.3, 0.3, linear, fill=127),
        T.RandomAutocontrast(0.3),
        T.RandomEqualize(0.3),
    ]
    evaluation = [T.Resize(SIZE, cubic), T.CenterCrop(SIZE)]
    steps = {
        "crop": [*crop, T.RandomHorizontalFlip()],
        "paper": paper,
        "evaluation": evaluation,
    }[comparison]
    composed = T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN.tolist(), STD.tolist())])
    return lambda data: composed(Image.open(io.BytesIO(data)).convert("RGB"))


def torch(comparison: str, folder: Path, threads: int) -> Iterator[np.ndarray]:
    """Files → float32 [BATCH, 3, SIZE, SIZE] through a DataLoader with a worker per processor."""
    _declare_operators()
    from torch.utils.data import DataLoader, Dataset

    paths = sorted(folder.with_name(f"{folder.name}_files").iterdir())
    apply = transform(comparison)
    order = np.random.default_rng(0).permutation(len(paths))

    class Files(Dataset):
        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: int) -> Any:
            return apply(paths[order[index % len(paths)]].read_bytes())

    for batch in DataLoader(Files(), BATCH, num_workers=threads, multiprocessing_context="fork"):
        yield batch.numpy()


def webdataset(comparison: str, folder: Path, threads: int) -> Iterator[np.ndarray]:
    """As `torch`, from one tar file per worker."""
    _declare_operators()
    import webdataset as wds

    tars = folder.with_name(f"{folder.name}_tars")
    tars.mkdir(exist_ok=True)
    paths = sorted(folder.with_name(f"{folder.name}_files").iterdir())
    for number in range(threads):
        with tarfile.open(tars / f"{number}.tar", "w") as tar:
            for path in paths[number::threads]:
                tar.add(path, path.name)
    apply = transform(comparison)
    urls = [str(tars / f"{number}.tar") for number in range(threads)]
    dataset = wds.WebDataset(urls, resampled=True, shardshuffle=False)
    batches = dataset.map_dict(jpg=apply).to_tuple("jpg").batched(BATCH)
    for batch in wds.WebLoader(
        batches, batch_size=None, num_workers=threads, multiprocessing_context="fork"
    ):
        yield batch[0].numpy()


def _declare_operators() -> None:
    """A torchvision of another build than torch's lacks operators that it only has to name."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[Any] = []  # declarations live as long as their library


def colours() -> dict[str, Callable[[], Any]]:
    """Hue, autocontrast and equalize of one batch: on the host as ours does them, and in jax."""
    import jax

    from clip_italian.data import augment, pixels

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (BATCH, 14, 14, 3), dtype=np.uint8)
    pictures = coarse.repeat(SIZE // 14, 1).repeat(SIZE // 14, 2)
    pictures //= 2
    pictures += rng.integers(0, 99, pictures.shape, dtype=np.uint8)
    draws = augment.draw(rng.random((BATCH, augment.NUM_UNIFORMS)), flip=False)
    chosen = draws.hue, draws.autocontrast, draws.equalize

    def host() -> np.ndarray:
        made = np.empty_like(pictures)
        for row, (hue, contrast, flat) in enumerate(zip(*chosen, strict=True)):
            hued = pixels.shift_hue(pictures[row], float(hue))
            made[row] = pixels.stretch(hued, bool(contrast), bool(flat))
        return made

    compiled = jax.jit(jax.vmap(_device_colour))

    def device() -> np.ndarray:
        return np.asarray(compiled(pictures, *chosen))

    difference = np.abs(host().astype(int) - device()).mean()
    if difference > 3:
        raise SystemExit(f"the two ways to change colours differ by {difference:.1f} levels")
    return {"host": host, "jax": device}


def _device_colour(image: Any, hue: Any, contrast: Any, flat: Any) -> Any:
    import jax
    import jax.numpy as jnp

    def stretched(levels: Any) -> Any:  # float32 [pixels] of one channel
        low, high = levels.min(), levels.max()
        scaled = (levels - low) * 255 / jnp.maximum(high - low, 1)
        levels = jnp.floor(jnp.where(contrast & (high > low), scaled, levels) + 1e-3)
        counts = jnp.zeros(256).at[levels.astype(jnp.int32)].add(1)
        step = jnp.floor((levels.size - counts[levels.max().astype(jnp.int32)]) / 255)
        below = jnp.cumsum(counts) - counts
        table = jnp.floor((jnp.floor(step / 2) + below) / jnp.maximum(step, 1))
        table = jnp.clip(table, 0, 255)
        equal = table[levels.astype(jnp.int32)]
        return jnp.where(flat & (step > 0), equal, levels)

    rgb = image.reshape(-1, 3).astype(jnp.float32)
    red, green, blue = rgb.T
    value, least = rgb.max(1), rgb.min(1)
    chroma = jnp.maximum(value - least, 1e-6)
    sixth = jnp.where(
        value == red,
        (green - blue) / chroma,
        jnp.where(value == green, 2 + (blue - red) / chroma, 4 + (red - green) / chroma),
    )
    turned = sixth + 6 * hue
    offsets = jnp.array([5.0, 3.0, 1.0])[:, None]
    k = (offsets + turned) % 6
    ramps = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    channels = jnp.round(value - (value - least) * ramps)  # [3, pixels]
    return jax.vmap(stretched)(channels).T.reshape(image.shape).astype(jnp.uint8)


CONTESTANTS = {"ours": ours, "torch": torch, "webdataset": webdataset}
