"""Parameter groups, their learning rates, the phases that follow from them, and the optimizer.

A *group* (vision tower, text tower, projections, logit scale and bias) has learning-rate
*segments*; before its first one it is frozen. Between two changes the set of moving groups is
static: a *phase*. Each phase compiles a step that differentiates its moving groups only, and the
optimizer state is `{group: ...}` for exactly these, so a frozen group costs a forward pass, no
gradient and no moments.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from clip_italian.config import GROUPS, ConfigError, OptimConfig, Segment

Params = Mapping[str, Any]
Grouped = dict[str, dict[str, Any]]  # {group: {"vision_model/.../kernel": array}}
Schedule = Callable[[Any], Any]

FIXED = "fixed"  # parameters that never move: a similarity scale that is not learned

# Parameter path → group. Each parameter must match exactly one rule.
GROUP_RULES = (
    (r"vision_model/.*", "vision"),
    (r"text_model/.*", "text"),
    (r"(visual|text)_projection/.*", "projection"),
    (r"logit_(scale|bias)", "logit"),
)
# Parameter path → decayed by AdamW or not. Each parameter must match exactly one rule.
DECAY_RULES = (
    (r".*/(kernel|embedding)", True),
    (r"(.*/)?(bias|scale|logit_scale|logit_bias|[a-z]+_token|class_embedding)", False),
    (r".*/(position_embeddings|relative_position_bias_table|lambda_?[12])", False),
)
# Path inside a tower → how far up it lies. Each parameter must match exactly one rule.
_LAYERS = r"(?:.*/)?layers?/(\d+)/.*"
LAYER_RULES = (
    (r"(.*/)?(embeddings|embeddings_project|pre_layrnorm)/.*", "bottom"),
    (_LAYERS, "layer"),
    (r"(.*/)?(layernorm|post_layernorm|pooler)/.*|encoder/relative_position_bias/.*", "top"),
)


def match_one(rules: tuple[tuple[str, Any], ...], path: str, what: str) -> Any:
    """The value of the one rule that matches the whole path.

    Raises:
      ConfigError: no rule matches, or more than one.
    """
    found = [value for pattern, value in rules if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ConfigError(
            f"parameter {path!r} matches {len(found)} {what} rules, must match exactly one"
        )
    return found[0]


def group_of(path: str, *, learn_logit_scale: bool) -> str:
    """The group of a parameter, by its slash-separated path."""
    if path == "logit_scale" and not learn_logit_scale:
        return FIXED
    return match_one(GROUP_RULES, path, "group")


def split(params: Params, *, learn_logit_scale: bool) -> Grouped:
    """Parameter tree → `{group: {path: array}}`. `join` is its inverse."""
    grouped: Grouped = {}
    for path, value in traverse_util.flatten_dict(dict(params), sep="/").items():
        group = group_of(path, learn_logit_scale=learn_logit_scale)
        grouped.setdefault(group, {})[path] = value
    return grouped


def join(grouped: Grouped) -> dict[str, Any]:
    """`{group: {path: array}}` → parameter tree."""
    flat = {path: value for part in grouped.values() for path, value in part.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def segments(optim: OptimConfig) -> tuple[Segment, ...]:
    """All learning-rate segments of a resolved config.

    Scale and bias follow the projections unless they have segments of their own.
    """
    found = list(optim.segments)
    if not found:
        end = optim.decay_steps or 0
        for group, rate, thaw in (
            ("vision", optim.vision_learning_rate, optim.vision_thaw_step),
            ("text", optim.text_learning_rate, optim.text_thaw_step),
            ("projection", optim.projection_learning_rate, 0),
        ):
            if thaw is not None and rate is not None:
                found.append(Segment(group, thaw, rate, optim.warmup_steps, end - thaw))
    if not any(s.group == "logit" for s in found):
        found += [dataclasses.replace(s, group="logit") for s in found if s.group == "projection"]
    return tuple(sorted(found, key=lambda s: (GROUPS.index(s.group), s.start_step)))


def learning_rate(optim: OptimConfig, group: str) -> Schedule:
    """The group's learning rate as a function of the **global** step; 0 while frozen."""
    own = [s for s in segments(optim) if s.group == group]
    parts = [_segment_schedule(s, optim.schedule) for s in own]
    joined = optax.join_schedules(
        [optax.constant_schedule(0.0), *parts], [s.start_step for s in own]
    )

    def rate(step: Any) -> jax.Array:
        # Optax mixes dtypes and ranks inside its own arithmetic, here and in `update`.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jnp.asarray(joined(step), jnp.float32)

    return rate


def _segment_schedule(segment: Segment, shape: str) -> Schedule:
    peak, warmup = segment.learning_rate, segment.warmup_steps
    length = max(segment.decay_steps - warmup, 1)
    decay = {
        "cosine": optax.cosine_decay_schedule(peak, length),
        "linear": optax.linear_schedule(peak, 0.0, length),
        "constant": optax.constant_schedule(peak),
    }[shape]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def layer_factors(decay: float, paths: Iterable[str]) -> dict[str, float]:
    """What the group's learning rate is multiplied by, for each parameter of a group.

    With L layers: embeddings decay^(L + 1), layer i (from 0) decay^(L - i), what stands above the
    layers and everything that is no tower 1 (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254).

    Raises:
      ConfigError: a tower's parameter matches no rule of `LAYER_RULES`, or more than one.
    """
    if decay == 1:
        return dict.fromkeys(paths, 1.0)
    below = {path: _depth(path) for path in paths}
    top = 1 + max((depth for depth in below.values() if depth is not None), default=0)
    return {path: 1.0 if d is None else decay ** (top - d) for path, d in below.items()}


def _depth(path: str) -> int | None:
    """0 for a tower's embeddings, i + 1 for its layer i, None for all above and beside."""
    tower, _, inside = path.partition("/")
    if tower not in ("vision_model", "text_model"):
        return None
    place = match_one(LAYER_RULES, inside, "layer")
    if place == "layer":
        return int(re.sub(_LAYERS, r"\1", inside)) + 1
    return 0 if place == "bottom" else None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of steps with the same moving groups.

    Attributes:
      start: its first global step.
      stop: the step after its last; None for the last phase, which lasts as long as the run.
      moving: groups that train, in the order of `GROUPS`.
    """

    start: int
    stop: int | None
    moving: tuple[str, ...]


def phases(optim: OptimConfig) -> tuple[Phase, ...]:
    """The phases of a config; a segment with learning rate 0 freezes its group.

    They do not depend on the length of the run, so a run that stops at a thaw step can go on.
    """
    changes = segments(optim)

    def moving(step: int) -> tuple[str, ...]:
        last = {s.group: s for s in changes if s.start_step <= step}
        return tuple(g for g in GROUPS if g in last and last[g].learning_rate > 0)

    starts = sorted({0} | {s.start_step for s in changes})
    starts = [s for i, s in enumerate(starts) if i == 0 or moving(s) != moving(starts[i - 1])]
    stops = [*starts[1:], None]
    return tuple(Phase(a, b, moving(a)) for a, b in zip(starts, stops, strict=True))


def phase_at(all_phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase of a step."""
    return next(p for p in all_phases if p.stop is None or step < p.stop)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optax transformations per group, with learning rates of the global step.

    Attributes:
      config: a resolved optimizer config.
      learn_logit_scale: whether `logit_scale` is a parameter or fixed.
    """

    config: OptimConfig
    learn_logit_scale: bool

    def split(self, params: Params, moving: tuple[str, ...]) -> tuple[Grouped, Grouped]:
        """Parameter tree → (moving, frozen), each `{group: {path: array}}`."""
        grouped = split(params, learn_logit_scale=self.learn_logit_scale)
        return (
            {g: part for g, part in grouped.items() if g in moving},
            {g: part for g, part in grouped.items() if g not in moving},
        )

    def enter(self, params: Params, state: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
        """Optimizer state for a phase: moments kept, born or dropped with their group."""
        moving, _ = self.split(params, phase.moving)
        return {
            group: state[group] if group in state else self._transform().init(part)
            for group, part in moving.items()
        }

    def update(
        self, grads: Grouped, state: Mapping[str, Any], params: Grouped, step: jax.Array
    ) -> tuple[Grouped, dict[str, Any]]:
        """One step for the moving groups: (updates to add to `params`, new state).

        Args:
          grads: gradients of the moving groups, float32.
          state: what `enter` or the previous `update` returned.
          params: the moving groups' parameters.
          step: int32 [], the global step that sets the learning rates.
        """
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self._update(grads, state, params, step)

    def _update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
        if self.config.clip_norm:
            clip = optax.clip_by_global_norm(self.config.clip_norm)
            grads, _ = clip.update(grads, clip.init(params))
        updates, new_state = {}, {}
        transform: Any = self._transform()
        for group, part in grads.items():
            scaled, new_state[group] = transform.update(part, state[group], params[group])
            rate = learning_rate(self.config, group)(step)
            factors = layer_factors(self.config.layer_decay, part)
            updates[group] = {path: -rate * factors[path] * u for path, u in scaled.items()}
        return updates, new_state

    def _transform(self) -> optax.GradientTransformation:
        """Everything but the learning rate; moments count steps from the group's own thaw."""
        c = self.config
        clip = [optax.adaptive_grad_clip(c.agc_clip, eps=1e-3)] if c.agc_clip else []
        if c.optimizer == "adabelief":
            # eps as in the optax of 2021; its default has moved from eps_root to eps since.
            return optax.chain(*clip, optax.scale_by_belief(c.b1, c.b2, eps=0.0, eps_root=1e-16))
        return optax.chain(
            *clip,
            # CLIP's eps for ViT (arXiv 2103.00020, appendix). With 1e-8, gradients that are zero
            # but for rounding (the bias of attention keys) move weights by the learning rate.
            optax.scale_by_adam(c.b1, c.b2, eps=1e-6),
            optax.add_decayed_weights(c.weight_decay, mask=_decay_mask),
        )


def _decay_mask(params: dict[str, Any]) -> dict[str, bool]:
    return {path: match_one(DECAY_RULES, path, "decay") for path in params}
