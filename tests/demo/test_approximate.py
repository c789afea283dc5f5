"""Approximate indexes: built, tuned against exact search, written, read, and dropped when stale."""

import json
import os
import threading

import faiss
import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.data.collections import open_records
from clip_italian.demo import approximate, commands, exact, serving, storage
from clip_italian.demo.building import update_index
from clip_italian.demo.index import open_index, verify
from clip_italian.demo.sources import folder_pictures
from clip_italian.hub import export
from tests.demo import models
from tests.demo.colours import Colours, unit, write


def clustered(rows, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    return unit(centres[rng.integers(0, 20, rows)] + 0.5 * rng.normal(size=(rows, dim)))


@pytest.fixture(autouse=True)
def one_thread():
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def test_the_kind_follows_the_size():
    found = [approximate.kind_for(rows) for rows in (0, 19_999, 20_000, 999_999, 1_000_000)]
    assert found == ["", "", "hnsw", "hnsw", "ivf"]


def test_recall_by_hand():
    def one(rows, scores):
        return np.array(rows), np.array(scores, np.float32)

    best = [one(range(10), np.linspace(1, 0.1, 10))]
    # Nine of the ten, and one that is no better than an eleventh.
    nine = [one([*range(9), 40], [*np.linspace(1, 0.2, 9), 0.05])]
    assert approximate.recall(best, nine) == pytest.approx(0.9)
    # A row of equal score is as good as the tenth.
    equal = [one([*range(9), 40], [*np.linspace(1, 0.2, 9), 0.1])]
    assert approximate.recall(best, equal) == 1
    assert approximate.recall(best, [one([0, 1], [1, 0.9])]) == pytest.approx(0.2)
    # A picture finds itself, which is no merit.
    eleven = [one(range(11), np.linspace(1, 0, 11))]
    own = [one([0, 1, 2, 3, 4, 5], np.linspace(1, 0.5, 6))]
    assert approximate.recall(eleven, own, np.array([0])) == pytest.approx(0.5)
    assert approximate.recall(best + best, nine + equal) == pytest.approx(0.95)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_it_finds_what_exact_search_finds(tmp_path, kind):
    embeds, texts = clustered(3000), unit(np.random.default_rng(1).normal(size=(50, 16)))
    made = approximate.build(tmp_path, embeds, texts, kind, 0.95)
    assert (made.kind, made.rows) == (kind, 3000)
    assert min(made.recall_pictures, made.recall_texts) >= 0.95
    assert made.exact_ms > 0 and made.approximate_ms > 0
    searcher = approximate.read(tmp_path, made, (3000, 16))
    assert searcher.effort == made.effort
    best, found = exact.search(embeds, texts, 10), searcher.search(texts, 10)
    assert approximate.recall(best, found) == pytest.approx(made.recall_texts, abs=0.02)
    for rows, scores in found:
        assert len(set(rows.tolist())) == 10 and (np.diff(scores) <= 0).all()
        assert rows.dtype == np.int64 and scores.dtype == np.float32
    rows, scores = found[0]
    np.testing.assert_allclose(scores, embeds[rows] @ texts[0], atol=1e-5)
    assert len(searcher.search(texts[:1], 5000)[0][0]) <= 3000


@pytest.mark.parametrize("worse", ["pictures", "texts"])
def test_effort_rises_until_the_smaller_recall_is_reached(tmp_path, monkeypatch, worse):
    embeds, texts = clustered(3000), clustered(50, seed=2)
    efforts = []
    recall = approximate.recall

    def graded(best, found, own=None):
        kind = "texts" if own is None else "pictures"
        share = recall(best, found, own)
        return share - (0.3 if kind == worse and len(efforts) < 3 else 0)

    search = approximate.Searcher.search

    def seen(self, queries, k):
        if len(queries) > 1 and (not efforts or efforts[-1] != self.effort):
            efforts.append(self.effort)
        return search(self, queries, k)

    monkeypatch.setattr(approximate, "recall", graded)
    monkeypatch.setattr(approximate.Searcher, "search", seen)
    made = approximate.build(tmp_path, embeds, texts, "hnsw", 0.95)
    assert efforts[:3] == [16, 32, 64] and made.effort == efforts[-1]
    assert made.effort >= 64


def test_a_recall_that_is_never_reached_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "recall", lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"0\.500 of pictures and 0\.500 of texts at most, 0\.95"):
        approximate.build(tmp_path, clustered(300), clustered(5), "ivf", 0.95)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An index of 40 pictures in a world where that is many."""
    monkeypatch.setattr(approximate, "HNSW_FROM", 30)
    write(tmp_path / "pictures", *range(40))
    update(tmp_path)
    return tmp_path


def update(place):
    return update_index(place / "index", folder_pictures(place / "pictures"), Colours())


def manifest(place):
    return json.loads((place / "index" / "manifest.json").read_text())


def test_it_is_part_of_the_index_until_the_pictures_change(place):
    said = approximate.build_approximate(place / "index", Colours())
    facts = manifest(place)["approximate"]
    assert f"hnsw, efSearch {facts['effort']}, {facts['bytes']:,} bytes; recall@10" in said
    assert (facts["rows"], facts["kind"]) == (40, "hnsw")
    assert "40 pictures, 2 files" in verify(place / "index")
    index = open_index(place / "index")
    query = index.image_embeds[7]
    exactly = index.search(query, 5)
    np.testing.assert_array_equal(index.search(query, 5, exact=False)[0], exactly[0])
    np.testing.assert_allclose(index.search(query, 5, exact=False)[1], exactly[1], atol=1e-6)

    encoder = Colours()
    update_index(place / "index", folder_pictures(place / "pictures"), encoder)
    assert manifest(place)["approximate"] == facts, "nothing has changed"
    assert approximate.build_approximate(place / "index", Colours()) == said, (
        "nor is it built again"
    )

    (place / "pictures" / "003.png").unlink()
    summary = update(place)
    assert summary.dropped and "the approximate index" in summary.text()
    assert manifest(place)["approximate"] is None
    assert not list((place / "index").glob("*.faiss"))
    approximate.build_approximate(place / "index", Colours())
    assert manifest(place)["approximate"]["rows"] == 39
    assert not update(place).dropped


@pytest.fixture
def demo(drawn, tmp_path, monkeypatch):
    """Words of the command → the demo that would be served, and what was said."""
    (model := tmp_path / "model").mkdir()
    export.write(model, export.exact(models.tiny_model(drawn, "tiny", 0)))
    monkeypatch.chdir(tmp_path)  # where the index goes
    monkeypatch.setattr(approximate, "HNSW_FROM", 30)

    def run(*words):
        served, said = [], []
        monkeypatch.setattr(serving, "serve", lambda answers, *_, **__: served.append(answers))
        words = ["--model", str(model), "--images", str(drawn / "sample"), *words]
        assert commands.run(words, open_records, lambda *_: None, said.append) == 0
        return served[0], "\n".join(said)

    return run


@pytest.mark.parametrize("words", [["--approximate"], []])
def test_the_demo_searches_through_it_if_asked(demo, monkeypatch, words):
    answers, said = demo(*words)
    assert ("hnsw, efSearch" in said) == bool(words)
    search, asked = approximate.Searcher.search, []
    monkeypatch.setattr(
        approximate.Searcher, "search", lambda *some: asked.append(some) or search(*some)
    )
    found = answers.by_text("una stella blu", "un cerchio rosso", 5, fold=True)
    assert bool(asked) == bool(words)
    text, negative = map(answers.text_embeds, ("una stella blu", "un cerchio rosso"))
    assert found.rows[0] == np.argmax(answers.index.image_embeds @ (text - 0.5 * negative))


def test_the_demo_does_not_start_on_a_damaged_one(demo, tmp_path):
    demo("--approximate")
    (file,) = tmp_path.glob("indexes/*/*.faiss")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match="is damaged"):
        demo("--approximate")
    demo()  # exact search needs no such file


def test_exact_search_never_reads_it(place):
    approximate.build_approximate(place / "index", Colours())
    file = place / "index" / manifest(place)["approximate"]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    index = open_index(place / "index")
    assert index.search(index.image_embeds[3], 1)[0][0] == 3
    with pytest.raises(ConfigError, match=rf"{file.name} is damaged: other contents"):
        index.search(index.image_embeds[3], 1, exact=False)
    with pytest.raises(ConfigError, match=rf"{file.name} is damaged: other contents"):
        verify(place / "index")


def test_a_file_of_other_rows_or_no_index_is_refused(tmp_path):
    embeds = clustered(300)
    made = approximate.build(tmp_path, embeds, clustered(5), "hnsw", 0.5)
    for shape in ((299, 16), (300, 17)):
        with pytest.raises(ConfigError, match="is damaged: IndexHNSWFlat of 300 rows of 16"):
            approximate.read(tmp_path, made, shape)
    fields = {**vars(made), "kind": "ivf"}
    with pytest.raises(ConfigError, match="is damaged: IndexHNSWFlat"):
        approximate.read(tmp_path, storage.Approximate(**fields), (300, 16))
    other = storage.write_data(
        tmp_path, "approximate", 300, lambda path: path.write_bytes(b"no index at all")
    )
    with pytest.raises(ConfigError, match="is damaged: "):
        approximate.read(tmp_path, storage.Approximate(**{**fields, **vars(other)}), (300, 16))


def test_few_pictures_need_none(tmp_path):
    write(tmp_path / "pictures", *range(5))
    update(tmp_path)
    said = approximate.build_approximate(tmp_path / "index", Colours())
    assert "not needed below 20,000 pictures; exact search of 5 takes" in said
    assert manifest(tmp_path)["approximate"] is None


def test_another_models_texts_are_refused(place):
    with pytest.raises(ConfigError, match="is an index of the model 'colours'"):
        approximate.build_approximate(place / "index", Colours("other", "a" * 64))


def test_two_hundred_italian_texts_are_asked():
    texts = approximate.query_texts()
    assert len(texts) == len(set(texts)) == 200
    assert sum(" " in text for text in texts) > 150 and all("{" not in text for text in texts)


def test_several_threads_search(tmp_path):
    embeds = clustered(2000)
    made = approximate.build(tmp_path, embeds, clustered(5, seed=3), "hnsw", 0.9)
    searcher = approximate.read(tmp_path, made, embeds.shape)
    expected = [searcher.search(embeds[row : row + 1], 5)[0][0].tolist() for row in range(20)]
    wrong = []

    def look():
        for _ in range(20):
            for row in range(20):
                if searcher.search(embeds[row : row + 1], 5)[0][0].tolist() != expected[row]:
                    wrong.append(row)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
