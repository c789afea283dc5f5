import numpy as np
import pytest
from transformers import BertTokenizer

from clip_italian.config import ConfigError
from clip_italian.data.tokens import check_vocabulary, encode, load_tokenizer
from tests.data.conftest import WORDS, make_tokenizer


def test_encode_pads_cuts_and_masks(tokenizer):
    group = encode(tokenizer, ["un gatto", "un cane nero dorme un", ""], 5)
    assert group.input_ids.tolist() == [
        [2, 4, 5, 3, 0],
        [2, 4, 7, 6, 3],
        [2, 3, 0, 0, 0],
    ]
    assert group.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert encode(tokenizer, ["un gatto"], 8).input_ids.shape == (1, 8)
    assert group.input_ids.dtype == group.attention_mask.dtype == np.int32


def test_a_saved_tokenizer_loads_from_its_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert encode(loaded, ["un gatto"], 4).input_ids.tolist() == [[2, 4, 5, 3]]


def test_a_vocabulary_file_is_enough(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "[MASK]"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)  # slow: no tokenizer.json
    assert not (tmp_path / "tokenizer.json").exists()
    loaded = load_tokenizer(str(tmp_path))
    assert encode(loaded, ["Un gatto"], 4).input_ids.tolist() == [[2, 4, 5, 3]]


def test_missing_tokenizers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="tokenizer is empty"):
        load_tokenizer("")
    with pytest.raises(ConfigError, match=r"tokenizer = .*cannot be loaded"):
        load_tokenizer(str(tmp_path))
    make_tokenizer(pad_token=None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no padding token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("vocab_size", [9, 10, 99, 128])
def test_fitting_vocabularies_pass(tokenizer, vocab_size):
    check_vocabulary(tokenizer, vocab_size)


@pytest.mark.parametrize("vocab_size", [8, 129, 30_000])
def test_other_vocabularies_are_refused(tokenizer, vocab_size):
    with pytest.raises(ConfigError, match=rf"ids up to 8, .* {vocab_size} embeddings"):
        check_vocabulary(tokenizer, vocab_size)


def test_a_tower_may_have_a_few_rows_more(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {"a": 31_101})
    check_vocabulary(tokenizer, 32_102)  # dbmdz/bert-base-italian-xxl-uncased
    with pytest.raises(ConfigError):
        check_vocabulary(tokenizer, 35_000)
