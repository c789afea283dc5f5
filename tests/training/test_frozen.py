"""What a frozen tower is known by."""

import numpy as np

from clip_italian.training.frozen import fingerprint

PARAMS = {"layer": {"kernel": np.eye(3, dtype=np.float32), "bias": np.zeros(3, np.float32)}}
TOWER = {"hidden_act": "gelu", "num_attention_heads": 2, "dropout": 0.0, "_name_or_path": "a"}


def test_weights_and_description_tell_towers_apart():
    same = {**TOWER, "dropout": 0.1, "_name_or_path": "b", "transformers_version": "4.57"}
    assert fingerprint(PARAMS, same) == fingerprint(PARAMS, TOWER)
    turned = {"layer": {**PARAMS["layer"], "bias": np.ones(3, np.float32)}}
    others = [
        fingerprint(turned, TOWER),
        fingerprint({"other": PARAMS["layer"]}, TOWER),
        fingerprint(PARAMS, {**TOWER, "hidden_act": "quick_gelu"}),
        fingerprint(PARAMS, {**TOWER, "num_attention_heads": 3}),
    ]
    assert len({fingerprint(PARAMS, TOWER), *others}) == 5
