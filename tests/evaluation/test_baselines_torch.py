"""Adapters against their own libraries, which embed one by one: tiny models in the true formats.

Run where the torch extra is installed, with `-m torch`.
"""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.evaluation.baselines import open_baseline

pytestmark = pytest.mark.torch

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE |= {"intermediate_size": 64, "attention_dropout": 0.5}  # which evaluation must not apply
VISION = {**SIZE, "image_size": 32, "patch_size": 16}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "gatto", "nero", "cane", "dorme", "e"]
LENGTH = 12  # tokens that every text tower takes
TEXTS = [
    "un gatto",
    "un cane nero dorme",
    "gatto",
    "un gatto nero e un cane nero e un gatto e un cane e un gatto nero",  # to be cut
    "Un Gatto",
    "un cane",
    "cane",
]


@pytest.fixture(scope="module")
def files():
    """Encoded pictures of several sizes, formats and modes."""
    rng = np.random.default_rng(0)
    found = []
    for number, (kind, mode, size) in enumerate(
        [
            ("JPEG", "RGB", (40, 56)),
            ("PNG", "RGBA", (32, 32)),
            ("PNG", "L", (64, 33)),
            ("PNG", "P", (50, 40)),
            ("JPEG", "CMYK", (36, 90)),
            ("WEBP", "RGB", (48, 48)),
            ("JPEG", "RGB", (200, 100)),
        ]
    ):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
        if mode == "RGBA":
            picture.putalpha(100 + number)
        file = io.BytesIO()
        picture.save(file, kind)
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def pictures(files):
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in files]


def fast_tokenizer(cls=None, **fields):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    special |= {"bos": "[CLS]", "eos": "[SEP]"}
    return (cls or PreTrainedTokenizerFast)(
        tokenizer_object=words,
        **{f"{name}_token": word for name, word in special.items()},
        **{"model_max_length": LENGTH, **fields},
    )


def clip_tokenizer(**fields):
    return fast_tokenizer(model_input_names=["input_ids", "attention_mask"], **fields)


def randomise(model, seed=0):
    """Weights so large that texts and images are told apart, biases included."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.25)
    return model.eval()


def save_clip(folder, seed=0, mean=(0.1, 0.2, 0.3)):
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPVisionConfig,
    )

    text = CLIPTextConfig(
        vocab_size=20, max_position_embeddings=LENGTH, eos_token_id=3, pad_token_id=0, **SIZE
    )
    parts = {"text_config": text, "vision_config": CLIPVisionConfig(**VISION)}
    parts = {name: part.to_dict() for name, part in parts.items()}
    randomise(CLIPModel(CLIPConfig(**parts, projection_dim=16)), seed).save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=mean, image_std=(0.4, 0.5, 0.6)
    )
    CLIPProcessor(images, clip_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="module")
def pair(clip, tmp_path_factory):
    """Folders laid out as clip-ViT-B-32 and clip-ViT-B-32-multilingual-v1 are on the hub."""
    import torch
    from safetensors.torch import save_file
    from transformers import DistilBertConfig, DistilBertModel, DistilBertTokenizerFast

    folder = tmp_path_factory.mktemp("pair")
    images, texts = folder / "images", folder / "texts"
    shutil.copytree(clip, images / "0_CLIPModel")
    write_json(images / "modules.json", modules(("0_CLIPModel", "CLIPModel")))
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    texts.mkdir()
    write_json(texts / "modules.json", modules(*kinds))
    config = DistilBertConfig(
        vocab_size=20, dim=24, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=32
    )
    randomise(DistilBertModel(config), 1).save_pretrained(texts)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    DistilBertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(texts)
    write_json(texts / "sentence_bert_config.json", {"max_seq_length": LENGTH})
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    pooling |= {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False}
    write_json(texts / "1_Pooling" / "config.json", pooling)
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 24, "out_features": 16, "bias": False, "activation_function": identity}
    write_json(texts / "2_Dense" / "config.json", dense)
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(2))
    save_file({"linear.weight": weight}, texts / "2_Dense" / "model.safetensors")
    return images, texts


def modules(*kinds):
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def embed(encoder, files):
    asked = []

    def read(numbers):
        asked.extend(numbers.tolist())
        return [files[number] for number in numbers]

    images = encoder.encode_images(read, [f"image {i}" for i in range(len(files))])
    assert asked == list(range(len(files)))
    texts = encoder.encode_texts(TEXTS)
    assert images.dtype == texts.dtype == np.float32
    return images, texts


def assert_equal(embeds, expected):
    """Both sides, against [images, texts] of the library, which need not have length 1."""
    for own, theirs in zip(embeds, expected, strict=True):
        theirs = np.concatenate([np.atleast_2d(np.asarray(one, np.float64)) for one in theirs])
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        differences = np.abs(theirs[:, None] - theirs[None]).max(axis=2)
        assert np.median(differences) > 0.003, "rows can be told apart"
        print("largest difference:", np.abs(own - theirs).max())
        np.testing.assert_allclose(own, theirs, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_sentence_transformers_pair(pair, files, pictures, batch_size):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, DistilBertModel

    images, texts = pair
    encoder = open_baseline(f"st:{images}+{texts}", batch_size=batch_size)
    assert encoder.name == "images+texts"
    clip = CLIPModel.from_pretrained(images / "0_CLIPModel")
    processor = CLIPProcessor.from_pretrained(images / "0_CLIPModel", use_fast=False)
    bert, words = DistilBertModel.from_pretrained(texts), AutoTokenizer.from_pretrained(texts)
    dense = load_file(texts / "2_Dense" / "model.safetensors")["linear.weight"]

    def embed_text(text):  # one text alone has no padding
        tokens = words(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        return dense @ bert(**tokens).last_hidden_state[0].mean(0)

    with torch.no_grad():
        expected = [
            [clip.get_image_features(**processor(images=p, return_tensors="pt")) for p in pictures],
            [embed_text(text) for text in TEXTS],
        ]
    assert_equal(embed(encoder, files), expected)


def test_sentence_transformers_own_encode(pair, files, pictures):
    from sentence_transformers import SentenceTransformer

    images, texts = (SentenceTransformer(str(folder), device="cpu") for folder in pair)
    expected = [images.encode(pictures), texts.encode(TEXTS)]
    assert_equal(embed(open_baseline(f"st:{pair[0]}+{pair[1]}"), files), expected)
    expected = [images.encode(pictures), images.encode(TEXTS)]
    assert_equal(embed(open_baseline(f"st:{pair[0]}"), files), expected)


def test_mclip_is_the_pair_of_that_name(pair, files, monkeypatch):
    import sentence_transformers
    import sentence_transformers.util as util

    images, texts = map(str, pair)
    names = {
        "sentence-transformers/clip-ViT-B-32": images,
        "sentence-transformers/clip-ViT-B-32-multilingual-v1": texts,
    }
    load, find = sentence_transformers.SentenceTransformer, util.load_file_path
    monkeypatch.setattr(
        sentence_transformers,
        "SentenceTransformer",
        lambda name, **kw: load(names.get(name, name), **kw),
    )
    monkeypatch.setattr(
        util, "load_file_path", lambda name, *args, **kw: find(names.get(name, name), *args, **kw)
    )
    encoder, same = open_baseline("mclip"), open_baseline(f"st:{images}+{texts}")
    assert (encoder.name, encoder.fingerprint) == ("mclip", same.fingerprint)
    for own, other in zip(embed(encoder, files), embed(same, files), strict=True):
        np.testing.assert_array_equal(own, other)


def expected_of_transformers(folder, pictures, texts=TEXTS, **padding):
    """`image_embeds` and `text_embeds` of the whole forward pass, a pair at a time."""
    import torch
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    options = {"truncation": True, "max_length": LENGTH, "return_tensors": "pt", **padding}
    with torch.no_grad():
        found = [
            model(**processor(images=picture, text=[text], **options))
            for picture, text in zip(pictures, texts, strict=True)
        ]
    return [[one.image_embeds for one in found], [one.text_embeds for one in found]]


@pytest.mark.parametrize("batch_size", [2, 64])
def test_clip_of_transformers(clip, files, pictures, batch_size):
    encoder = open_baseline(f"hf:{clip}", batch_size=batch_size)
    assert encoder.name == "tiny-clip"
    assert_equal(embed(encoder, files), expected_of_transformers(clip, pictures))


def test_a_tokenizer_may_take_less_than_its_tower(clip, tmp_path, files, pictures):
    folder = tmp_path / "short"
    shutil.copytree(clip, folder)
    clip_tokenizer(model_max_length=7).save_pretrained(folder)
    expected = expected_of_transformers(folder, pictures, max_length=7)
    assert_equal(embed(open_baseline(f"hf:{folder}"), files), expected)


def train_pieces(folder, texts):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in texts] * 5),
        model_prefix=str(folder / "spiece"), vocab_size=30, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", hard_vocab_limit=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    from transformers import (
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
        SiglipTextConfig,
        SiglipTokenizer,
        SiglipVisionConfig,
    )

    folder = tmp_path_factory.mktemp("siglip")
    train_pieces(folder, TEXTS)
    parts = [
        SiglipTextConfig(vocab_size=40, max_position_embeddings=LENGTH, projection_size=32, **SIZE),
        SiglipVisionConfig(**VISION),
    ]
    parts = dict(zip(("text_config", "vision_config"), (p.to_dict() for p in parts), strict=True))
    randomise(SiglipModel(SiglipConfig(**parts)), 3).save_pretrained(folder)
    tokenizer = SiglipTokenizer(
        str(folder / "spiece.model"), pad_token="<pad>", model_max_length=LENGTH,
        model_input_names=["input_ids"],
    )  # fmt: skip
    images = SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.3, 0.4, 0.5])
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_siglip_of_transformers(siglip, files, pictures):
    embeds = embed(open_baseline(f"hf:{siglip}", batch_size=3), files)
    expected = expected_of_transformers(siglip, pictures, padding="max_length")
    assert_equal(embeds, expected)
    unpadded = expected_of_transformers(siglip, pictures)[1]
    assert np.abs(np.concatenate(unpadded) - embeds[1]).max() > 0.01, "padding matters"


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    from transformers import (
        GemmaTokenizerFast,
        Siglip2Config,
        Siglip2ImageProcessor,
        Siglip2Model,
        Siglip2Processor,
        Siglip2TextConfig,
        Siglip2VisionConfig,
    )

    folder = tmp_path_factory.mktemp("siglip2")
    parts = [
        Siglip2TextConfig(
            vocab_size=20, max_position_embeddings=LENGTH, projection_size=32, **SIZE
        ),
        Siglip2VisionConfig(**SIZE, patch_size=16, num_patches=16),
    ]
    parts = dict(zip(("text_config", "vision_config"), (p.to_dict() for p in parts), strict=True))
    randomise(Siglip2Model(Siglip2Config(**parts)), 4).save_pretrained(folder)
    tokenizer = fast_tokenizer(
        GemmaTokenizerFast, add_bos_token=False, add_eos_token=True,
        model_input_names=["input_ids"],
    )  # fmt: skip
    images = Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    Siglip2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def test_siglip_2_reads_lower_case(siglip2, files, pictures):
    embeds = embed(open_baseline(f"hf:{siglip2}", batch_size=3), files)
    lower = [text.lower() for text in TEXTS]
    assert lower != TEXTS
    expected = expected_of_transformers(siglip2, pictures, lower, padding="max_length")
    assert_equal(embeds, expected)


def save_dual(folder, text="bert", **tokens):
    from transformers import (
        BertConfig,
        RobertaConfig,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
        VisionTextDualEncoderProcessor,
        ViTConfig,
        ViTImageProcessor,
    )

    kind, positions = {"bert": (BertConfig, LENGTH), "roberta": (RobertaConfig, LENGTH + 1)}[text]
    towers = [
        ViTConfig(**VISION),
        kind(vocab_size=20, max_position_embeddings=positions, pad_token_id=0, **SIZE),
    ]
    config = VisionTextDualEncoderConfig.from_vision_text_configs(*towers, projection_dim=16)
    randomise(VisionTextDualEncoderModel(config), 5).save_pretrained(folder)
    images = ViTImageProcessor(size={"height": 32, "width": 32})
    VisionTextDualEncoderProcessor(images, fast_tokenizer(**tokens)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("text", ["bert", "roberta"])
def test_vision_text_dual_encoder(tmp_path, files, pictures, text):
    # As many exports do, this tokenizer sets no limit: the tower's own must be found.
    folder = save_dual(tmp_path / "dual", text, model_max_length=int(1e30))
    expected = expected_of_transformers(folder, pictures)
    assert_equal(embed(open_baseline(f"hf:{folder}", batch_size=3), files), expected)


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
        "patch_dropout": 0.5,
    },
    "text_cfg": {
        "context_length": LENGTH,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip") / "tiny"
    preprocess = {"mean": [0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocess}
    write_json(folder / "open_clip_config.json", config)
    model = randomise(open_clip.CLIP(**OPEN_CLIP), 6)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def expected_of_open_clip(name, weights, pictures):
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(name, weights)
    model.eval()
    tokenizer = open_clip.get_tokenizer(name)
    with torch.no_grad():
        return [
            [model.encode_image(preprocess(picture)[None]) for picture in pictures],
            [model.encode_text(tokenizer([text])) for text in TEXTS],
        ]


def test_open_clip_folder(open_clip_folder, files, pictures):
    name = f"local-dir:{open_clip_folder}"
    encoder = open_baseline(f"open_clip:{name}", batch_size=3)
    assert encoder.name == "tiny"
    assert_equal(embed(encoder, files), expected_of_open_clip(name, None, pictures))


def test_open_clip_architecture_and_weights(open_clip_folder, files, pictures, tmp_path):
    import open_clip

    write_json(tmp_path / "tiny-arch.json", OPEN_CLIP)
    open_clip.add_model_config(tmp_path / "tiny-arch.json")
    weights = str(open_clip_folder / "open_clip_model.safetensors")
    encoder = open_baseline(f"open_clip:tiny-arch/{weights}", batch_size=3)
    assert_equal(embed(encoder, files), expected_of_open_clip("tiny-arch", weights, pictures))


def test_the_fingerprint_is_of_the_model_not_of_its_place(clip, pair, open_clip_folder, tmp_path):
    images, texts = pair
    specs = [
        ("hf:{}", [clip]),
        ("st:{}", [images]),
        ("st:{}+{}", [images, texts]),
        ("open_clip:local-dir:{}", [open_clip_folder]),
    ]
    found = []
    for number, (spec, folders) in enumerate(specs):
        copies = [tmp_path / f"{number}-{i}" for i in range(len(folders))]
        for folder, copy in zip(folders, copies, strict=True):
            shutil.copytree(folder, copy)
        encoder = open_baseline(spec.format(*folders), batch_size=5)
        encoder.encode_texts(TEXTS)
        moved = open_baseline(spec.format(*copies))
        assert encoder.fingerprint == moved.fingerprint
        found.append(moved.fingerprint)
    assert len(set(found)) == 4


def change_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def swap_words(path):
    path.write_text(path.read_text().replace("gatto", "other").replace("cane", "gatto"))


CHANGES = {
    "weights": lambda folder: save_clip(folder, seed=1),
    "pixels": lambda folder: change_json(folder / "preprocessor_config.json", image_mean=[0] * 3),
    "padding": lambda folder: clip_tokenizer(padding_side="left").save_pretrained(folder),
    "limit": lambda folder: clip_tokenizer(model_max_length=9).save_pretrained(folder),
    "words": lambda folder: swap_words(folder / "tokenizer.json"),
    "activation": lambda folder: change_json(
        folder / "config.json",
        text_config={
            **json.loads((folder / "config.json").read_text())["text_config"], "hidden_act": "relu"
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_sees(clip, tmp_path, change):
    folder = tmp_path / "changed"
    shutil.copytree(clip, folder)
    CHANGES[change](folder)
    assert open_baseline(f"hf:{folder}").fingerprint != open_baseline(f"hf:{clip}").fingerprint


def test_the_fingerprint_sees_the_pieces_of_a_slow_tokenizer(siglip, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(siglip, folder)
    train_pieces(folder, ["una foto di una barca", "il mare calmo"])
    assert open_baseline(f"hf:{folder}").fingerprint != open_baseline(f"hf:{siglip}").fingerprint


def test_the_fingerprint_sees_the_preprocessing_of_open_clip(open_clip_folder, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(open_clip_folder, folder)
    change_json(folder / "open_clip_config.json", preprocess_cfg={"mean": [0.2, 0.3, 0.5]})
    one, two = (open_baseline(f"open_clip:local-dir:{path}") for path in (open_clip_folder, folder))
    assert one.fingerprint != two.fingerprint


def test_the_fingerprint_sees_the_pooling(pair, tmp_path):
    images, texts = pair
    other = tmp_path / "texts"
    shutil.copytree(texts, other)
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    change_json(other / "1_Pooling" / "config.json", **pooling)
    one, two = (open_baseline(f"st:{images}+{folder}") for folder in (texts, other))
    assert one.fingerprint != two.fingerprint


def test_a_picture_that_cannot_be_decoded_is_named(clip, files):
    encoder = open_baseline(f"hf:{clip}", batch_size=2)
    data = [*files[:3], files[3][: len(files[3]) // 2]]
    with pytest.raises(ConfigError, match="image 'd' cannot be decoded"):
        encoder.encode_images(lambda numbers: [data[n] for n in numbers], list("abcd"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:no/such-model", "cannot be loaded .*OSError"),
        ("st:no/such-model", "^st: .no/such-model' has no modules.json, or cannot be reached"),
        ("st:{clip}", "has no modules.json"),
        ("st:a+b+c", "^st: .* names 3 models"),
        ("hf:{texts}", "^hf: .* is a DistilBertModel, not a dual encoder"),
        ("open_clip:ViT-B-32", "^open_clip: .* names no weights; give ViT-B-32/WEIGHTS"),
        ("open_clip:ViT-B-32/nobody", "cannot be loaded .*'nobody' is not a known tag"),
        ("open_clip:ViT-Z-99/laion2b", "cannot be loaded .*ViT-Z-99"),
        ("open_clip:local-dir:{clip}", "cannot be loaded .*open_clip_config.json"),
        ("hf:{clip} --device", "cannot be loaded"),
    ],
)
def test_what_cannot_be_loaded(clip, pair, spec, message):
    with pytest.raises(ConfigError, match=message):
        open_baseline(spec.format(clip=clip, texts=pair[1]))


def test_an_unknown_device_is_refused(clip):
    with pytest.raises(ConfigError, match="cannot be loaded .*abacus"):
        open_baseline(f"hf:{clip}", device="abacus")


def test_weights_that_are_missing_are_not_drawn(tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_dual(tmp_path / "dual") / "model.safetensors"
    state = load_file(path)
    lost = [name for name in state if name.startswith("text_model.pooler.")]
    assert lost
    for name in lost:
        del state[name]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks the weights text_model\.pooler\.dense\.bias"):
        open_baseline(f"hf:{tmp_path / 'dual'}")


def test_a_model_without_its_tokenizer_or_preprocessing(clip, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(clip, folder, ignore=shutil.ignore_patterns("*token*", "preprocessor*"))
    with pytest.raises(ConfigError, match="cannot be loaded|has no tokenizer"):
        open_baseline(f"hf:{folder}")


def test_images_and_texts_of_two_widths(pair, tmp_path):
    images, texts = pair
    shutil.copytree(texts, tmp_path / "wide")
    write_json(
        tmp_path / "wide" / "modules.json", modules(("", "Transformer"), ("1_Pooling", "Pooling"))
    )
    with pytest.raises(ConfigError, match="images have 16 dimensions, texts 24"):
        open_baseline(f"st:{images}+{tmp_path / 'wide'}")


class Trap:
    """A pickle that would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("library", ["hf", "st", "open_clip"])
def test_no_pickle_is_run(clip, pair, open_clip_folder, tmp_path, library):
    import torch

    source, spec, weights = {
        "hf": (clip, "hf:{}", "model.safetensors"),
        "st": (pair[1], "st:{}", "2_Dense/model.safetensors"),
        "open_clip": (open_clip_folder, "open_clip:local-dir:{}", "open_clip_model.safetensors"),
    }[library]
    folder, trace = tmp_path / "trap", tmp_path / "trace"
    shutil.copytree(source, folder)
    (folder / weights).unlink()
    name = "open_clip_pytorch_model.bin" if library == "open_clip" else "pytorch_model.bin"
    torch.save({"linear.weight": Trap(trace)}, (folder / weights).parent / name)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_baseline(spec.format(folder))
    assert not trace.exists()


@pytest.mark.parametrize(
    "kind", ["trap.Trap", "trap.Pooling", "sentence_transformers.models.Router"]
)
def test_no_module_of_a_repository_is_run(pair, tmp_path, kind):
    folder, trace = tmp_path / "trap", tmp_path / "trace"
    shutil.copytree(pair[1], folder)
    listed = modules(("", "Transformer"))
    listed[0]["type"] = kind
    write_json(folder / "modules.json", listed)
    (folder / "trap.py").write_text(f"open({str(trace)!r}, 'w')\nclass Trap: pass\n")
    with pytest.raises(ConfigError, match=f"consists of {kind}, which is not allowed"):
        open_baseline(f"st:{folder}")
    assert not trace.exists()


def test_no_code_of_an_open_clip_folder_is_asked_for(open_clip_folder, tmp_path):
    folder = tmp_path / "trap"
    shutil.copytree(open_clip_folder, folder)
    text = {**OPEN_CLIP["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}
    change_json(folder / "open_clip_config.json", model_cfg={**OPEN_CLIP, "text_cfg": text})
    with pytest.raises(ConfigError, match="asks to run code of its own"):
        open_baseline(f"open_clip:local-dir:{folder}")


def test_weights_of_another_activation_are_refused(open_clip_folder, monkeypatch):
    import warnings

    import open_clip

    def create(*args, **kwargs):
        warnings.warn("QuickGELU mismatch between final model config and tag", stacklevel=2)

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match="cannot be loaded .*QuickGELU mismatch"):
            open_baseline("open_clip:ViT-B-32/openai")
