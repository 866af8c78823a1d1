"""Rules that the configurations of several tasks share."""

from collections.abc import Mapping

from grass_jax.bands import DTYPES, MAX_BANDS
from grass_jax.config import (
    BELOW_ONE,
    NAMES,
    NOT_NEGATIVE,
    NUMBERS,
    PATTERN,
    POSITIVE,
    SEQUENCE,
    TEXT,
    YES_OR_NO,
    Rule,
    one_of,
    whole,
)

SHARED = {"task": TEXT, "name": TEXT, "preset": TEXT, "compilation_cache": TEXT}
BANDS = Rule(
    f"a list of up to {MAX_BANDS} different numbers of bands, from 1",
    lambda v: SEQUENCE.holds(v) and all(map(whole(1).holds, v)) and len(set(v)) == len(v) <= MAX_BANDS,
)

# what the training loop reads, whatever the task
TRAINING = {
    "seed": whole(0),
    "batch_size": whole(2),
    "model.name": one_of("resnet18", "resnet34", "resnet50", "resnet101"),
    "model.width": Rule("a multiple of 4 of at least 4", lambda v: whole(4).holds(v) and v % 4 == 0),
    "model.output_stride": one_of(8, 16, 32),
    "model.dtype": one_of("float32", "bfloat16"),
    "optimizer.name": one_of("larc", "sgd", "adamw"),
    "optimizer.momentum": BELOW_ONE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.decay_bias": YES_OR_NO,
    "optimizer.trust_coefficient": POSITIVE,
    "optimizer.eps": POSITIVE,
    "schedule.peak": POSITIVE,
    "schedule.warmup": BELOW_ONE,
    "schedule.final": NOT_NEGATIVE,
    "phases": Rule(
        "one or more different names of phases",
        lambda v: isinstance(v, tuple | list) and all(isinstance(p, str) for p in v) and 0 < len(v) == len(set(v)),
    ),
    "checkpoint.every_minutes": NOT_NEGATIVE,
    "checkpoint.keep": whole(1),
    "log.every": whole(1),
    "log.tensorboard": YES_OR_NO,
    "init": TEXT,
    "init_step": whole(0, " (0: the newest)"),
    "init_prefix": TEXT,
    "init_ignore": PATTERN,
    "bands.numbers": BANDS,
    "bands.rgb": BANDS,
    "bands.dtype": one_of("", *DTYPES),
    **{f"bands.{name}": NUMBERS for name in ("low", "high", "mean", "std")},
}

BUDGET = {"labels": TEXT, "labels_seed": whole(0)}
# windows over whole scenes, blended
SLIDING = {
    "window": whole(0, " (0: the tile size of the training)"),
    "overlap": BELOW_ONE,
    "batch_size": whole(1),
}


SCORING = {**SLIDING, "boundary": whole(0), "without": NAMES, "figure_scenes": whole(0)}


def section(name: str, rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """The rules under the name of a section."""
    return {f"{name}.{key}": rule for key, rule in rules.items()}
