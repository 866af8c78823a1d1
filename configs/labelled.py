"""Labelled data sets and how they are scored: sections of the other configs, not a config itself."""

from typing import Any


def section(**changes: Any) -> dict[str, Any]:
    """Returns a section `data` of labelled images, as `segment.py`, `evaluate.py` and the probe of `gs.py` take it."""
    return {
        "name": "segmentation_folder",
        "path": "",  # the folder that holds the two below
        "images": "images",
        "masks": "masks",  # masks with the images' names, or vector files with them, or one vector file for all
        "attribute": "",  # of vector files: the field with the class
        "radius": 2,  # of vector files: half the width of points and lines, pixels
        "classes": (),  # names, in the order of the ids
        "mask_values": (),  # ids or colours ("#RRGGBB") in the masks, one or several a class; empty: 0, 1, 2, ...
        "ignore": (255,),  # ids or colours that do not count
        "colours": (),  # in which maps show the classes; empty: those of `mask_values`, or a palette
        "background": "",  # of vector files: the class of what no polygon covers; empty: it does not count
        "split": "group",  # or file, or block
        "group": "",  # pattern that finds the group in a file's name; empty: every file is its own
        "group_tables": (),  # instead: CSV files in `path`, of file and group
        "test": "",  # pattern of the names of test files, or a share of the groups such as "0.2"
        "validation": "",  # likewise, of the rest: what a probe is scored on
        "block": 0,  # side of a block, pixels
        "guard": 0,  # pixels around test blocks that do not count
        "split_seed": 0,
        "ignored": (),  # rectangles: (pattern of names, y0, x0, y1, x1), -1: to the edge
        "gsd": 0.0,  # metres per pixel to resample to; 0: as stored
        "tile_size": 256,
        "stride": 0,  # 0: the tile size
        "data_dir": "",
    } | changes


def bands() -> dict[str, Any]:
    """Returns a section `bands`: which bands of the images are read and how; what is empty comes from the data."""
    return {
        "numbers": (),  # of the bands in the files, from 1, in the order of the network's channels; empty: all
        "rgb": (),  # which of them are red, green and blue; empty: what the files say, or 1, 2, 3 of three or four
        "dtype": "",  # of the stored images: uint8, uint16 or float32; empty: what the files hold
        # Stored values that become 0 and 1; empty: 0 and 255 for 8 bits, else the percentiles 0.5 and 99.5.
        "low": (),
        "high": (),
        # In [0, 1], for every band; empty: measured, and for red, green and blue of 8 bits alone those of ImageNet,
        # by which the original normalises and which published weights expect.
        "mean": (),
        "std": (),
    }


def start() -> dict[str, Any]:
    """Returns the keys that say where the encoder's weights come from."""
    return {
        "init": "",  # workdir of a pretraining run, or a file of weights (.safetensors, .pth); empty: random
        "init_step": 0,  # of a checkpoint that the run has kept, such as the end of the warm-up; 0: the newest
        "init_prefix": "",  # of a file with several networks: what stands before conv1.weight in the one to take
        "init_ignore": r"(^|\.)(fc|classifier|head\.fc)\.",  # pattern of names in a file that are left out: classifiers
    }


def scoring() -> dict[str, Any]:
    """Returns a section `evaluate`: how whole scenes are scored, in blended windows."""
    return {
        "window": 0,  # 0: the tile size of the training
        "overlap": 0.5,
        "batch_size": 16,
        "boundary": 3,  # tolerance of the boundary F1, pixels; 0 leaves it out
        "without": (),  # classes that a second mIoU leaves out, such as Potsdam's clutter
        "figure_scenes": 4,
    }


# "Semantic segmentation of aerial imagery" (Mohammed Bin Rashid Space Centre and Humans in the Loop): 8 areas of Dubai
# in 9 parts each, as tileN_part00P. #9B9B9B is unlabelled, #000000 was never annotated.
_DUBAI = {
    "classes": ("building", "land", "road", "vegetation", "water"),
    "mask_values": ("#3C1098", "#8429F6", "#6EC1E4", "#FEDD3A", "#E2A929"),
    "ignore": ("#9B9B9B", "#000000"),
    "split": "file",
    "group": r"(tile\d+)_",
}
# Same scenes: parts 7 to 9 of every area test. What touches training parts or shows their ground again does not count.
DUBAI = section(
    **_DUBAI,
    test=r"part00[789]",
    ignored=(
        ("part00[789]", 0, 0, 64, -1),
        ("tile8_part007", 0, 0, -1, 1720),
        ("tile8_part008", 770, 1260, -1, -1),
        ("tile8_part009", 770, 0, -1, -1),
    ),
)
# For the probe of a pretraining run: part 6 of every area, so that the test parts stay closed.
DUBAI_PROBE = {**DUBAI, "validation": "part006"}
# New scenes, harder: areas 1, 2 and 5 test; 4, 7 and 8 overlap and stay together.
DUBAI_NEW_SCENE = section(**_DUBAI, test=r"tile[125]_")
DUBAI_NEW_SCENE_PROBE = {**DUBAI_NEW_SCENE, "validation": r"tile6_"}
# The published data sets: path is the folder of the archives, which hold splits and classes; masks "eroded" of the two
# ISPRS sets leaves the pixels around boundaries out.
POTSDAM = section(name="potsdam", masks="full", tile_size=256)
LOVEDA_URBAN = section(name="loveda/urban", masks="full", tile_size=256)
LOVEDA_RURAL = section(name="loveda/rural", masks="full", tile_size=256)
SAMPLE = section(name="sample", tile_size=96)
SAMPLE_PROBE = {**SAMPLE, "validation": "0.2"}
