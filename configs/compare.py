"""Does it help? Arms x seeds x lists of labels on one data set, under equal conditions, and one table.

    python main.py --config=configs/compare.py                                           the sample
    python main.py --config=configs/compare.py:dubai_small --config.data.path=FOLDER     the causal pair, on a laptop
    python main.py --config=configs/compare.py:dubai --config.data.path=FOLDER           the same at full size, on a GPU
    python main.py --config=configs/compare.py:folder --config.data.path=FOLDER ...      your own labelled folder
    python main.py --config=configs/compare.py:dubai_small --config.groups="('breadth',)" --config.seeds="(0,)" ...
    python main.py --config=configs/compare.py:dubai_development --config.data.path=FOLDER       ablations

What is compared, how, and when the answer counts as one: `docs/protocol.md`. The same command goes on where it was
stopped; more seeds are appended. The sample takes six minutes on 2 CPU cores.
"""

from importlib import import_module
from typing import Any

from ml_collections import ConfigDict

from configs import gs, labelled, segment

BASELINES = ("byol", "barlow_twins", "densecl", "false", "moco_v2", "simsiam", "swav", "vicreg", "pixpro", "glcnet")


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, dubai_small, dubai, dubai_development, ..."""
    if preset not in PRESETS:
        raise ValueError(f"configs/compare.py has the presets {', '.join(PRESETS)}, not {preset!r}.")
    settings = PRESETS[preset]
    pretrain: Any = gs.get_config(settings["pretrain"])
    pretrain.update(RECIPE)
    # on a curve of its own, so that branches of any length share one warm-up
    pretrain.simclr = {"step": "warmup_step", "epochs": pretrain.gs.epochs}
    config: Any = ConfigDict(
        {
            "task": "compare",
            "name": "compare",
            "preset": preset,
            "seeds": (0, 1, 2),  # in this order, never chosen
            "groups": ("causal",),  # of arms: causal, breadth, ablation; each has a report of its own
            "only": (),  # names of some of their arms; empty: all
            "base": "warmup",  # the arm whose first phase's step is the unit of compute
            "weights": "",  # file of ImageNet weights; without one the arms that begin with them are not measured
            "results": "",  # file to which measurements are appended; empty: results.jsonl in the workdir
            "purity": True,  # of the guided boxes, at the end of each phase
            "data": labelled.section(),
            "pretrain": pretrain,
            "arms": {},
            "probe": {
                "budgets": ("10", "50", "250", "all"),
                "lists": 5,
                "l2": 1e-3,
                "window": 0,  # 0: the tile size
                "overlap": 0.0,
                "batch_size": 32,
            },
            "finetune": {"budgets": ("50",), "lists": 3},
            "segment": segment.get_config(settings["segment"]),
            "report": {"budget": "50", "blocks": "scene", "scenes": 4},
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )
    config.update(settings["changes"])
    config.pretrain.simclr.epochs = config.pretrain.gs.epochs
    config.arms = arms(config.pretrain, settings["pretrain"])
    return config


def arms(pretrain: Any, preset: str) -> dict[str, dict[str, Any]]:
    """Returns the arms by name.

    Args:
        pretrain: the recipe that they share.
        preset: of `configs/baselines/`, for the other methods.
    """
    branch: dict[str, Any] = {"trunk": "warmup"}
    guided: dict[str, Any] = {**branch, "phases": ("warmup", "gs")}
    found = {
        "random": arm("random encoder", ()),
        "warmup": arm("warm-up alone", ("warmup",)),
        "simclr_updates": arm("SimCLR, equal updates", ("warmup", "simclr"), **branch, equal_updates="gs"),
        "simclr_compute": arm("SimCLR, equal compute", ("warmup", "simclr"), **branch, equal_compute="gs"),
        "gs": arm("GS training", **guided),
        "gs_random": arm("random boxes", **guided, guidance={"boxes": "random"}),
        "imagenet": arm("ImageNet", (), weights=True),
        "imagenet_simclr": arm("ImageNet, SimCLR", ("simclr",), weights=True, equal_compute="gs"),
        "imagenet_gs": arm("ImageNet, GS training", ("gs",), weights=True),
    }
    for name in BASELINES:
        config: Any = import_module(f"configs.baselines.{name}").get_config(preset)
        method, share = config.method.to_dict(), pretrain.batch_size / config.batch_size
        if "prototypes" in method:
            method["prototypes"] = round(method["prototypes"] * share)  # as many for a tile of the batch
        settings = {"optimizer": config.optimizer.to_dict(), "schedule": {"peak": config.schedule.peak * share}}
        if config.optimizer.name == "adamw":
            settings["schedule"]["peak"] = config.schedule.peak  # the others' are linear in the batch
        found[name] = arm(
            name,
            ("warmup",),
            group="breadth",
            equal_updates="gs",
            against="simclr_updates",
            method=method,
            **settings,
        )
    ablations: dict[str, tuple[str, dict[str, Any]]] = {
        "activation": ("activation without gradient", {"source": "activation"}),
        "pixels": ("gradient at the pixels", {"source": "pixels"}),
        "random_map": ("map of a random encoder", {"encoder": "random"}),
        "negate": ("gradient's sign turned", {"negate": True}),
        "threshold_03": ("threshold 0.3", {"threshold": 0.3}),
        "threshold_07": ("threshold 0.7", {"threshold": 0.7}),
        "stage_3": ("map of stage 3", {"stage": 3}),
        "one_view": ("one view guided", {"views": "first"}),
        "half_size": ("guidance at half size", {"size": pretrain.augment.size // 2}),
    }
    for name, (label, guidance) in ablations.items():
        found[f"gs_{name}"] = arm(label, **guided, group="ablation", against="gs", guidance=guidance)
    long: dict[str, Any] = {"group": "ablation", "equal_updates": "gs", "against": "gs"}
    found["gs_from_random"] = arm("no warm-up", ("gs",), **long)
    found["gs_short_warmup"] = arm(
        "half the warm-up", ("warmup", "gs"), **long, warmup={"epochs": pretrain.warmup.epochs / 2}
    )
    return {name: {**section, "place": place} for place, (name, section) in enumerate(found.items())}


def arm(
    label: str,
    phases: tuple[str, ...],
    *,
    group: str = "causal",
    trunk: str = "",
    equal_updates: str = "",
    equal_compute: str = "",
    weights: bool = False,
    against: str = "",
    **changes: Any,
) -> dict[str, Any]:
    """Returns the section of an arm.

    Args:
        label: in tables and figures.
        phases: of its pretraining; none leaves the encoder as it begins.
        group: by which arms are chosen.
        trunk: the arm at whose end it goes on.
        equal_updates: the arm that has as many updates in all; the last phase is as long as that takes.
        equal_compute: the arm whose compute its last phase takes; the measured step times say how many updates.
        weights: whether it begins with `config.weights`.
        against: the arm that is taken from it in the table of differences, beside those of the causal pair.
        **changes: of the shared recipe `config.pretrain`; `method` is replaced as a whole.
    """
    begins = {"label": label, "phases": phases, "group": group, "trunk": trunk, "weights": weights}
    ends = {"equal_updates": equal_updates, "equal_compute": equal_compute, "against": against}
    return {**begins, **ends, "changes": changes}


RECIPE = {
    "schedule": {"restart": True},
    "probe": {"labels": "50"},
    "checkpoint": {"every_epochs": 1.0, "keep": 1},
    "log": {"figure_tiles": 4, "tensorboard": False},
}
# 128 tiles a batch, the peak 0.075 sqrt(128) by the rule of `gs.py`; 60 and 40 epochs are 600 and 400 updates for the
# training parts of Dubai
FULL = {
    "batch_size": 128,
    "schedule": {"peak": 0.85},
    "warmup": {"epochs": 60},
    "gs": {"epochs": 40},
    "checkpoint": {"every_epochs": 10.0},
}
# What 2 CPU cores do in half an hour a seed: 4 and 3 epochs are 560 and 420 updates for Dubai. Direction only.
SMALL = {
    "batch_size": 32,
    "data": {"tile_size": 128},
    "augment": {"size": 64},
    "warmup": {"epochs": 4},
    "gs": {"epochs": 3},
    "log": {"every": 5},
}
DUBAI = {"data": labelled.DUBAI, "pretrain": {"data": {"exclude": labelled.DUBAI["test"]}}}
# Ablations see the training parts alone: part 6 of every area is scored, the test parts are kept out as `validation`.
DEVELOPMENT = {**labelled.DUBAI, "test": "part006", "validation": r"part00[789]", "ignored": ()}
NYC = labelled.section(
    classes=("land", "building", "road", "water", "park"),
    group_tables=("train=groups_train.csv", "val=groups_val.csv"),
    test="^val/",
)


def small(changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes of a data set's preset for the laptop: probe and purity, no fine-tuning."""
    pretrain = {**SMALL, **changes["pretrain"], "data": {**SMALL["data"], **changes["pretrain"]["data"]}}
    return {
        "seeds": (0, 1),
        "finetune": {"budgets": ()},
        **changes,
        "data": {**changes["data"], "tile_size": 128},
        "pretrain": pretrain,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "sample": {
        "pretrain": "sample",
        "segment": "sample",
        "changes": {
            "seeds": (0,),
            "only": ("simclr_compute", "gs", "gs_random"),
            "purity": False,
            "data": labelled.SAMPLE,
            "pretrain": {"warmup": {"epochs": 3}, "gs": {"epochs": 2}},
            "probe": {"budgets": ("10", "50"), "lists": 2},
            "finetune": {"budgets": ("50",), "lists": 1},
            "segment": {"finetune": {"steps": 60}},
        },
    },
    # Your own labelled folder, as `segment.py:folder` takes it; --config.pretrain.data.exclude names its test images.
    "folder": {
        "pretrain": "folder",
        "segment": "folder",
        "changes": {**small({"data": labelled.section(), "pretrain": {"data": {}}}), "purity": False},
    },
    "dubai_small": {"pretrain": "dubai", "segment": "dubai", "changes": small(DUBAI)},
    "dubai": {
        "pretrain": "folder_full",
        "segment": "folder_full",
        "changes": {**DUBAI, "pretrain": {**FULL, **DUBAI["pretrain"], "probe": {"data": labelled.DUBAI_PROBE}}},
    },
    "dubai_development": {
        "pretrain": "dubai",
        "segment": "dubai",
        "changes": {
            **small({"data": DEVELOPMENT, "pretrain": {"data": {"exclude": r"part00[6789]"}}}),
            "groups": ("causal", "ablation"),
            "seeds": (0,),
            "purity": False,
        },
    },
    "nyc_small": {
        "pretrain": "folder",
        "segment": "folder",
        "changes": {
            **small({"data": NYC, "pretrain": {"data": {"exclude": "^val/"}}}),
            "purity": False,
            "report": {"blocks": "group"},
        },
    },
    "nyc": {
        "pretrain": "folder_full",
        "segment": "folder_full",
        "changes": {
            "data": NYC,
            "pretrain": {**FULL, "data": {"exclude": "^val/"}},
            "purity": False,
            "report": {"blocks": "group"},
        },
    },
}
