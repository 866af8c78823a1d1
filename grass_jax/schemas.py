"""What the configuration of every task may hold: each key with its rule."""

from collections.abc import Mapping
from typing import Any

from grass_jax.augment.pairs import RULES as PAIR_AUGMENTATION_RULES
from grass_jax.augment.views import RULES as AUGMENTATION_RULES
from grass_jax.config import (
    BELOW_ONE,
    NAMES,
    NOT_NEGATIVE,
    PATTERN,
    POSITIVE,
    SEQUENCE,
    TEXT,
    WEIGHTS,
    YES_OR_NO,
    ConfigError,
    Rule,
    Schema,
    check_against,
    flatten,
    number,
    one_of,
    whole,
)
from grass_jax.data.published.facts import PUBLISHED
from grass_jax.data_rules import LABELLED, check_archives, check_folder, check_labelled, class_count, refuse_masks
from grass_jax.guidance import RULES as GUIDANCE_RULES
from grass_jax.guidance import GuidanceSettings
from grass_jax.methods.registry import NAMES as METHODS
from grass_jax.methods.registry import follows_length, rules_of
from grass_jax.shared_rules import BUDGET, SCORING, SHARED, SLIDING, TRAINING, section


def _check_pretraining(values: dict[str, Any]) -> None:
    if values["data.name"] == "sample" and values["data.path"]:
        raise ConfigError(
            "config.data.path is given but config.data.name is 'sample': use --config=configs/gs.py:folder, or leave "
            "the path out."
        )
    if values["data.name"] in PUBLISHED:
        check_archives(values, "data")
        if values["data.split"] != "train":
            raise ConfigError("config.data.split must be 'train': pretraining must not see the test part.")
        if values["data.exclude"]:
            raise ConfigError(f"config.data.exclude is for folders: {values['data.name']} has its own training part.")
    if values["data.name"] == "image_folder" and values["data.split"] != "train":
        raise ConfigError(f"config.data.split of an image_folder must be 'train', not {values['data.split']!r}.")
    if values["data.name"] == "image_folder":
        check_folder(values, "data", "a folder of images")
    refuse_masks(values["data.path"], values["data.path"])
    if values["batch_size"] % values["micro_batches"]:
        raise ConfigError(
            f"config.micro_batches must divide config.batch_size, {values['batch_size']}, not "
            f"{values['micro_batches']}."
        )
    guided = any(values[f"{name}.step"] == "gs_step" for name in values["phases"])
    if values["branch"] and follows_length(values["method.name"]):
        raise ConfigError(
            f"config.branch: the moving average of {values['method.name']} follows the length of its run, so that a "
            "branch would not be the longer run: leave config.branch empty."
        )
    if values["model.init"] == "original" and values["method.name"] != "simclr":
        raise ConfigError(
            f"config.model.init 'original' knows SimCLR's head alone: {values['method.name']} takes 'torchvision'."
        )
    chosen = {key.removeprefix("guidance."): value for key, value in values.items() if key.startswith("guidance.")}
    try:
        GuidanceSettings(**chosen)
    except ValueError as error:
        raise ConfigError(f"config.guidance: {error}") from error
    stride = min(values["model.output_stride"], 2 ** (values["guidance.stage"] + 1))
    if guided and (values["guidance.size"] or values["augment.size"]) < 2 * stride:
        which = "guidance" if values["guidance.size"] else "augment"
        raise ConfigError(
            f"The guidance map would be 1x1: raise config.{which}.size or lower config.model.output_stride."
        )
    if values["guidance.size"] > values["augment.size"]:
        raise ConfigError(
            f"config.guidance.size must be at most config.augment.size, {values['augment.size']}, not "
            f"{values['guidance.size']}."
        )
    if values["branch"] and (values["init"] or not (values["schedule.restart"] and len(values["phases"]) > 1)):
        raise ConfigError(
            "config.branch goes on from another run: it needs config.schedule.restart=True, a phase more than that run "
            "has, and no config.init of its own."
        )
    if values["probe.every_epochs"]:
        check_labelled(values, "probe.data")


PRETRAINING = Schema(
    rules={
        **SHARED,
        **TRAINING,
        "data.name": one_of("sample", "image_folder", *PUBLISHED),
        "data.path": TEXT,
        "data.exclude": PATTERN,
        "data.split": one_of("train", "val"),
        "data.tile_size": whole(32),
        "data.stride": whole(0, " (0: the tile size)"),
        "data.data_dir": TEXT,
        "data.workers": whole(0),
        **section("augment", AUGMENTATION_RULES),
        "augment.size": whole(32),
        "model.init": one_of("torchvision", "original"),
        "branch": TEXT,
        "micro_batches": whole(1),
        "method.name": one_of(*METHODS),
        **section("guidance", GUIDANCE_RULES),
        "schedule.name": one_of("cosine", "original"),
        "schedule.restart": YES_OR_NO,
        "checkpoint.every_epochs": POSITIVE,
        "log.figure_tiles": whole(0),
        "probe.every_epochs": NOT_NEGATIVE,
        **section("probe", BUDGET | SLIDING),
        "probe.l2": POSITIVE,
        "probe.purity_tiles": whole(0),
        **section("probe.data", LABELLED),
    },
    phase_rules={"step": one_of("warmup_step", "gs_step"), "epochs": POSITIVE},
    together=_check_pretraining,
)


def _check_segmentation(values: dict[str, Any]) -> None:
    check_labelled(values, "data")
    weights, classes = values["loss.class_weights"], class_count(values, "data")
    if weights and len(weights) != classes:
        raise ConfigError(
            f"config.loss.class_weights must hold a number for each of the {classes} classes, or none, not "
            f"{len(weights)}."
        )


SEGMENTATION = Schema(
    rules={
        **SHARED,
        **TRAINING,
        **BUDGET,
        **section("data", LABELLED),
        "data.workers": whole(0),
        **section("augment", PAIR_AUGMENTATION_RULES),
        "augment.size": whole(32),
        "head.name": one_of("deeplabv3plus", "fcn", "linear"),
        "head.channels": whole(1),
        "head.dropout": BELOW_ONE,
        "encoder_rate": NOT_NEGATIVE,
        "loss.class_weights": WEIGHTS,
        "l2": POSITIVE,
        "schedule.name": one_of("cosine", "poly"),
        "schedule.power": POSITIVE,
        "checkpoint.every_steps": whole(1),
        "validate_every": whole(0),
        "validation_share": number("above 0 and below 1", lambda v: 0 < v < 1),
        **section("evaluate", SCORING),
    },
    phase_rules={"steps": whole(1)},
    together=_check_segmentation,
)

EVALUATION = Schema(
    rules={
        **SHARED,
        "model": TEXT,
        "model_step": whole(0, " (0: the one that counts)"),
        **section("data", LABELLED),
        **section("evaluate", SCORING),
    },
    phase_rules={},
    together=lambda values: check_labelled(values, "data"),
)

PREDICTION = Schema(
    rules={
        **SHARED,
        "model": TEXT,
        "model_step": whole(0, " (0: the one that counts)"),
        "input": TEXT,
        "output": TEXT,
        **SLIDING,
        "probabilities": YES_OR_NO,
        "quicklook": YES_OR_NO,
    },
    phase_rules={},
    together=lambda values: None,
)

EXPORT = Schema(
    rules={
        **SHARED,
        "model": TEXT,
        "model_step": whole(0, " (0: the one that counts)"),
        "output": TEXT,
        "format": one_of("torchvision", "timm", "mmsegmentation"),
        "part": one_of("", "encoder"),
        "licence": TEXT,
        "data": TEXT,
    },
    phase_rules={},
    together=lambda values: None,
)


def _check_comparison(values: dict[str, Any]) -> None:
    check_labelled(values, "data")
    budgets = [*values["probe.budgets"], *values["finetune.budgets"]]
    if values["report.budget"] not in budgets:
        raise ConfigError(
            f"config.report.budget must be one of the budgets, {', '.join(map(repr, budgets))}, not "
            f"{values['report.budget']!r}."
        )


# the sections `pretrain`, `arms` and `segment` are checked as the runs that they describe
COMPARISON = Schema(
    rules={
        **SHARED,
        "seeds": Rule(
            "a list of different whole numbers of at least 0",
            lambda v: SEQUENCE.holds(v) and 0 < len(v) == len(set(v)) and all(map(whole(0).holds, v)),
        ),
        "groups": NAMES,
        "only": NAMES,
        "base": TEXT,
        "weights": TEXT,
        "results": TEXT,
        "purity": YES_OR_NO,
        **section("data", LABELLED),
        "probe.budgets": NAMES,
        "probe.lists": whole(1),
        "probe.l2": POSITIVE,
        **section("probe", SLIDING),
        "finetune.budgets": NAMES,
        "finetune.lists": whole(1),
        "report.budget": TEXT,
        "report.blocks": one_of("scene", "group"),
        "report.scenes": whole(0),
    },
    phase_rules={},
    together=_check_comparison,
)

SCHEMAS = {
    "pretrain": PRETRAINING,
    "segment": SEGMENTATION,
    "evaluate": EVALUATION,
    "predict": PREDICTION,
    "export": EXPORT,
    "compare": COMPARISON,
}


def check(config: Mapping[str, Any] | Any) -> None:
    """Checks the configuration of a task before any work.

    Args:
        config: a ConfigDict or nested mapping with the key `task`.

    Raises:
        ConfigError: at the first fault, naming the key, what it must be, and what it is.
    """
    task = flatten(config).get("task")
    if not isinstance(task, str) or task not in SCHEMAS:
        raise ConfigError(f"config.task must be {', '.join(map(repr, SCHEMAS))}, not {task!r}.")
    schema = SCHEMAS[task]
    if task == "pretrain":
        name, rule = flatten(config).get("method.name", "simclr"), schema.rules["method.name"]
        if not rule.holds(name):  # before its options, which are those of a method
            raise ConfigError(f"config.method.name must be {rule.words}, not {name!r}.")
        schema = schema._replace(rules=schema.rules | section("method", rules_of(name)))
    if task == "compare":
        config = {key: value for key, value in config.items() if key not in ("pretrain", "arms", "segment")}
    check_against(config, schema)
