"""The card's text and metadata. Its code is run by the tests of the export."""

import copy
import dataclasses
import math
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from clip_italian.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    Segment,
    TrainConfig,
)
from clip_italian.evaluation import commands, report, report_tables
from clip_italian.evaluation.options import Evaluate
from clip_italian.evaluation.protocols import PROTOCOLS
from clip_italian.hub.card_words import describe_protocol
from clip_italian.hub.model_card import CardFacts, model_card
from clip_italian.hub.verify import Check
from tests.evaluation import example_report
from tests.hub.card_snippets import snippets
from tests.tiny import TINY_BERT, TINY_VIT

OURS, MCLIP = example_report.MODELS
TOWERS = ("openai/clip-vit-base-patch32", "dbmdz/bert-base-italian-xxl-uncased")
CONFIG = Config(
    model=ModelConfig(vision_tower=TOWERS[0], text_tower=TOWERS[1], text_revision="abc"),
    data=DataConfig(sources=("wit", "cc"), weights=(1, 3), max_length=64, augment="light"),
    optim=OptimConfig(
        learning_rate=3e-4, warmup_steps=50, vision_thaw_step=400, text_thaw_step=None, clip_norm=1
    ),
    train=TrainConfig(steps=1000, batch_size=256, seed=7),
)
FACTS = CardFacts(
    name="someone/gatti",
    license="apache-2.0",
    base_models=TOWERS,
    datasets=("wit", "owner/pictures"),
    config=CONFIG,
    hardware="one TPU v3-8",
    parameters={"vision tower": 1000, "text tower": 2345},
    logit_scale=20.0,
    projection_dim=512,
    image_size=224,
    max_length=64,
    step=12000,
)
BARE = CardFacts(
    name="runs/x/", logit_scale=7.5, projection_dim=16, image_size=32, max_length=8, language=""
)
CHECKS = [
    Check("transformers 4.57.6, Flax", "sample", 200, 400, 1.25e-7, 3.3e-7, 4e-6, 200, 0.021, 199),
    Check("transformers 5, PyTorch", "sample", 200, 400, 0.0, 2e-7, 3e-6, 200),
]
HOSTILE = (
    "<script>alert(1)</script><img src=x> | [a](javascript:alert(3)) ![b](//c.d) `code` **bold** "
    "_em_ ~~no~~ http://evil.example www.evil.example a@evil.example \u202egnp.exe\n---\n# h\n"
    "```\n{{ 7 * 7 }} {% raw %} \udcff \0"
)


@pytest.fixture(scope="module")
def made():
    return example_report.make(images=60, classes=20)[0]


@pytest.fixture(scope="module")
def card(made):
    return model_card(FACTS, made, CHECKS, ours=OURS)


def changed(facts=FACTS, made=None, checks=(), **fields):
    return model_card(dataclasses.replace(facts, **fields), made, checks, ours=OURS)


def parse(text):
    return MarkdownIt("commonmark").enable("table").parse(text)


def shown(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def tables(text):
    """heading → texts of all cells, row by row, of each table under it."""
    found, heading, previous = {}, "", None
    for token in parse(text):
        if token.type == "table_open":
            found.setdefault(heading, []).append([])
        elif token.type == "tr_open":
            found[heading][-1].append([])
        elif token.type == "inline":
            content = "".join(part.content for part in token.children)
            if previous.type == "heading_open":
                heading = content
            elif previous.type in ("td_open", "th_open"):
                found[heading][-1][-1].append(content)
        previous = token
    return found


def section(card, heading):
    return re.split(r"(?m)^## ", card.text.partition(f"\n## {heading}\n")[2])[0]


def check_metadata(data):
    """What the hub's own check is known to ask for."""
    raw = data.to_dict()
    assert re.fullmatch("[a-z]{2,3}", raw.get("language", "it"))
    for name in raw.get("base_model", []) + raw.get("datasets", []):
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    assert raw.get("license") != "other" or re.fullmatch(r"[a-z0-9.-]+", raw["license_name"])
    for result in raw.get("model-index", [{"results": []}])[0]["results"]:
        assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
        for metric in result["metrics"]:
            assert metric["type"] and math.isfinite(metric["value"])


def test_what_the_hub_reads(card):
    raw = card.data.to_dict()
    check_metadata(card.data)
    assert raw.pop("model-index")[0]["name"] == "gatti"
    assert raw == {
        "language": "it",
        "license": "apache-2.0",
        "base_model": list(TOWERS),
        "datasets": ["owner/pictures"],
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": [
            "clip", "vision-text-dual-encoder", "image-text-retrieval", "jax", "flax", "italian",
        ],
    }  # fmt: skip


def test_a_written_card_is_read_back_equal(card, tmp_path):
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert (again.data.to_dict(), again.text) == (card.data.to_dict(), card.text)
    assert str(again) == (tmp_path / "README.md").read_text(encoding="utf-8") == str(card)


def test_the_metadata_has_the_numbers_of_our_model_and_no_others(card, made):
    found = {
        (one.dataset_type, one.dataset_config, one.dataset_revision, one.metric_config,
         (re.search(r"\((.*)\)$", one.metric_name) or ["", ""])[1]): one
        for one in card.data.eval_results
    }  # fmt: skip
    expected = {
        (one.set, one.protocol, one.data_fingerprint, metric, one.variant): (one, metric)
        for one in report.results(made)
        if one.model == OURS and one.task != "contrast"
        for metric in one.metrics
    }
    assert len(found) == len(card.data.eval_results) and set(found) == set(expected)
    for key, (one, metric) in expected.items():
        assert found[key].metric_value == one.metrics[metric]
        assert found[key].metric_args == {"interval_95": list(one.intervals[metric])}
        assert one.protocol in found[key].dataset_name
    one = found["xm3600_it_p1", "xm3600_p1", "ab12" * 16, "image_to_text/MRR@10", ""]
    assert (one.task_type, one.task_name) == ("image-text-retrieval", "Image–text retrieval")
    assert (one.metric_type, one.metric_name) == ("mrr_at_10", "image → text MRR@10")
    assert one.dataset_split == "test"
    kinds = {(one.task_type, one.metric_type) for one in card.data.eval_results}
    assert ("zero-shot-image-classification", "accuracy") in kinds
    assert ("zero-shot-image-classification", "accuracy_at_5") in kinds


def test_probes_have_names_of_their_own_and_what_is_not_finite_is_left_out():
    shared = {"set": "pets", "protocol": "folder", "data_fingerprint": "0f", "images": 9}
    probes = [
        report.Result(model=OURS, task=task, captions=0, metrics={f"{task}/acc@1": value}, **shared)
        for task, value in (("linear_probe", 0.5), ("knn", 0.25))
    ]
    broken = report.Result(
        model=OURS, task="retrieval", captions=9, metrics={"text_to_image/R@1": math.nan}, **shared
    )
    card = changed(made=report.make_report([*probes, broken], command="c"))
    scores = [(one.metric_name, one.metric_value) for one in card.data.eval_results]
    assert scores == [("linear probe acc@1", 0.5), ("knn acc@1", 0.25)]
    assert card.data.eval_results[0].dataset_split is None
    assert "nan" not in section(card, "Results").lower()


def test_the_tables_have_every_number_of_the_report_with_its_interval(card, made):
    found = tables(card.text)
    for one in report_tables.collect(made):
        rows = found[f"{one.set}: {report_tables.TASKS[one.task]}"][0]
        for place, row in enumerate(one.rows, 1):
            cells = ["" if c is None else f"{c.number(c.value)} {c.interval()}".strip()
                     for c in row.cells]  # fmt: skip
            assert rows[place][-len(cells) :] == cells and row.model in rows[place]
    assert len(found["Compared"][0]) == 4 and len(found["Several seeds"][0]) == 2
    text = section(card, "Results")
    assert f"**{OURS}** is the model of this card; mCLIP (clip-ViT" in text
    assert "is a baseline" in text and "The report is of step" not in text
    assert "How it was made" not in text and "# Evaluation" not in card.text
    for protocol in ("xm3600_p1", "folder", "contrast"):
        assert f"- `{protocol}`: {describe_protocol(protocol)[1][:20]}" in text
    assert "*text → image*" in text and "acc@k" in text and "Contrast probes" in text
    assert "Linear probe" not in text


def test_a_report_of_other_weights_is_said_to_be_one(made):
    text = changed(made=made, step=11000).text
    assert "**The report is of step 12,000, the weights are of step 11,000.**" in text
    with pytest.raises(ConfigError, match="no results of 'this run', but of 'CLIP-Italian', 'mCL"):
        model_card(FACTS, made, [])


def test_every_protocol_is_described():
    for name in (*PROTOCOLS, "folder", "jsonl", "tfds", "contrast", "records_validation"):
        assert "not described" not in describe_protocol(name)[1]
    assert describe_protocol("records_test")[0] == "test"
    assert describe_protocol("mscoco_it_dev")[0] == "validation"
    assert "8,486" in describe_protocol("mscoco_it_dev_unvalidated")[1]
    assert describe_protocol("else")[1].startswith("not described here")


def test_what_is_not_known_is_said_to_be_not_known():
    card = model_card(BARE, None, [])
    for words in (
        "# x\n", "a language that is not recorded", "licence | not stated",
        "**No licence is stated.**", "The base models are not recorded.",
        "The training data are not recorded.", "The hardware of the training is not recorded.",
        "How many steps these weights have seen is not recorded.",
        "The recipe of the training is not recorded here.", "there are no numbers",
        "have not been verified on any set", "The files have not been compared",
    ):  # fmt: skip
        assert words in card.text
    for words in ("evaluation.json", "training_config.py", "demonstration**", "None", "parameters"):
        assert words not in card.text
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    known = changed(FACTS, None, CHECKS).text
    assert "not recorded" not in known and "No licence" not in known
    assert "| parameters, all | 3,345 |" in known and "Hardware: one TPU v3-8." in known
    assert "Hardware: two lines." in changed(hardware="two\n lines").text


def test_the_sample_is_called_a_demonstration():
    assert "**This is a demonstration**" in changed(datasets=("sample",)).text
    assert "This is a demonstration" not in changed(datasets=("sample", "wit")).text


@pytest.mark.parametrize(
    ("given", "license", "name"),
    [
        ("apache-2.0", "apache-2.0", None),
        ("CC-BY-SA-4.0", "cc-by-sa-4.0", None),
        ("Licence of Ours, v. 2", "other", "licence-of-ours-v.-2"),
        ("", None, None),
    ],
)
def test_licences(given, license, name):
    card = changed(license=given)
    assert (card.data.license, card.data.license_name) == (license, name)
    check_metadata(card.data)
    assert given in section(card, "Licence")


def test_only_ids_are_in_the_metadata():
    paths = ("/home/me/vit", "./vit", "https://a.b/c", "a/b/c", "")
    card = changed(base_models=(*paths, "o/m"), datasets=("wit", *paths, "o/d"), language="pt-BR")
    assert (card.data.base_model, card.data.datasets) == (["o/m"], ["o/d"])
    assert card.data.language == "pt" and "italian" not in card.data.tags
    assert "`/home/me/vit`, `./vit`" in card.text and "text in pt-BR" in card.text


def test_a_softmax_model(card):
    assert "Logits are cosines times the similarity scale, 20." in card.text
    assert ".softmax(dim=-1)" in card.text
    assert "logit_bias" not in card.text and "sigmoid" not in card.text


def test_a_sigmoid_model():
    config = dataclasses.replace(CONFIG, loss=LossConfig(loss="sigmoid", mask_duplicates=False))
    card = changed(logit_bias=-9.5, config=config)
    assert "`probabilities = sigmoid(logits_per_image + config.logit_bias)`" in card.text
    assert "| similarity bias | -9.5 |" in card.text
    assert "carries it" in card.text and "It takes a softmax over the labels" in card.text
    code = dict(snippets(card.text))
    for library in ("PyTorch", "Flax"):
        assert "outputs.logits_per_image + model.config.logit_bias" in code[library]
        assert "softmax" not in code[library]
    rows = dict(tables(card.text)["Training"][0])
    assert rows["loss"] == (
        "pairwise sigmoid with a learned bias (SigLIP); pairs that share an image or a caption "
        "count as negatives too"
    )
    assert "bias" in [row[0] for row in tables(card.text)["Training"][2]]


def test_the_recipe_comes_from_the_config(card):
    recipe, phases, rates = tables(card.text)["Training"]
    rows = dict(recipe)
    assert rows["vision tower starts from"] == TOWERS[0]
    assert rows["text tower starts from"] == f"{TOWERS[1]}, revision abc"
    assert rows["sources, and how often each is seen in an epoch"] == "wit × 1, cc × 3"
    assert rows["batch"] == "256 pairs, all compared with all"
    assert rows["planned length"] == "1,000 steps = 256,000 pairs"
    assert rows["optimizer"] == "AdamW; b1 0.9, b2 0.999; no weight decay; gradient norm at most 1"
    assert rows["learning rate"] == "cosine decay to 0 after linear warm-up"
    assert rows["similarity scale"] == "fixed at 20"
    assert rows["image augmentation"] == "random resized crop"
    assert rows["longest caption"] == "64 tokens; longer ones are cut"
    assert (rows["images"], rows["seed"]) == ("224 × 224 pixels", "7")
    assert rows["compute type of the towers"] == "float32"
    assert phases[1:] == [
        ["0 to 399", "projections", "vision tower, text tower"],
        ["400 to 999", "vision tower, projections", "text tower"],
    ]
    assert rates[1:] == [
        ["vision tower", "400", "0.0003", "50", "1,000"],
        ["projections", "0", "0.0003", "50", "1,000"],
    ]
    assert "- Started from `openai/clip-vit-base-patch32`, `dbmdz/bert" in card.text


def test_the_recipe_of_other_runs():
    segments = (Segment("projection", 0, 1e-3, 5, 50), Segment("text", 900, 1e-5, 0, 50))
    config = Config(
        model=ModelConfig(vision_config=TINY_VIT, text_config=TINY_BERT, learn_logit_scale=True),
        data=DataConfig(augment="paper", flip=True),
        optim=OptimConfig(
            optimizer="adabelief", schedule="constant", segments=segments, agc_clip=0.01
        ),
        train=TrainConfig(steps=900),
    )
    card = changed(config=config, base_models=())
    recipe, phases, rates = tables(card.text)["Training"]
    rows = dict(recipe)
    assert "Trained from scratch: both towers started from random weights." in card.text
    assert rows["vision tower starts from"] == "random weights (vit)"
    assert rows["similarity scale"] == "learned, from 20, at most 100"
    assert rows["optimizer"].endswith("adaptive gradient clipping 0.01")
    assert rows["image augmentation"].endswith("equalize; half of the images flipped")
    frozen = "vision tower, text tower"
    assert phases[1:] == [["0 to 899", "projections, similarity scale", frozen]]
    assert [row[0] for row in rates[1:]] == ["projections", "similarity scale"]
    assert rates[1][4] == "never"
    whole = dataclasses.replace(CONFIG, model=ModelConfig(init_from="o/m"))
    rows = dict(tables(changed(config=whole, base_models=()).text)["Training"][0])
    assert rows["text tower starts from"] == "o/m"
    assert rows["similarity scale"] == "fixed at that of the model it starts from"


def test_the_checks_have_a_row_each(card):
    heading = "Are these files the model that was trained?"
    (head, *rows) = tables(card.text)[heading][0]
    assert len(head) == 10
    assert rows == [
        ["transformers 4.57.6, Flax", "sample", "200", "400", "1.2e-07", "3.3e-07", "4.0e-06",
         "200 of 200", "2.1e-02", "199 of 200"],
        ["transformers 5, PyTorch", "sample", "200", "400", "0.0e+00", "2.0e-07", "3.0e-06",
         "200 of 200", "not compared", "not compared"],
    ]  # fmt: skip


def test_the_code_is_python_and_names_the_model(card):
    found = dict(snippets(card.text))
    assert list(found) == ["PyTorch", "Flax", "Pipeline"]
    optional = {"sentence_transformers": True, "onnx": True, "open_clip": True}
    more = changed(**optional)
    found = dict(snippets(more.text))
    assert list(found)[3:] == ["sentence-transformers", "ONNX Runtime", "open_clip"]
    for title, code in found.items():
        compile(code, title, "exec")
        assert '"someone/gatti"' in code and "foto.jpg" in code
    assert 'hypothesis_template="una foto di {}"' in found["Pipeline"]
    assert '["una foto di un gatto", "una foto di un cane"' in found["PyTorch"]
    for tag, file in (("sentence-transformers", "modules.json"), ("onnx", "onnx/text_model.onnx"),
                      ("open_clip", "open_clip_config.json")):  # fmt: skip
        assert tag in more.data.tags and file in more.text
        assert tag not in card.data.tags and file not in card.text
    ((_, command),) = snippets(card.text, "bash")
    flags = commands.parse(Evaluate, shlex.split(command)[2:], "evaluate")
    assert (flags.models, flags.sets) == (("someone/gatti",), ("jsonl:pairs.jsonl",))


def test_code_in_another_language():
    code = dict(snippets(changed(language="es", labels=("gato",)).text))
    assert 'hypothesis_template="{}"' in code["Pipeline"] and '["gato"]' in code["PyTorch"]
    own = changed(language="es", labels=("gato",), hypothesis_template="una foto de {}").text
    assert '["una foto de gato"]' in dict(snippets(own))["PyTorch"]


def test_hostile_names_are_shown_as_text(made, tmp_path):
    made = copy.deepcopy(made)
    for one in made["results"]:
        one["set"] += HOSTILE
        one["protocol"] += HOSTILE
        one["variant"] += HOSTILE
    config = dataclasses.replace(CONFIG, data=DataConfig(sources=(HOSTILE,)))
    check = dataclasses.replace(CHECKS[0], library=HOSTILE, data=HOSTILE)
    card = changed(
        made=made, checks=[check], name=HOSTILE, license=HOSTILE, base_models=(HOSTILE,),
        datasets=(HOSTILE,), hardware=HOSTILE, config=config, language=HOSTILE, labels=(HOSTILE,),
        parameters={HOSTILE: 3}, onnx=True,
    )  # fmt: skip
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert (again.data.to_dict(), again.text) == (card.data.to_dict(), card.text)
    check_metadata(card.data)
    plain = changed(made=example_report.make(images=60, classes=20)[0], checks=CHECKS[:1])
    assert len(card.data.eval_results) == len(plain.data.eval_results)
    page, tidy = shown(card.text), shown(changed(made=made, checks=[check], onnx=True).text)
    for tag in ("<script", "<img", "<em>bold", "<s>", 'javascript:alert(3)"', 'href="http://e'):
        assert tag not in page
    assert page.count("<h1>") == 1 and page.count("<h2>") == tidy.count("<h2>")
    for row in (row for group in tables(card.text).values() for table in group for row in table):
        assert all("\n" not in cell for cell in row)
    wide = [len(set(map(len, table))) for group in tables(card.text).values() for table in group]
    assert set(wide) == {1}, "each row has as many cells as its table"
    assert [title for title, _ in snippets(card.text)] == [
        "PyTorch", "Flax", "Pipeline", "ONNX Runtime",
    ]  # fmt: skip
    for title, code in snippets(card.text):
        compile(code, title, "exec")
    assert yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))["tags"]
