"""Trains a hybrid CLIP: joins config, data, model and loop. `--help` explains every flag."""

import itertools
import logging
import sys
from collections.abc import Sequence

import jax

from clip_italian import flags
from clip_italian.config import Config, ConfigError
from clip_italian.data.text_plan import describe_groups
from clip_italian.evaluation import outcome, retrieval, sets
from clip_italian.model.model import Model
from clip_italian.model.towers import build, describe
from clip_italian.training import distributed, frozen, loop, monitor, parallel, plan, validation
from clip_italian.training.checkpoint import Checkpoints


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = flags.parse(words)
        run = describe(arguments.run)
        model = build(run.model, loss=run.loss.loss)
        if not arguments.dry_run:
            return distributed.run(lambda: train(run, model, words))
        print(plan.describe_run(run, model, describe_groups(run, model, jax.device_count())))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config, model: Model, words: Sequence[str]) -> None:
    """Trains, evaluates, and prints the table and where everything is."""
    from clip_italian.data.opening import cache_features, open_data  # TensorFlow: not for a plan

    layout = parallel.start(config.train, config.eval)
    data = open_data(config, model, sets.open_training_sets, **parallel.host_part(config, layout))
    image, text = map(layout.compile_rows, (model.encode_image, model.encode_text))
    evaluated = retrieval.evaluated_sets(data.sets, config.eval)
    score = retrieval.SetEvaluator(evaluated, image, text, classify=config.eval.zero_shot)
    loss = validation.make_loss_evaluator(config, layout, model.apply_pairs, data.captioned)
    distributed.meet("the opening of the data")
    checkpoints = Checkpoints(config, data.fingerprint)
    state = loop.start_state(config, layout, model.init, model.shapes, checkpoints)
    distributed.write(f"{config.train.workdir}/config.py", flags.dump(config))
    data = frozen.with_features(config, data, cache_features, model, layout, state)
    state, _ = loop.train(
        config,
        state,
        parallel=layout,
        apply_fn=model.apply_pairs,
        batches_from=data.batches_from,
        evaluate=lambda params: itertools.chain(score(params), loss(params)),
        checkpoints=checkpoints,
        monitor=monitor.Monitor(config.train, first_step=int(state.step), run=config),
        costs=model,
        examples=data.training,
    )
    if jax.process_index() == 0:
        found = outcome.write_outcome(
            config.train.workdir,
            score.encoded,  # a run ends with an evaluation
            metrics_lines=monitor.read_metrics(config.train.workdir),
            phases=[(phase.start, ", ".join(phase.moving)) for phase in loop.plan(config)[1]],
            data_fingerprint=data.fingerprint,
            command=" ".join(["python run_hybrid_clip.py", *words]),
            step=int(state.step),
            classify=config.eval.zero_shot,
        )
        print(found)


if __name__ == "__main__":
    sys.exit(main())
