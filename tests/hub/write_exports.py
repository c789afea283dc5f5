"""Writes the folders that `test_exported_torch.py` reads where this project is not installed.

    python -m tests.hub.write_exports FOLDER [RUN]

FOLDER is made; RUN is a trained run, which is exported beside the models with random weights.
"""

import sys

import tests.conftest  # noqa: F401 (declares torchvision's operators, before transformers looks)
from tests.hub import exports

exports.main(sys.argv[1:])
