import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.evaluation.encoders import (
    TranslateTest,
    config_facts,
    digest,
    open_encoder,
    split_run,
    tokenizer_facts,
)
from tests.data.conftest import make_tokenizer

WORDS = {"un gatto": "a cat", "un cane": "a dog"}


class Lengths:
    """An encoder that tells what it was given."""

    name, fingerprint = "lengths", "f" * 64

    def encode_images(self, read, names):
        return np.array([[len(data)] for data in read(np.arange(len(names)))], np.float32)

    def encode_texts(self, texts):
        return np.array([[len(text), text.startswith("a ")] for text in texts], np.float32)


def translate(texts):
    return [WORDS[text] for text in texts]


def test_translate_test_translates_texts_and_leaves_images_alone():
    encoder = TranslateTest(Lengths(), translate, "opus-mt")
    assert encoder.encode_texts(["un cane", "un gatto"]).tolist() == [[5, 1], [5, 1]]
    assert encoder.encode_images(lambda n: [b"xx", b"y"], ["a", "b"]).tolist() == [[2], [1]]
    assert encoder.name == "translate-test, lengths"


def test_translate_test_has_a_fingerprint_of_both():
    ours, other = Lengths(), Lengths()
    other.fingerprint = "0" * 64
    fingerprints = {
        TranslateTest(encoder, translate, identity).fingerprint
        for encoder in (ours, other)
        for identity in ("opus-mt", "opus-mt beams=4")
    }
    assert len(fingerprints) == 4 and ours.fingerprint not in fingerprints


def test_a_lost_translation_is_an_error():
    encoder = TranslateTest(Lengths(), lambda texts: translate(texts[1:]), "opus-mt")
    with pytest.raises(ValueError, match="2 texts were given 1 translations"):
        encoder.encode_texts(["un cane", "un gatto"])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("runs/a", ("runs/a", "")),
        ("runs/a@best", ("runs/a", "best")),
        ("runs/a@600", ("runs/a", "600")),
        ("runs/a/checkpoints/600", ("runs/a", "600")),
        ("runs/me@home", ("runs/me@home", "")),
        ("runs/me@home@best", ("runs/me@home", "best")),
        ("runs/600", ("runs/600", "")),
        ("@best", ("@best", "")),
    ],
)
def test_split_run(spec, expected):
    assert split_run(spec) == expected


def opened(spec, **kwargs):
    calls = []

    def opener(kind):
        return lambda given: calls.append((kind, given)) or Lengths()

    encoder = open_encoder(spec, open_run=opener("run"), open_baseline=opener("baseline"), **kwargs)
    return encoder, calls


def test_open_encoder_knows_a_model_of_ours_from_a_baseline(tmp_path):
    (tmp_path / "a" / "checkpoints" / "600").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.py").write_text("")
    (tmp_path / "exported").mkdir()
    for spec in ("a", "a@best", "a@600", "a/checkpoints/600", "b"):
        assert opened(f"{tmp_path}/{spec}")[1] == [("run", f"{tmp_path}/{spec}")]
    for spec in (f"{tmp_path}/none", f"{tmp_path}/exported", "clip-italian/clip-italian", "a/b@v1"):
        assert opened(spec)[1] == [("run", spec)]
    for spec in ("mclip", "hf:openai/clip", "open_clip:ViT-B-32/openai", "nonsense:x"):
        assert opened(spec)[1] == [("baseline", spec)]
    (tmp_path / "a:b").mkdir()
    assert opened(f"{tmp_path}/a:b")[1] == [("run", f"{tmp_path}/a:b")]


def test_open_encoder_translates_what_follows(tmp_path):
    encoder, calls = opened("translate:mclip", translate=(translate, "opus-mt"))
    assert calls == [("baseline", "mclip")]
    assert encoder.fingerprint == TranslateTest(Lengths(), translate, "opus-mt").fingerprint
    assert encoder.encode_texts(["un cane"]).tolist() == [[5, 1]]
    with pytest.raises(ConfigError, match="'translate:mclip' needs a translator"):
        opened("translate:mclip")


def test_digest_sees_every_part_and_no_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = digest({"a": array, "b": array[0]}, {"x": 1, "y": 2})
    assert digest({"b": array[0], "a": array}, {"y": 2, "x": 1}) == same
    others = [
        digest({"a": array, "c": array[0]}, {"x": 1, "y": 2}),
        digest({"a": array, "b": array[1]}, {"x": 1, "y": 2}),
        digest({"a": array.T, "b": array[0]}, {"x": 1, "y": 2}),
        digest({"a": array.reshape(3, 2), "b": array[0]}, {"x": 1, "y": 2}),
        digest({"a": array.view(np.int32), "b": array[0]}, {"x": 1, "y": 2}),
        digest({"a": array, "b": array[0]}, {"x": 1, "y": 3}),
        digest({"a": array}, {"x": 1, "y": 2}),
    ]
    assert len({same, *others}) == 8 and len(same) == 64
    assert digest({"a": np.float32(1)}, []) != digest({"a": np.array([1], np.float32)}, [])


def test_digest_of_a_view_is_that_of_its_copy():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest({"a": array.T}, []) == digest({"a": array.T.copy()}, [])


def test_tokenizer_facts_do_not_depend_on_past_calls():
    tokenizer = make_tokenizer()
    before = digest({}, tokenizer_facts(tokenizer))
    tokenizer(["un gatto"], padding="max_length", truncation=True, max_length=7)
    assert digest({}, tokenizer_facts(tokenizer)) == before
    tokenizer.add_tokens(["verde"])
    assert digest({}, tokenizer_facts(tokenizer)) != before
    limited = make_tokenizer()
    limited.model_max_length = 9  # an export says it, the run's own tokenizer does not
    assert digest({}, tokenizer_facts(limited)) == before


def test_config_facts_leave_out_where_a_configuration_lies():
    from transformers import CLIPConfig

    facts = []
    for name in ("here", "there"):
        config = CLIPConfig(name_or_path=name)
        config.text_config._name_or_path = name
        facts.append(config_facts(config))
    assert facts[0] == facts[1]
    assert "transformers_version" not in facts[0]
    assert facts[0]["text_config"]["hidden_size"] == 512
    config.text_config.hidden_act = "relu"
    assert config_facts(config) != facts[0]
