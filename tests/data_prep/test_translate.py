import dataclasses
import json
import logging
import random
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import deepl
import pytest

from clip_italian.config import ConfigError
from data_prep.deepl import requests
from data_prep.translate import (
    MAX_CHARACTERS,
    Estimate,
    TranslateOptions,
    TranslationCache,
    TranslationCounts,
    TranslationError,
    confirm_cost,
    estimate,
    open_cache,
    open_translator,
    translate_texts,
)

ROOT = Path(__file__).resolve().parent.parent.parent
PAIR = ("en", "it")
KEY = "canary-7f3a:fx"


class Stub:
    """Says everything louder; counts how often it was asked; may give up."""

    name = identity = "stub"

    def __init__(self, batch=3, dies_after=None):
        self.batch, self.left, self.answered = batch, dies_after, Counter()

    def translate(self, texts):
        for start in range(0, len(texts), self.batch):
            if self.left == 0:
                raise TranslationError("tired")
            self.left = self.left and self.left - 1
            batch = texts[start : start + self.batch]
            self.answered.update(batch)
            yield {text: text.upper() for text in batch}


@pytest.fixture
def cache(tmp_path):
    cache = TranslationCache(tmp_path / "new" / "cache.sqlite", "stub", PAIR)
    yield cache
    cache.close()


def numbered(count):
    return [f"cat {number}" for number in range(count)]


def test_order_repetitions_blanks_and_counts(cache):
    steps = []
    texts = ["b", "a", "", "b", " \n", "c", "d"]
    stub = Stub()
    made, counts = translate_texts(texts, stub, cache, steps.append)
    assert made == ["B", "A", "", "B", " \n", "C", "D"]
    assert counts == TranslationCounts(7, blank=2, repeated=1, cached=0, translated=4, characters=4)
    assert sum(steps) == 4 and set(stub.answered.values()) == {1}
    made, again = translate_texts(["d", "ee"], stub, cache)
    assert made == ["D", "EE"]
    assert again == TranslationCounts(2, cached=1, translated=1, characters=2)
    assert counts + again == TranslationCounts(9, 2, 1, 1, 5, 6)
    assert translate_texts([], stub, cache) == ([], TranslationCounts())


def test_a_translator_that_dies_goes_on_where_it_stopped(cache):
    texts = numbered(20)
    answered = Counter()
    for dies_after in (2, 0, 1, 3):
        stub = Stub(dies_after=dies_after)
        with pytest.raises(TranslationError):
            translate_texts(texts, stub, cache)
        answered += stub.answered
    stub = Stub()
    made, counts = translate_texts(texts, stub, cache)
    answered += stub.answered
    assert made == [text.upper() for text in texts]
    assert answered == Counter(texts)  # each exactly once
    assert (counts.cached, counts.translated) == (18, 2)


def test_a_full_disk_keeps_earlier_batches(cache, tmp_path):
    texts = [f"{number} " + "x" * 2000 for number in range(20)]
    cache._file.execute("PRAGMA max_page_count = 10").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="full") as caught:
        translate_texts(texts, Stub(), cache)
    assert caught.value.__notes__ == [f"while writing to {tmp_path / 'new' / 'cache.sqlite'}"]
    kept = cache.get_many(texts)
    assert 0 < len(kept) < 20 and len(kept) % 3 == 0  # whole batches
    cache._file.execute("PRAGMA max_page_count = 100000").fetchone()
    stub = Stub()
    assert translate_texts(texts, stub, cache)[0] == [text.upper() for text in texts]
    assert stub.answered == Counter(set(texts) - set(kept))


def test_the_cache_tells_translators_languages_and_texts_apart(tmp_path):
    path = tmp_path / "cache.sqlite"
    odd = {
        "a": "1",
        "a ": "2",
        "A": "3",
        "a\0b": "4",
        "a\0": "5",
        "è🐈": "6",
        "e\u0300🐈": "",
        "'": "%",
    }
    cache = TranslationCache(path, "one", PAIR)
    cache.put_many(odd)
    cache.put_many({"a": "another", "new": "n"})  # what is there stays
    cache.close()
    again = TranslationCache(path, "one", PAIR)
    assert again.get_many([*odd, "new", "unknown"]) == {**odd, "new": "n"}
    for identity, pair in [("two", PAIR), ("one", ("en", "fr")), ("one", ("fr", "it"))]:
        assert TranslationCache(path, identity, pair).get_many(odd) == {}


def test_a_batch_is_kept_whole_or_not_at_all(cache):
    with pytest.raises(UnicodeEncodeError):
        cache.put_many({"a": "A", "\ud800": "no Unicode"})
    assert cache.get_many(["a"]) == {}
    cache.put_many({"b": "B"})
    assert cache.get_many(["a", "b"]) == {"b": "B"}


def test_a_cache_that_is_something_else(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("this is not a database, but it is long enough to be looked at " * 20)
    for path in (text, tmp_path):
        with pytest.raises(ConfigError, match="translation_cache = "):
            TranslationCache(path, "one", PAIR)
    assert text.read_text().startswith("this is not")


RUN = """
import os, sys, time
from data_prep.translate import TranslationCache, translate_texts

path, log, texts, batch, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), 4, float(sys.argv[4])
answers = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Stub:
    name = identity = "stub"

    def translate(self, texts):
        for start in range(0, len(texts), batch):
            time.sleep(pause)
            mine = texts[start : start + batch]
            os.write(answers, "".join(text + "\\n" for text in mine).encode())
            yield {text: text.upper() for text in mine}

translate_texts([f"cat {number}" for number in range(texts)], Stub(),
                TranslationCache(path, "stub", ("en", "it")))
"""


def start(*arguments, code=RUN):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


def known(path, texts):
    cache = TranslationCache(path, "stub", PAIR)
    found = cache.get_many(texts)
    cache.close()
    return found


def test_kill_9_loses_the_batch_in_flight_at_most(tmp_path):
    """A batch counts as answered when the translator has made it, a moment before it hands it
    over: what is killed between that and the commit, and nothing else, is answered again."""
    path, log, texts = tmp_path / "cache.sqlite", tmp_path / "answers", numbered(240)
    moments, committed, answers = random.Random(0), set(), Counter()
    for _ in range(5):
        log.write_text("")
        process = start(path, log, len(texts), 0.01)
        while not log.stat().st_size:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.08))
        process.kill()
        assert process.wait() == -9
        answered = log.read_text().splitlines()
        assert not committed & set(answered)
        committed = set(known(path, texts))
        assert len(committed) % 4 == 0 and len(set(answered) - committed) in (0, 4)
        answers.update(answered)
    log.write_text("")
    assert start(path, log, len(texts), 0).wait() == 0
    answered = log.read_text().splitlines()
    assert answered and not committed & set(answered)
    answers.update(answered)
    assert known(path, texts) == {text: text.upper() for text in texts}
    twice = sum(count > 1 for count in answers.values())
    assert twice <= 5 * 4
    print(f"5 kills, {len(texts)} texts: {twice} answered twice")


def test_processes_share_a_new_cache(tmp_path):
    path, texts = tmp_path / "cache.sqlite", numbered(100)
    processes = [start(path, tmp_path / str(n), len(texts), 0.001) for n in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert known(path, texts) == {text: text.upper() for text in texts}


def test_estimate(cache):
    cache.put_many({"ab": "AB"})
    texts = (text for text in ["ab", "cde", "", "cde", "f" * (MAX_CHARACTERS + 5), " ", "ab"])
    assert estimate(texts, cache) == Estimate(texts=3, cached=1, characters=3 + MAX_CHARACTERS)


@pytest.mark.parametrize(
    ("answer", "options", "allowed"),
    [
        ("unasked", {"max_paid_characters": 1000}, True),
        ("unasked", {"yes": True}, True),
        ("unasked", {"translator": "marian"}, True),
        ("unasked", {}, False),
        ("y", {}, True),
        ("", {}, False),
        ("no", {}, False),
    ],
)
def test_confirmation(monkeypatch, capsys, answer, options, allowed):
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: answer != "unasked")
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or answer)
    given = {
        "translator": "deepl",
        "max_paid_characters": 999,
        "price_per_million": 20.0,
        **options,
    }
    said = "1,000 characters to pay for at DeepL, at your price 0.02 (7 texts; 3 are in the cache)"
    if allowed:
        confirm_cost(Estimate(10, 3, 1000), TranslateOptions(**given))
    else:
        with pytest.raises(ConfigError, match="max_paid_characters = 999: .* give --yes") as caught:
            confirm_cost(Estimate(10, 3, 1000), TranslateOptions(**given))
        assert said in str(caught.value)
    assert asked == ([] if answer == "unasked" else [f"{said}. Go on? [y/N] "])
    assert (said in capsys.readouterr().err) == (given["translator"] == "deepl")


@pytest.mark.parametrize(
    "wrong", ["", "en", "en:", "en:it:fr", "en:en", "EN:en", "en it", "../x:it"]
)
def test_wrong_languages(wrong):
    with pytest.raises(ConfigError, match="translate = .* give two languages, like en:it"):
        _ = TranslateOptions(translate=wrong).pair


def test_languages():
    for pair in ("en:it", "de:en-US", "eng:cmn_Hans", "en:es-419"):
        assert ":".join(TranslateOptions(translate=pair).pair) == pair


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams = 0 is not allowed"),
        ({"translate_batch": 0}, "translate_batch = 0 is not allowed"),
        ({"formality": "less"}, "formality is for translator = 'deepl' only"),
        ({"glossary": "g"}, "glossary is for translator = 'deepl' only"),
        ({"translate": "italian"}, "translate = 'italian' is not allowed"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        open_translator(TranslateOptions(**{"translate": "en:it", **options}))


class Server(ThreadingHTTPServer):
    """Speaks DeepL's v2/translate; each fault in `faults` takes the place of one answer.

    Attributes:
      requests: bodies as they came.
      billed: text → how often it was translated and counted.
      faults: HTTP status, "hang up" (after counting), "wait" or a whole answer.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.billed, self.faults = [], Counter(), []
        self.waiting, self.go_on = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert len(data) <= 128 * 1024 and self.path == "/v2/translate"
        body = json.loads(data)
        assert len(body["text"]) <= 50
        self.server.requests.append(body)
        fault = self.server.faults.pop(0) if self.server.faults else 200
        if isinstance(fault, bytes):
            return self.answer(200, fault)
        if self.headers["Authorization"] != f"DeepL-Auth-Key {KEY}":
            fault = 403
        if isinstance(fault, int) and fault != 200:
            echo = f"no: {self.headers['Authorization']}"  # as a careless proxy might
            return self.answer(fault, json.dumps({"message": echo}).encode())
        self.server.billed.update(body["text"])
        if fault == "wait":
            self.server.waiting.set()
            self.server.go_on.wait(20)
        if fault == "hang up":
            self.close_connection = True
            return None
        texts = [f"{body['target_lang']} {text}" for text in body["text"]]
        rest = {"detected_source_language": "EN", "billed_characters": 1}
        translations = [{"text": text, **rest} for text in texts]
        return self.answer(200, json.dumps({"translations": translations}).encode())

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("DEEPL_AUTH_KEY", KEY)
    monkeypatch.setenv("DEEPL_SERVER_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(deepl.http_client._BackoffTimer, "BACKOFF_INITIAL", 0.001)
    monkeypatch.setattr(deepl.http_client, "max_network_retries", 2)
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def options(tmp_path):
    path = str(tmp_path / "cache.sqlite")
    return TranslateOptions(translate="en:it", translator="deepl", translation_cache=path)


def translate(options, texts):
    """One run from the options on: (translations, counts)."""
    translator = open_translator(options)
    cache = open_cache(options, translator)
    try:
        return translate_texts(texts, translator, cache)
    finally:
        cache.close()


def test_deepl_within_its_limits(server, options):
    # 6 bytes a letter once written as JSON: two of the long ones fill half a request.
    texts = [*numbered(120), *("è" * 9000 + str(n) for n in range(6)), "x" * (MAX_CHARACTERS + 9)]
    made, counts = translate(options, texts)
    assert made == [f"IT {text[:MAX_CHARACTERS]}" for text in texts]
    assert [len(body["text"]) for body in server.requests] == [50, 50, 22, 2, 3]
    assert all(body["source_lang"] == "EN" for body in server.requests)
    assert counts.translated == 127 and counts.characters == sum(len(t) for t in texts) - 9
    assert counts.characters == sum(map(len, server.billed))
    assert translate(options, texts)[1].cached == 127 and len(server.requests) == 5


def test_requests_keep_all_texts_in_order():
    texts = ["🐈" * (n * 997 % MAX_CHARACTERS) + str(n) for n in range(300)]
    cut = list(requests(texts))
    assert [text for batch in cut for text in batch] == texts
    sizes = [len(json.dumps({"text": batch}).encode()) for batch in cut]
    assert max(sizes) < 127 * 1024 and all(len(batch) <= 50 for batch in cut)
    assert list(requests([])) == []


def test_deepl_formality_and_glossary_are_asked_for_and_kept_apart(server, options):
    formal = dataclasses.replace(options, formality="prefer_more", glossary="g1")
    translate(options, ["a cat"])
    translate(formal, ["a cat"])
    plain, asked = server.requests
    assert plain["formality"] == "default" and "glossary_id" not in plain
    assert (asked["formality"], asked["glossary_id"]) == ("prefer_more", "g1")
    assert translate(formal, ["a cat"])[1].cached == 1


def test_deepl_tries_again_when_it_is_busy(server, options):
    server.faults = [429, 503, 200, 200, 500]
    assert translate(options, numbered(150))[1].translated == 150
    assert len(server.requests) == 6 and set(server.billed.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (456, "quota of characters is used up"),
        (403, r"AuthorizationException: .* no: DeepL-Auth-Key \*\*\*"),
        (429, "TooManyRequestsException"),
        (503, "DeepLException: Service unavailable"),
        (b'{"translations": []}', "does not hold one translation for each text"),
        (b"<html>hello</html>", "does not hold one translation for each text"),
        (b'{"translations": [{}]}', "TypeError"),
    ],
)
def test_deepl_gives_up_and_goes_on_later(server, options, fault, message):
    server.faults = [200, *[fault] * 3]
    with pytest.raises(TranslationError, match=f"DeepL: .*{message}.*kept in the cache") as caught:
        translate(options, numbered(120))
    assert caught.value.__context__ is None
    server.faults = []
    made, counts = translate(options, numbered(120))
    assert made == [f"IT {text}" for text in numbered(120)]
    assert counts.cached == 50 and server.billed == Counter(numbered(120))


def test_deepl_killed_while_it_waits_for_an_answer(server, options, tmp_path):
    code = """
import sys
from data_prep.translate import *

options = TranslateOptions(translate="en:it", translator="deepl", translation_cache=sys.argv[1])
translator = open_translator(options)
texts = [f"cat {number}" for number in range(170)]
translate_texts(texts, translator, open_cache(options, translator))
"""
    server.faults = [200, 200, "wait"]
    process = start(options.translation_cache, code=code)
    assert server.waiting.wait(20)
    process.kill()
    process.wait()
    server.go_on.set()
    made, counts = translate(options, numbered(170))
    assert made == [f"IT {text}" for text in numbered(170)] and counts.cached == 100
    # DeepL has no way to ask for the answer to an earlier request: that one is paid for again.
    assert server.billed == Counter(numbered(170)) + Counter(numbered(150)[100:])


def test_deepl_hangs_up_in_the_middle(server, options):
    server.faults = [200, "hang up"]
    assert translate(options, numbered(100))[0] == [f"IT {text}" for text in numbered(100)]
    assert server.billed == Counter(numbered(100)) + Counter(numbered(100)[50:])


@pytest.mark.parametrize("key", [None, "", " ", f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"{KEY}è"])
def test_no_key(monkeypatch, options, key):
    monkeypatch.delenv("DEEPL_AUTH_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("DEEPL_AUTH_KEY", key)
    with pytest.raises(ConfigError, match="environment variable DEEPL_AUTH_KEY") as caught:
        open_translator(options)
    assert KEY not in str(caught.value)


def test_the_key_is_nowhere(server, options, caplog, tmp_path, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("DEEPL_AUTH_KEY", f"{KEY}\n")  # as files with keys end
    translator = open_translator(options)
    written = [repr(translator), str(vars(options)), translator.name, translator.identity]
    for fault in (200, 403, 400, 418, 429, 503, "hang up"):
        server.faults = [fault] * 3
        try:
            translate(options, [str(fault)])
        except TranslationError:
            written.append(traceback.format_exc())
    server.shutdown()
    server.server_close()
    with pytest.raises(TranslationError, match="ConnectionException"):
        translate(options, ["nobody there"])
    written += [caplog.text, *(f"{record.__dict__}" for record in caplog.records)]
    assert len(written) > 15 and "POST" in caplog.text  # the client does log
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert files and KEY.encode() not in b"".join(files)
    assert KEY not in "".join(written) and "canary" not in "".join(written)
