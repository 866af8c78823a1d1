"""Fine-tuning for segmentation: a pretrained encoder and a few labelled crops in, figures of whole test scenes out.

    python main.py --config=configs/segment.py --config.init=runs/gs_sample                       the sample
    python main.py --config=configs/segment.py:folder --config.init=RUN --config.data.path=FOLDER \
        --config.data.classes="('field','forest','town')" --config.data.test=0.2 --config.labels=50
    python main.py --config=configs/segment.py:dubai --config.init=RUN --config.data.path=FOLDER --config.labels=50

The sample takes two minutes on 2 CPU cores: mIoU 0.537 on its three test scenes with 50 crops and the encoder of
`gs.py` (one run, JAX 0.10). The `folder` and `dubai` presets are for the same small encoder; `folder_full` is for one
GPU and has not run on one yet.

Without `config.init` the encoder is random; a file of weights (.safetensors, .pth) goes, too.
`--config.head.name=linear` fits the linear probe instead: the encoder is frozen, and nothing is left to tune.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import labelled


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, folder_full, folder_full_sgd, potsdam, ..."""
    if preset not in PRESETS:
        raise ValueError(f"configs/segment.py has the presets {', '.join(PRESETS)}, not {preset!r}.")
    config = full_size()
    config.update(PRESETS[preset])
    config.name, config.preset = "segment", preset
    return config


def full_size() -> ConfigDict:
    """The recipe for one GPU; our choice, the paper's text leaves it open."""
    return ConfigDict(
        {
            "task": "segment",
            "name": "",
            "preset": "",
            "seed": 0,
            **labelled.start(),
            "labels": "all",  # or a number of crops, a share such as 0.1, or a list that a run wrote
            "labels_seed": 0,
            "batch_size": 16,
            "data": labelled.section(workers=0),
            "augment": {
                "size": 224,
                "scale": (0.75, 2.0),
                "flip": 0.5,
                "rotate": True,
                "jitter": 0.5,
                "brightness": 0.3,
                "contrast": 0.3,
                "saturation": 0.3,
                "hue": 0.05,
            },
            "bands": labelled.bands(),  # those of the pretraining run where there is one
            # name and width are those of the pretraining run where there is one
            "model": {"name": "resnet50", "width": 64, "output_stride": 16, "dtype": "bfloat16"},
            "head": {"name": "deeplabv3plus", "channels": 256, "dropout": 0.1},  # or fcn, linear
            "encoder_rate": 0.3,  # learning rate of the encoder, as a multiple; 0 freezes it
            "loss": {"class_weights": ()},  # one for each class; empty: all alike
            "l2": 1e-3,  # of the linear head alone
            "optimizer": {
                "name": "adamw",  # or sgd, larc
                "momentum": 0.9,
                "weight_decay": 1e-2,
                "decay_bias": False,
                "trust_coefficient": 1e-3,
                "eps": 1e-8,
            },
            "schedule": {"name": "cosine", "peak": 1e-3, "warmup": 0.05, "final": 0.0, "power": 0.9},  # or poly
            "phases": ("finetune",),
            "finetune": {"steps": 3000},
            # steps between two scores of a share of the labelled crops that is held out by groups: the best counts;
            # 0, and below 100 crops: all crops train, and the last iterate counts
            "validate_every": 0,
            "validation_share": 0.2,
            "evaluate": labelled.scoring(),
            "checkpoint": {"every_steps": 500, "every_minutes": 10.0, "keep": 1},  # minutes of 0: by steps alone
            "log": {"every": 10, "tensorboard": True},
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )


# For the narrow ResNet-18 that `gs.py:folder` trains on a laptop.
SMALL = {
    "augment": {"size": 128},
    "model": {"name": "resnet18", "width": 32, "output_stride": 16, "dtype": "float32"},
    "head": {"channels": 64},
    "finetune": {"steps": 300},
    "evaluate": {"overlap": 0.25},
    "checkpoint": {"every_steps": 100},
    "log": {"every": 5},
}

PRESETS = {
    "sample": {
        **SMALL,
        "data": labelled.SAMPLE,
        "labels": "50",
        "augment": {"size": 96, "scale": (1.0, 2.0)},
        "evaluate": {"overlap": 0.5},
    },
    "folder": SMALL,
    "folder_full": {},
    # DeepLab's recipe (arXiv 1706.05587): SGD with momentum, poly schedule
    "folder_full_sgd": {
        "optimizer": {"name": "sgd", "weight_decay": 1e-4},
        "schedule": {"name": "poly", "peak": 0.01, "warmup": 0.0},
        "encoder_rate": 1.0,
    },
    # DeepLabV3+ on 1 % of the training patches is what the original's laboratory fine-tunes in related work (RiSSNet,
    # Remote Sensing 2023, 15, 3427; for Potsdam the list of patches is the one of its earlier work). The recipe is not
    # in what we could read of it: optimiser, rates, length and augmentation above are our choice.
    "potsdam": {"data": labelled.POTSDAM, "labels": str(Path(__file__).with_name("potsdam_138.txt"))},
    "loveda_urban": {"data": labelled.LOVEDA_URBAN, "labels": "0.01"},
    "loveda_rural": {"data": labelled.LOVEDA_RURAL, "labels": "0.01"},
    "dubai": {**SMALL, "data": labelled.DUBAI},
    "dubai_new_scene": {**SMALL, "data": labelled.DUBAI_NEW_SCENE},
}
