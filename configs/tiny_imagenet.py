"""Real photos from scratch on a laptop: Tiny-ImageNet at 32 pixels with Italian class names.

Command:  python benchmarks/real_data.py --real_data FOLDER --data_dir data
          python run_hybrid_clip.py --config configs/tiny_imagenet.py
Hardware: 2 CPU cores
Time:     20 minutes, with other work on the same cores (17 at the rate of free ones)
Score:    zero-shot acc@1 6.9%, acc@5 21.5% on 10,000 test photos (docs/measured.md)
"""

from clip_italian.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)

SOURCE = "tiny_imagenet"
# Wider weights than N(0, 0.02): these towers are narrow and see few epochs.
VISION = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "hidden_act": "relu",
    "initializer_range": 0.07,
}
TEXT = {
    "model_type": "bert",
    "vocab_size": 956,
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "hidden_act": "relu",
    "max_position_embeddings": 16,
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
    data=DataConfig(sources=(SOURCE,), max_length=12, flip=True, reader_threads=2),
    optim=OptimConfig(
        learning_rate=1.5e-3, warmup_steps=125, weight_decay=0.05, clip_norm=1.0, b2=0.98
    ),
    train=TrainConfig(
        workdir=f"runs/{SOURCE}", steps=2550, batch_size=128, save_every=850, log_every=20
    ),
    eval=EvalConfig(
        eval_every=2550, eval_batch_size=500, best_metric="zero_shot/acc@1", zero_shot=True
    ),
)
