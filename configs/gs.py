"""The main job: ID warm-up, then GS training (arXiv 2306.15868).

    python main.py --config=configs/gs.py                                              the embedded sample
    python main.py --config=configs/gs.py:folder --config.data.path=FOLDER             your images, on a laptop
    python main.py --config=configs/gs.py:folder_full --config.data.path=FOLDER        your images, on a GPU or TPU
    python main.py --config=configs/gs.py:potsdam --config.data.path=ARCHIVES          a published set
    python main.py --config=configs/gs.py:reference --config.data.path=FOLDER          the original's every setting

Every value can be given on the command line: --config.gs.epochs=50 --config.schedule.peak=0.5
"""

from ml_collections import ConfigDict

from configs import labelled


def get_config(preset: str = "sample") -> ConfigDict:
    """Returns the configuration of a preset: sample, folder, folder_full, potsdam, loveda_urban, ..."""
    if preset not in PRESETS:
        raise ValueError(f"configs/gs.py has the presets {', '.join(PRESETS)}, not {preset!r}.")
    config = full_size()
    config.update(PRESETS[preset])
    config.name, config.preset = "gs", preset
    return config


def full_size() -> ConfigDict:
    """The recipe for one GPU: ResNet-50 on views of 224 pixels, 256 tiles a batch, bfloat16."""
    return ConfigDict(
        {
            "task": "pretrain",
            "name": "",
            "preset": "",
            "seed": 0,
            **labelled.start(),
            "branch": "",  # workdir of a run whose phases are the first of this one's: goes on from where it ended
            "batch_size": 256,  # tiles over all devices; two views of each
            "micro_batches": 1,  # parts of the batch that are in memory one at a time; batch norm sees one part
            "data": {
                "name": "image_folder",
                "path": "",  # the folder of images
                "exclude": "",  # pattern of the names of files to leave out, such as those kept for testing
                "split": "train",
                "tile_size": 256,
                "stride": 0,  # 0: the tile size; the last tile of a row is moved back to the edge
                "data_dir": "",  # where prepared tiles go; empty: ~/tensorflow_datasets or TFDS_DATA_DIR
                "workers": 0,  # reading processes; 0: threads of this one
            },
            # the original's augmentation: SimCLR's (arXiv 2002.05709, appendix A) with jitter strength 1
            "augment": {
                "size": 224,
                "area": (0.08, 1.0),
                "aspect": (3 / 4, 4 / 3),
                "flip": 0.5,
                "jitter": 0.8,
                "brightness": 0.8,
                "contrast": 0.8,
                "saturation": 0.8,
                "hue": 0.2,
                "greyscale": 0.2,
                "blur": 0.5,
                "blur_sigma": (0.1, 2.0),
            },
            "bands": labelled.bands(),
            "model": {
                "name": "resnet50",
                "width": 64,
                "output_stride": 32,
                "dtype": "bfloat16",
                "init": "torchvision",
            },
            # SimCLR's head, and the original's temperature; the original's ReLU is off by accident
            "method": {"name": "simclr", "hidden": 0, "embedding": 128, "relu": True, "temperature": 0.5},
            "guidance": {
                "threshold": 0.5,
                # a map without a positive value: the whole view. The original's division turns such a map upside down
                "sign": "fallback",
                # controls and ablations, see grass_jax/guidance.py
                "boxes": "guided",  # or random: of the same sizes, anywhere in the view
                "source": "gradient",  # or activation, without the gradient; pixels, the gradient at the input
                "encoder": "trained",  # or random
                "stage": 4,  # of the encoder at whose features the map is taken
                "negate": False,
                "views": "both",  # or first: the second view of a tile stays whole
                "size": 0,  # view pixels to which views are shrunk for the guidance; 0: not
            },
            "optimizer": {
                "name": "larc",  # or sgd, adamw (momentum is its b1)
                "momentum": 0.9,
                "weight_decay": 1e-6,
                "decay_bias": True,
                "trust_coefficient": 1e-3,  # of larc
                "eps": 1e-8,  # of larc and adamw
            },
            "schedule": {
                "name": "cosine",  # or original, which has its own peaks and reads none of the three below
                "peak": 1.2,  # 0.075 sqrt(256), SimCLR's rule for small batches (appendix B.1)
                "warmup": 0.05,
                "final": 0.001,
                "restart": False,  # True: one schedule per phase; momentum is kept either way
            },
            "phases": ("warmup", "gs"),
            # 350 epochs in all are the original's; it does not say how long its warm-up was: the share is our choice
            "warmup": {"step": "warmup_step", "epochs": 100.0},
            "gs": {"step": "gs_step", "epochs": 250.0},
            # a linear head on the frozen features, fitted and scored every so many epochs on a labelled data set, and
            # the purity of the guided boxes on its training tiles at the end of each phase
            "probe": {
                "every_epochs": 0.0,  # 0: no probe
                "labels": "250",
                "labels_seed": 0,
                "l2": 1e-3,
                "window": 0,  # 0: the tile size of `data` below
                "overlap": 0.0,
                "batch_size": 16,
                "purity_tiles": 512,  # 0: no purity
                "data": labelled.section(),
            },
            "checkpoint": {"every_epochs": 5.0, "every_minutes": 10.0, "keep": 2},  # minutes of 0: by epochs alone
            "log": {"every": 10, "tensorboard": True, "figure_tiles": 8},
            "compilation_cache": "~/.cache/grass_jax/xla",
        }
    )


# A narrow ResNet-18 that a laptop trains in minutes. Stride 16 keeps the map at 4x4 or more; Adam wants no large batch;
# the lower temperature and half the jitter make a few hundred steps count (at 0.5 and 0.8 the loss hardly moves).
SMALL = {
    "batch_size": 64,
    "augment": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur_sigma": (0.1, 1.0)},
    "method": {"temperature": 0.2},
    "model": {"name": "resnet18", "width": 32, "output_stride": 16, "dtype": "float32"},
    "optimizer": {"name": "adamw", "weight_decay": 1e-4},
    "schedule": {"peak": 1e-3, "warmup": 0.1},
    "log": {"every": 1},
}

FOLDER = {
    **SMALL,
    "augment": {**SMALL["augment"], "size": 96, "area": (0.2, 1.0)},
    "warmup": {"epochs": 10},
    "gs": {"epochs": 10},
    "checkpoint": {"every_epochs": 2.0},
}

# The published data sets, from the archives in --config.data.path=FOLDER. From the original's released configuration
# (GeoX-Lab/GraSS, grass_1gpu_resnet_b256): ResNet-50, views of 224, the augmentation above, 256 tiles a batch, 350
# epochs in all, temperature 0.5, LARC on SGD with momentum 0.9 and decay 1e-6, and its schedule. 256-pixel tiles
# side by side are those of its laboratory's earlier work on Potsdam. Left open there: how many of the epochs are
# warm-up (100 is our choice). Otherwise than there: a map without a positive value keeps the whole view, the head has
# the ReLU that SimCLR has, torchvision's initialisation, bfloat16; bands beyond red, green and blue are normalised as
# measured.
PUBLISHED = {"data": {"tile_size": 256}, "schedule": {"name": "original"}, "checkpoint": {"every_epochs": 10.0}}

PRESETS = {
    # 4 to 5 minutes and 1.5 GB on 2 CPU cores, probes included. One run with JAX 0.12: loss 4.7 to 3.1 in the
    # warm-up, 4.7 to 4.4 in GS training; embedding_std 0.04 to 0.084, then 0.044 rising to 0.055 (1/sqrt(128) = 0.088
    # fills the sphere).
    "sample": {
        **SMALL,
        "data": {"name": "sample", "tile_size": 96},
        "augment": {**SMALL["augment"], "size": 64, "area": (0.4, 1.0)},  # views of 64 hold less than of 224
        "probe": {"every_epochs": 4.0, "data": labelled.SAMPLE_PROBE},
        "warmup": {"epochs": 8},
        "gs": {"epochs": 8},
        "checkpoint": {"every_epochs": 2.0},
    },
    # Five minutes for 600 tiles on 2 CPU cores, 15 to 20 for 1,900; 2 GB.
    "folder": FOLDER,
    # The small model on the training parts of a labelled data set, with a probe: --config.data.path=FOLDER/images
    # --config.probe.data.path=FOLDER. About ten minutes on 2 CPU cores.
    "dubai": {
        **FOLDER,
        "data": {"exclude": labelled.DUBAI["test"]},
        "probe": {"every_epochs": 5.0, "data": labelled.DUBAI_PROBE},
    },
    "dubai_new_scene": {
        **FOLDER,
        "data": {"exclude": labelled.DUBAI_NEW_SCENE["test"]},
        "probe": {"every_epochs": 5.0, "data": labelled.DUBAI_NEW_SCENE_PROBE},
    },
    # About 25 GB for the step (3.0 GiB a chip on eight TPU v5e, from the compiler); not yet run on a GPU.
    "folder_full": {},
    "potsdam": {**PUBLISHED, "data": {**PUBLISHED["data"], "name": "potsdam"}},  # 13,824 tiles, 54 steps an epoch
    "loveda_urban": {**PUBLISHED, "data": {**PUBLISHED["data"], "name": "loveda/urban"}},  # 18,496 tiles
    "loveda_rural": {**PUBLISHED, "data": {**PUBLISHED["data"], "name": "loveda/rural"}},  # 21,856 tiles
    # The released code of GraSS, every setting: float32, GS from random weights, its own schedule and initialisation.
    "reference": {
        "model": {"dtype": "float32", "init": "original"},
        "bands": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "method": {"relu": False},
        "guidance": {"sign": "flip"},
        "schedule": {"name": "original"},
        "phases": ("gs",),
        "gs": {"epochs": 350},
        "checkpoint": {"every_epochs": 10.0},
    },
}
