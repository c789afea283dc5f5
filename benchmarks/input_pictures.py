"""Pictures for the input benchmark: real photos or drawn ones, as originals and as records."""

import io
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure


def write_pictures(folder: Path, number: int) -> dict[str, float]:
    """Originals and records as files, and both as records; mean bytes of each."""
    from clip_italian.data.records import Record, write_records
    from data_prep.images import PreparedImage, prepare_image

    originals = [original(some) for some in photos(number)]
    prepared = [prepare_image(data) for data in originals]
    assert all(isinstance(one, PreparedImage) for one in prepared)
    records = [one.jpeg for one in prepared if isinstance(one, PreparedImage)]
    for kind, encoded in (("originals", originals), ("records", records)):
        made = (Record(data, ("una foto",), kind, str(i)) for i, data in enumerate(encoded))
        write_records(folder / kind, {"train": made}, name=kind)
        (folder / f"{kind}_files").mkdir()
        for place, data in enumerate(encoded):
            (folder / f"{kind}_files" / f"{place:06}.jpg").write_bytes(data)
    return {
        "originals": statistics.mean(map(len, originals)),
        "records": statistics.mean(map(len, records)),
    }


def photos(number: int) -> Iterator[list[Any]]:
    """Four pictures at a time, PIL, 320 × 240."""
    from PIL import Image

    real = sorted(
        Path(os.environ.get("CLIP_ITALIAN_REAL_DATA", "/nowhere")).glob("coco_mt/*/*.jpg")
    )
    measure.say(f"pictures: {f'of {len(real)} photos' if real else 'drawn'}")
    rng = np.random.default_rng(0)
    for _ in range(number):
        if real:
            some = [Image.open(real[k]).convert("RGB") for k in rng.choice(len(real), 4)]
        else:
            some = [drawn(rng) for _ in range(4)]
        yield [one.resize((320, 240), Image.Resampling.BICUBIC) for one in some]


def drawn(rng: np.random.Generator) -> Any:
    """Colours that change slowly, with texture: as many bytes as a photo."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 9, (240, 320, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def original(four: list[Any]) -> bytes:
    """Four pictures of 320 × 240 → a JPEG of 640 × 480."""
    from PIL import Image

    whole = Image.new("RGB", (640, 480))
    for place, one in enumerate(four):
        whole.paste(one, (place % 2 * 320, place // 2 * 240))
    file = io.BytesIO()
    whole.save(file, "JPEG", quality=96)
    return file.getvalue()
