"""What it costs that a step can leave the state as it was: the same step with and without.

    python -m benchmarks.bad_steps
    python -m benchmarks.bad_steps --size base --batch 8 --rounds 3

All moving, AdamW. Without, the new state is taken whatever the gradient is. Both take turns on the
same processors; memory is what the compiler says. Prints a table and one line of JSON; exits with 1
if the losses differ.
"""

from typing import Any

from benchmarks import measure


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", default="middle", help="base, middle or tiny (workload.SIZES)")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns, after one of warm-up")
    parser.add_argument("--ema_decay", type=float, default=0.0, help="0: no average is kept")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    measure.hide_torchvision()
    measure.finish(arguments, {"results": compare(arguments)})


def compare(arguments: Any) -> dict[str, dict[str, float]]:
    """Median seconds of a step and bytes of its program, with and without."""
    from unittest import mock

    from benchmarks import workload
    from clip_italian.training import step

    config = workload.make_config(arguments.size, arguments.batch, ema_decay=arguments.ema_decay)
    model = workload.build(config)
    batch = workload.make_pairs(model, arguments.batch).batch
    contestants, bytes_of, losses = {}, {}, {}
    for name in ("with", "without"):
        ours = workload.Ours(config, model.init(0))
        choose = step._where if name == "with" else (lambda sound, new, old: new)
        with mock.patch.object(step, "_where", choose):
            compiled = ours.lower(batch).compile()
        bytes_of[name] = compiled.memory_analysis().temp_size_in_bytes
        contestants[name] = ours.stepper(batch, compiled)
        losses[name] = contestants[name]()
    measure.check_equal(losses, 1e-6)
    turns = measure.in_turns(contestants, arguments.rounds)
    results = {
        name: {
            "wall_s": measure.median(own),
            "fastest_s": min(turn.wall_s for turn in own),
            "cpu_s": measure.median(own, "cpu_s"),
            "temporary_mb": bytes_of[name] / 1e6,
        }
        for name, own in turns.items()
    }
    headings = ("step", "s", "fastest, s", "processor s", "temporary, MB")
    measure.show(headings, [[name, *found.values()] for name, found in results.items()])
    return results


if __name__ == "__main__":
    main()
