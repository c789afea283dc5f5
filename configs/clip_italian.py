"""The paper's recipe in one run: frozen towers first, then all weights (arXiv 2108.08688).

Command:  python run_hybrid_clip.py --config configs/clip_italian.py --workdir gs://bucket/run
Hardware: one TPU v3-8 or larger
Time:     not yet run
Score:    not yet run; the 2021 model reached MRR@1 0.3797, MRR@5 0.5039, MRR@10 0.5204 on
          MSCOCO-IT (8,486 captions, 1,696 images), as published by its authors

Needs the four sources as records in `data/` (docs/data.md). What differs from 2021: the loss
runs over the global batch and not per device; both stages are one run, so the projections keep
their moments at the thaw; captions that share an image are not negatives; images are not flipped,
because captions say left and right (`--flip` flips them as in 2021).
"""

from clip_italian.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Segment,
    TrainConfig,
)

BATCH = 1024
EPOCH = 1_400_000 * 95 // 100 // BATCH  # steps; about 1.4 M pairs, 5% of them for validation
THAW = 26 * EPOCH  # the first stage was planned for 50 epochs and left after 26
LAST = 15 * EPOCH

config = Config(
    model=ModelConfig(
        vision_tower="openai/clip-vit-base-patch32",
        text_tower="dbmdz/bert-base-italian-xxl-uncased",
        projection_dim=512,
        logit_scale=20.0,
        learn_logit_scale=False,
    ),
    data=DataConfig(sources=("wit", "mscoco_it", "cc", "il_post"), max_length=96, augment="paper"),
    optim=OptimConfig(
        optimizer="adabelief",
        agc_clip=0.01,
        schedule="cosine",
        segments=(
            Segment("projection", 0, 5e-5, warmup_steps=5 * EPOCH, decay_steps=50 * EPOCH),
            Segment("projection", THAW, 1e-5, warmup_steps=LAST // 10, decay_steps=LAST),
            Segment("vision", THAW, 1e-5, warmup_steps=LAST // 10, decay_steps=LAST),
            Segment("text", THAW, 1e-5, warmup_steps=LAST // 10, decay_steps=LAST),
        ),
    ),
    train=TrainConfig(
        workdir="runs/clip_italian", steps=THAW + LAST, batch_size=BATCH, save_every=EPOCH
    ),
    eval=EvalConfig(eval_every=EPOCH, best_metric="text_to_image/MRR@10"),
)
