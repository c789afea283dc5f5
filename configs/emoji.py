"""Drawings across hands: trained on Noto emoji with Italian names, tested on Twemoji.

Command:  python benchmarks/real_data.py --real_data FOLDER --data_dir data
          python run_hybrid_clip.py --config configs/emoji.py
Hardware: 2 CPU cores
Time:     9 minutes, with other work on the same cores
Score:    text→image R@10 12.1%, R@1 2.0% over 1,909 drawings (docs/measured.md)
"""

from clip_italian.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

SOURCE = "emoji"
VISION = {
    "model_type": "vit",
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "hidden_act": "relu",
    "initializer_range": 0.07,
}
TEXT = {
    "model_type": "bert",
    "vocab_size": 2000,
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "hidden_act": "relu",
    "max_position_embeddings": 32,
    "initializer_range": 0.12,
}

config = Config(
    model=ModelConfig(
        vision_config=VISION,
        text_config=TEXT,
        tokenizer=f"data/{SOURCE}/tokenizer",
        projection_dim=128,
        logit_scale=7.0,
        learn_logit_scale=True,
    ),
    data=DataConfig(sources=(SOURCE,), max_length=24, augment="paper", reader_threads=2),
    optim=OptimConfig(
        learning_rate=1e-3, warmup_steps=60, weight_decay=0.1, clip_norm=1.0, b2=0.98
    ),
    train=TrainConfig(workdir=f"runs/{SOURCE}", steps=900, batch_size=128, save_every=450),
    eval=EvalConfig(eval_every=300, eval_batch_size=250, best_metric="text_to_image/R@10"),
)
