"""Trains a hybrid CLIP: joins config, data, model and loop. `--help` explains every flag."""

import itertools
import logging
import sys
from collections.abc import Sequence

import jax
from etils import epath

from clip_italian import flags
from clip_italian.config import Config, ConfigError
from clip_italian.data.text_plan import describe_groups
from clip_italian.evaluation import outcome, retrieval, sets
from clip_italian.model.model import Model
from clip_italian.model.towers import build, describe
from clip_italian.training import checkpoint, frozen, loop, monitor, parallel, plan, validation


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = flags.parse(words)
        run = describe(arguments.run)
        model = build(run.model, loss=run.loss.loss)
        if arguments.dry_run:
            print(plan.describe_run(run, model, describe_groups(run, model, jax.device_count())))
        else:
            train(run, model, command=" ".join(["python run_hybrid_clip.py", *words]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config, model: Model, command: str) -> None:
    """Trains, evaluates, and prints the table and where everything is."""
    from clip_italian.data.opening import cache_features, open_data  # TensorFlow: not for a plan

    layout = parallel.start(config.train, config.eval)
    workdir, classify = config.train.workdir, config.eval.zero_shot
    data = open_data(config, model, sets.open_training_sets, shares=loop.shares(config, layout))
    image, text = map(layout.compile_rows, (model.encode_image, model.encode_text))
    evaluated = retrieval.evaluated_sets(data.sets, config.eval)
    score = retrieval.make_evaluator(evaluated, image, text, classify=classify)
    loss = validation.make_loss_evaluator(config, layout, model.apply_pairs, data.captioned)
    checkpoints = checkpoint.Checkpoints(config, data.fingerprint)
    state = loop.start_state(config, layout, model.init, model.shapes, checkpoints)
    (epath.Path(workdir) / "config.py").write_text(flags.dump(config))
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
    print(
        outcome.write_outcome(
            workdir,
            [(one, *retrieval.encode_set(one, state.evaluated, image, text)) for one in evaluated],
            metrics_lines=monitor.read_metrics(workdir),
            phases=[(phase.start, ", ".join(phase.moving)) for phase in loop.plan(config)[1]],
            data_fingerprint=data.fingerprint,
            command=command,
            step=int(state.step),
            classify=classify,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
