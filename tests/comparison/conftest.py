"""A comparison of seconds: eight images of four places, a ResNet-18 of width 4, one epoch a phase."""

import pytest

from configs import compare


@pytest.fixture(scope="session")
def tiny_compare(labelled_folder, tmp_path_factory):
    """Makes configs of a small comparison on the labelled folder: `tiny_compare(**changes by dotted keys)`."""
    data_dir = tmp_path_factory.mktemp("prepared_comparison")

    def config(**changes):
        config = compare.get_config("nyc_small")
        config.update(
            {
                "seeds": (0,),
                "only": ("random", "simclr_compute", "gs", "gs_random"),
                "data": {
                    "path": str(labelled_folder),
                    "classes": ("grass", "stone", "water"),
                    "group": r"(\w+)_\d",
                    "group_tables": (),
                    "test": "south",
                    "tile_size": 48,
                    "data_dir": str(data_dir),
                },
                "pretrain": {
                    "batch_size": 8,
                    "data": {"tile_size": 48, "exclude": "south"},
                    "augment": {"size": 32},
                    "model": {"width": 4, "output_stride": 8},
                    "method": {"embedding": 16},
                    "warmup": {"epochs": 2},
                    "gs": {"epochs": 1},
                    "simclr": {"epochs": 1},
                    "log": {"figure_tiles": 0},
                },
                "probe": {"budgets": ("4", "all"), "lists": 2, "batch_size": 8},
                "finetune": {"budgets": (), "lists": 1},
                "segment": {
                    "batch_size": 8,
                    "augment": {"size": 48, "scale": (1.0, 1.5)},
                    "model": {"output_stride": 8},
                    "head": {"channels": 8},
                    "finetune": {"steps": 2},
                    "evaluate": {"batch_size": 8, "boundary": 0, "figure_scenes": 0},
                    "log": {"tensorboard": False},
                },
                "report": {"budget": "4", "blocks": "scene", "scenes": 1},
                "compilation_cache": "",
            }
        )
        config.update_from_flattened_dict(changes)
        return config.lock()  # as the command line has it

    return config
