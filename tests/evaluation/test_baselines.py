"""What needs no PyTorch; the rest is in test_baselines_torch.py."""

import sys

import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation.baselines import open_baseline


@pytest.mark.parametrize("spec", ["runs/none", "clip:openai", "hf:", "hf", "", "mclip:large"])
def test_an_unknown_model_is_refused_with_the_known_ones(spec):
    with pytest.raises(
        ConfigError, match=r"neither a run folder nor .* mclip, st:.*hf:.*open_clip"
    ):
        open_baseline(spec)


@pytest.mark.parametrize("spec", ["mclip", "st:a+b", "hf:a", "open_clip:ViT-B-32/laion2b_e16"])
def test_a_missing_package_names_the_extra(spec, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="needs the package torch") as caught:
        open_baseline(spec)
    assert spec in str(caught.value) and "pip install 'clip-italian[torch,openclip]'" in str(
        caught.value
    )
