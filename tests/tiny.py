"""Configurations of towers small enough for a test, for `vision_config` and `text_config`."""

_SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TINY_VIT = {"model_type": "vit", "image_size": 32, "patch_size": 16, **_SIZE}
TINY_CLIP = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, **_SIZE}
TINY_BERT = {"model_type": "bert", "vocab_size": 99, "max_position_embeddings": 24, **_SIZE}
# RoBERTa's first position is pad_token_id + 1 = 2, so 26 rows hold 24 tokens.
TINY_ROBERTA = {**TINY_BERT, "model_type": "roberta", "max_position_embeddings": 26}
TINY_XLM_ROBERTA = {**TINY_ROBERTA, "model_type": "xlm-roberta"}
TINY_DINOV2 = {
    "model_type": "dinov2", "image_size": 32, "patch_size": 16, "mlp_ratio": 2,
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
TINY_BEIT = {
    "model_type": "beit", "image_size": 32, "patch_size": 16, "use_relative_position_bias": True,
    **_SIZE,
}  # fmt: skip
TINY_DISTILBERT = {
    "model_type": "distilbert", "vocab_size": 99, "max_position_embeddings": 24,
    "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64,
}  # fmt: skip
# Tokens are narrower than the layers, as in the small and base models of its paper.
TINY_ELECTRA = {**TINY_BERT, "model_type": "electra", "embedding_size": 16}
