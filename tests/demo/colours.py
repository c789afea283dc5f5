"""Pictures of one colour, an encoder that reads it, and updates that can be killed."""

import io
import os
import sys
import time

import numpy as np
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.demo.building import update_index
from clip_italian.demo.sources import folder_pictures


def colour(number):
    """A colour of its own for each number."""
    return tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())


def encoded(number, size=(12, 8), kind="PNG", **more):
    file = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(file, kind, **more)
    return file.getvalue()


def write(folder, *numbers, **how):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:03}.png").write_bytes(encoded(number, **how))


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def vector(number):
    """What the encoder makes of `encoded(number)`: float32 [4]."""
    return unit([*colour(number), 99])


class Colours:
    """Mean colour and a constant; keeps what it was shown. `refuse` is bytes it cannot decode."""

    def __init__(self, name="colours", fingerprint="f" * 64, refuse=b"nothing"):
        self.name, self.fingerprint, self.refuse = name, fingerprint, refuse
        self.seen = []
        self.calls = 0

    def encode_images(self, read, names):
        self.calls += 1
        rows = []
        for start in range(0, len(names), 3):
            numbers = np.arange(start, min(start + 3, len(names)))
            for number, data in zip(numbers, read(numbers), strict=True):
                if self.refuse in data:
                    raise ConfigError(f"image {names[number]!r} cannot be decoded")
                image = Image.open(io.BytesIO(data)).convert("RGB")
                rows.append([*np.asarray(image, np.float32).mean((0, 1)), 99])
                self.seen.append(names[number])
        return unit(rows)

    def encode_texts(self, texts):
        return unit([np.random.default_rng(len(text)).normal(size=4) for text in texts])


class Slow(Colours):
    """Says on standard output that a part is begun, and takes its time."""

    def encode_images(self, read, names):
        print("part", flush=True)
        time.sleep(float(os.environ["SECONDS_A_PART"]))
        return super().encode_images(read, names)


if __name__ == "__main__":  # FOLDER PICTURES
    update_index(sys.argv[1], folder_pictures(sys.argv[2]), Slow(), part_rows=4)
