import copy
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import compare, evaluate, export, gs, predict, segment
from grass_jax.config import PATTERN, ConfigError, differing, flatten, phase_length
from grass_jax.methods.registry import rules_of
from grass_jax.schemas import PRETRAINING, SCHEMAS, check

GOOD = gs.get_config().to_dict()
GOOD["schedule"]["peak"] = 1.0  # which 1 equals, and True does not
NAN, INF = float("nan"), float("inf")
# key: (values that are allowed, beside that of GOOD), (values that are not)
PROBABILITIES = ((0, 1, 0.3, np.float32(0.3)), (-0.1, 1.1, NAN, True, "0.5", None))
SIZES = ((0, 0.0, 3), (-1, NAN, INF, False, "1"))
SWITCHES = ((True, False), (0, 1, "True", None))
TEXTS = (("", "text"), (None, 1, ("text",)))
LISTS = (((), ("a",), ["b", "c"]), ("text", None, 3))
LABELLED_CASES = {
    "name": (("sample",), ("", "image_folder", None)),
    "path": (("",), (None, 1)),
    "images": TEXTS,
    "masks": TEXTS,
    "attribute": TEXTS,
    "radius": ((0, 3), (-1, 1.5)),
    "classes": LISTS,
    "mask_values": (((), (1, (2, 3)), ("#FF0000",)), ("1", None)),
    "ignore": (((), (0, 255)), (0, None)),
    "colours": LISTS,
    "background": TEXTS,
    "split": (("file", "group"), ("tile", "")),
    "group": (("", r"(tile\d+)"), ("(", None)),
    "group_tables": LISTS,
    "test": (("", "^val/", "0.2"), ("(", 0.2)),
    "validation": (("", "0.1"), ("[", 0.1)),
    "block": ((0, 512), (-1, 0.5)),
    "guard": ((0, 64), (-1, None)),
    "split_seed": ((0, 3), (-1, "0")),
    "ignored": (((), (("a", 0, 0, 64, -1),)), ("a", None)),
    "gsd": SIZES,
    "tile_size": ((32, 512), (31, 64.0)),
    "stride": ((0, 128), (-1, 0.5)),
    "data_dir": TEXTS,
}
CASES = {
    "task": (("pretrain",), ()),
    "name": TEXTS,
    "preset": TEXTS,
    "seed": ((0, 7), (-1, 0.0, True, "0", None)),
    "batch_size": ((2, 4096), (0, 1, 32.0, True, "32")),
    "data.name": (("sample",), ("", "Sample", "folder", None, 1)),
    "data.path": (("",), (None, 1, ("text",))),
    "data.exclude": (("", r"part00[789]"), ("(", 3, None)),
    "data.split": (("train", "val"), ("", "test", None)),
    "data.tile_size": ((32, 512), (31, 0, 64.0)),
    "data.stride": ((0, 1, 256), (-1, 0.5, None)),
    "data.data_dir": TEXTS,
    "data.workers": ((0, 8), (-1, 1.0)),
    "augment.size": ((32, 224), (31, 224.0, True)),
    "augment.area": (
        ((0.2, 0.2), (1, 1), [0.1, 1.0]),
        ((0, 1), (0.5, 0.2), (0.1, 1.5), (0.5,), (0.1, 0.5, 1), 0.5, (0.1, NAN), ("0.1", 1)),
    ),
    "augment.aspect": (((1, 1), (0.5, 2)), ((0, 1), (2, 1), (-1, 1), (1, INF), 1, None)),
    "augment.flip": PROBABILITIES,
    "augment.jitter": PROBABILITIES,
    "augment.greyscale": PROBABILITIES,
    "augment.blur": PROBABILITIES,
    "augment.brightness": SIZES,
    "augment.contrast": SIZES,
    "augment.saturation": SIZES,
    "augment.hue": ((0, 0.5), (-0.1, 0.51, True)),
    "augment.blur_sigma": (((0.5, 0.5), (1, 3)), ((0, 1), (2, 1), 1.0)),
    "bands.numbers": (((), (1,), [4, 2, 1]), ((0,), (1, 1), (1.0,), 3, "3", tuple(range(1, 18)))),
    "bands.rgb": (((), (3, 2, 1)), ((0, 1, 2), None)),
    "bands.dtype": (("", "uint8", "uint16", "float32"), ("int32", None)),
    "bands.low": (((), (0, -1.5)), ((NAN,), ("0",), 0)),
    "bands.high": (((), [255, 1e4]), ((INF,), 255)),
    "bands.mean": (((0, 0, 0), [0.5, 0.5, 0.5]), (0.5, (0, 0, "0"), (0, 0, NAN))),
    "bands.std": (((1, 1, 1),), ((1, "1"), 1)),
    "init": TEXTS,
    "init_step": ((0, 12), (-1, 1.5)),
    "init_prefix": TEXTS,
    "init_ignore": (("", r"^fc\."), ("(", None)),
    "model.name": (("resnet18", "resnet34", "resnet50", "resnet101"), ("resnet152", "ResNet50", None)),
    "model.width": ((4, 64), (0, 2, 6, 64.0, True)),
    "model.output_stride": ((8, 16, 32), (4, 12, 64, 32.0, "32")),
    "model.dtype": (("float32", "bfloat16"), ("float16", "bf16", None)),
    "model.init": (("torchvision", "original"), ("pytorch", "")),
    "branch": (("",), (None, 1)),
    "micro_batches": ((1, 2), (0, -1, 1.5, True)),
    "method.name": (("simclr",), ("SimCLR", "", None)),
    "method.hidden": ((0, 1, 2048), (-1, 1.5, None)),
    "method.embedding": ((2, 128), (1, 0, 128.0)),
    "method.relu": SWITCHES,
    "method.temperature": ((0.01, 1, 0.5), (0, 0.009, -1, NAN, INF, True, "0.5")),
    "guidance.threshold": ((0.01, 0.99), (0, 1, 0.0, 1.0, NAN)),
    "guidance.sign": (("fallback", "flip"), ("abs", True)),
    "guidance.boxes": (("guided", "random"), ("both", True)),
    "guidance.source": (("gradient", "activation", "pixels"), ("", None)),
    "guidance.encoder": (("trained", "random"), ("own", 1)),
    "guidance.stage": ((1, 2, 3, 4), (0, 5, 4.0, True)),
    "guidance.negate": SWITCHES,
    "guidance.views": (("both", "first"), ("second", 2)),
    "guidance.size": ((0, 48, 64), (-1, 1.5, None)),
    "optimizer.name": (("larc", "sgd", "adamw"), ("adam", "LARC")),
    "optimizer.momentum": ((0, 0.99), (1, 1.0, -0.1, True)),
    "optimizer.weight_decay": SIZES,
    "optimizer.decay_bias": SWITCHES,
    "optimizer.trust_coefficient": ((1e-3, 1), (0, -1, NAN)),
    "optimizer.eps": ((1e-12, 1), (0, -1e-8)),
    "schedule.name": (("cosine", "original"), ("linear", "")),
    "schedule.peak": ((1e-4, 5), (0, -1, INF, True)),
    "schedule.warmup": ((0, 0.5), (1, 1.0, -0.1)),
    "schedule.final": SIZES,
    "schedule.restart": SWITCHES,
    "phases": (
        (("gs",), ["warmup"], ("gs", "warmup")),
        ((), "gs", ("gs", "gs"), ("warmup", 1), None),
    ),
    "probe.every_epochs": ((0, 0.5, 4), (-1, NAN, "1")),
    "probe.labels": (("all", "50", "0.1"), (50, None)),
    "probe.labels_seed": ((0, 4), (-1, 0.5)),
    "probe.l2": ((1e-6, 1), (0, -1, INF)),
    "probe.window": ((0, 256), (-1, 64.0)),
    "probe.overlap": ((0, 0.5), (1, -0.1)),
    "probe.batch_size": ((1, 64), (0, 8.0)),
    "probe.purity_tiles": ((0, 512), (-1, 2.0)),
    **{f"probe.data.{key}": cases for key, cases in LABELLED_CASES.items()},
    "checkpoint.every_epochs": ((0.5, 1, 10), (0, -1, NAN, True)),
    "checkpoint.every_minutes": ((0, 0.5, 10), (-1, NAN, "10", True)),
    "checkpoint.keep": ((1, 5), (0, 1.0)),
    "log.every": ((1, 100), (0, 1.0)),
    "log.tensorboard": SWITCHES,
    "log.figure_tiles": ((0, 16), (-1, 8.0, True)),
    "compilation_cache": TEXTS,
    "gs.step": (("warmup_step", "gs_step"), ("step", "", None)),
    "gs.epochs": ((1, 350, 0.5), (0, -1.0, True)),
}


def changed(**values):
    """GOOD with some values replaced, by dotted keys."""
    config = copy.deepcopy(GOOD)
    for key, value in values.items():
        *sections, last = key.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[last] = value
    return config


def test_every_rule_has_its_cases():
    of_method, of_phase = rules_of("simclr"), PRETRAINING.phase_rules
    sections = {f"method.{key}" for key in of_method} | {f"gs.{key}" for key in of_phase}
    assert CASES.keys() == PRETRAINING.rules.keys() | sections


@pytest.mark.parametrize("wrap", [ConfigDict, dict])
def test_a_good_configuration_passes(wrap):
    check(wrap(GOOD))


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (good, _) in CASES.items() for value in good])
def test_allowed_values(key, value):
    check(changed(**{key: value}))


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (_, bad) in CASES.items() for value in bad])
def test_values_that_are_not_allowed(key, value):
    message = rf"^config\.{re.escape(key)} must be .+, not {re.escape(repr(value))}\.$"
    with pytest.raises(ConfigError, match=message):
        check(changed(**{key: value}))


def test_messages_state_the_rule():
    with pytest.raises(ConfigError, match=r"^config\.batch_size must be a whole number of at least 2, not 0\.$"):
        check(ConfigDict(changed(batch_size=0)))
    with pytest.raises(ConfigError, match=r"must be 'larc', 'sgd' or 'adamw', not 'adam'\.$"):
        check(changed(**{"optimizer.name": "adam"}))
    with pytest.raises(ConfigError, match=r"must be two numbers \(low, high\) with 0 < low <= high <= 1, not"):
        check(changed(**{"augment.area": (0.5, 0.2)}))
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("batchsize", "batch_size"),
        ("data.tilesize", "data.tile_size"),
        ("optimizer.wight_decay", "optimizer.weight_decay"),
        ("optimizer.eps_", "optimizer.eps"),
        ("flip", "augment.flip"),
        ("data.zzz", None),
        ("extra", None),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(key, guess):
    ending = f"; did you mean config.{guess}?" if guess else "."
    with pytest.raises(ConfigError) as error:
        check(changed(**{key: 1}))
    assert str(error.value) == f"config.{key} is not a key of the configuration{ending}"


@pytest.mark.parametrize("key", [key for key in flatten(GOOD) if key != "task"])
def test_a_missing_key_is_named(key):
    *sections, last = key.split(".")
    config = copy.deepcopy(GOOD)
    place = config
    for section in sections:
        place = place[section]
    del place[last]
    with pytest.raises(ConfigError, match=rf"^config\.{re.escape(key)} is missing: it must be .+\.$"):
        check(config)


def test_a_missing_section_and_a_value_in_place_of_a_section():
    config = copy.deepcopy(GOOD)
    del config["method"]
    with pytest.raises(ConfigError, match=r"^config\.method\.name is missing"):
        check(config)
    with pytest.raises(ConfigError, match=r"^config\.method is a section of keys and must not be 3\.$"):
        check(changed(method=3))


def test_phases_must_be_sections_of_a_phase():
    with pytest.raises(ConfigError, match=r"phases names 'gss', but config\.gss is .*; did you mean config\.gs\?"):
        check(changed(phases=("warmup", "gss")))
    with pytest.raises(ConfigError, match=r"phases names 'data', but config\.data is no section of a phase\.$"):
        check(changed(phases=("data",)))
    check(changed(phases=("warmup", "gs", "late"), late={"step": "gs_step", "epochs": 1}))
    with pytest.raises(ConfigError, match=r"^config\.late\.epochs must be .*, not 0\.$"):
        check(changed(phases=("warmup", "late"), late={"step": "gs_step", "epochs": 0}))


def test_a_phase_that_is_left_out_on_the_command_line_keeps_its_section():
    check(ConfigDict(changed(phases=("gs",))))


def test_image_folder_needs_a_folder(tmp_path):
    check(changed(**{"data.name": "image_folder", "data.path": str(tmp_path)}))
    with pytest.raises(ConfigError, match=r"config\.data\.split of an image_folder"):
        check(changed(**{"data.name": "image_folder", "data.path": str(tmp_path), "data.split": "val"}))
    with pytest.raises(ConfigError, match=r"use --config=configs/gs\.py:folder"):
        check(changed(**{"data.path": str(tmp_path)}))
    (tmp_path / "file").touch()
    missing, file = str(tmp_path / "missing"), str(tmp_path / "file")
    for path, found in (("", "not ''"), (missing, f"and there is no {missing}"), (file, f"not {file!r}")):
        with pytest.raises(ConfigError, match=rf"--config\.data\.path=FOLDER, {re.escape(found)}\.$"):
            check(changed(**{"data.name": "image_folder", "data.path": path}))


def test_a_labelled_folder_is_not_pretrained_on_as_a_whole(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    with pytest.raises(ConfigError, match=r"masks are no images to pretrain on: give its folder images\.$"):
        check(changed(**{"data.name": "image_folder", "data.path": str(tmp_path)}))


def test_the_guidance_map_has_more_than_one_value():
    with pytest.raises(ConfigError, match=r"1x1: raise config\.augment\.size or lower config\.model\.output_stride"):
        check(changed(**{"augment.size": 63, "model.output_stride": 32}))
    check(changed(**{"augment.size": 64, "model.output_stride": 32}))
    check(changed(**{"augment.size": 32, "model.output_stride": 32, "phases": ("warmup",)}))  # has no guidance
    coarse = {"augment.size": 48, "model.output_stride": 32}
    with pytest.raises(ConfigError, match=r"1x1: raise config\.augment\.size"):
        check(changed(**coarse))
    check(changed(**coarse, **{"guidance.stage": 3}))  # of stride 16
    with pytest.raises(ConfigError, match=r"1x1: raise config\.guidance\.size or lower config\.model\.output_stride"):
        check(changed(**coarse, **{"guidance.stage": 3, "guidance.size": 31}))
    check(changed(**coarse, **{"guidance.stage": 2, "guidance.size": 31}))


def test_views_are_not_enlarged_for_the_guidance():
    with pytest.raises(ConfigError, match=r"guidance\.size must be at most config\.augment\.size, 64, not 65\.$"):
        check(changed(**{"guidance.size": 65}))


def test_micro_batches_divide_the_batch():
    check(changed(batch_size=32, micro_batches=8))
    with pytest.raises(ConfigError, match=r"^config\.micro_batches must divide config\.batch_size, 32, not 5\.$"):
        check(changed(batch_size=32, micro_batches=5))


def test_a_branch_has_a_schedule_per_phase_and_a_start_of_its_own():
    good = {"branch": "runs/warmup", "schedule.restart": True}
    check(changed(**good))
    for bad in ({"schedule.restart": False}, {"phases": ("warmup",)}, {"init": "encoder.safetensors"}):
        with pytest.raises(
            ConfigError, match=r"^config\.branch goes on .* needs config\.schedule\.restart=True, a phase more"
        ):
            check(changed(**good | bad))


def test_an_unknown_task_is_named():
    with pytest.raises(ConfigError, match=r"config\.task must be 'pretrain', 'segment', .*, not 'train'"):
        check(changed(task="train"))


@pytest.mark.parametrize("file", [segment, evaluate])
def test_a_labelled_folder_needs_a_folder_and_classes(file, tmp_path):
    config = file.get_config("folder")
    with pytest.raises(ConfigError, match=r"config\.data\.path must be the folder of the labelled images"):
        check(config)
    config.data.path = str(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.data\.classes must name two classes or more, not 0"):
        check(config)
    config.data.classes = ("a", "b")
    check(config)
    config.data.split = "block"
    with pytest.raises(ConfigError, match=r"config\.data\.block must be at least the tile size, 256"):
        check(config)
    config.data.update({"block": 256, "name": "sample"})
    with pytest.raises(ConfigError, match=r"config\.data\.path is given but config\.data\.name is 'sample'"):
        check(config)


def test_class_weights_are_as_many_as_the_classes(tmp_path):
    config = segment.get_config("folder")
    config.data.update({"path": str(tmp_path), "classes": ("a", "b", "c")})
    config.loss.class_weights = (1.0, 2.0)
    with pytest.raises(ConfigError, match=r"a number for each of the 3 classes, or none, not 2"):
        check(config)
    for preset, classes in (("potsdam", 6), ("loveda_urban", 7), ("sample", 6)):
        config = segment.get_config(preset)
        config.data.path = "" if preset == "sample" else str(tmp_path)
        config.loss.class_weights = (1.0,) * classes
        check(config)
        config.loss.class_weights = (1.0,) * (classes - 1)
        with pytest.raises(ConfigError, match=f"each of the {classes} classes, or none, not {classes - 1}"):
            check(config)


def test_a_probe_that_is_on_needs_its_data(tmp_path):
    config = gs.get_config("folder")
    config.data.path = str(tmp_path)
    check(config)
    config.probe.every_epochs = 1.0
    with pytest.raises(ConfigError, match=r"config\.probe\.data\.path must be the folder"):
        check(config)


def test_every_task_has_a_config():
    assert SCHEMAS.keys() == {file.get_config().task for file in (gs, segment, evaluate, predict, export, compare)}


def test_a_phase_says_its_length_in_epochs_or_steps():
    assert phase_length({"epochs": 3, "step": "gs_step"}, 7) == 21
    assert phase_length({"steps": 300}, 7) == 300


def test_flatten_names_nested_keys():
    nested = ConfigDict({"a": 1, "b": {"c": (1, 2), "d": {"e": "x"}}})
    assert flatten(nested) == {"a": 1, "b.c": (1, 2), "b.d.e": "x"}


def test_differing_survives_json():
    assert differing(json.loads(json.dumps(GOOD)), ConfigDict(GOOD)) == []
    assert differing(flatten(GOOD), GOOD) == []


@pytest.mark.parametrize(
    ("key", "value", "differs"),
    [
        ("augment.area", [0.4, 1.0], False),
        ("augment.area", (0.4, 1), False),
        ("augment.area", (0.4, 0.9), True),
        ("schedule.peak", 1, False),
        ("schedule.peak", True, True),
        ("schedule.restart", 0, True),
        ("data.path", None, True),
        ("extra", 1, True),
    ],
)
def test_differing_names_the_key(key, value, differs):
    expected = [key] if differs else []
    assert differing(GOOD, changed(**{key: value})) == expected
    assert differing(changed(**{key: value}), GOOD) == expected


def test_differing_sorts_several_keys():
    assert differing(GOOD, changed(**{"seed": 1, "batch_size": 4, "gs.epochs": 9})) == [
        "batch_size",
        "gs.epochs",
        "seed",
    ]


@pytest.mark.parametrize("pattern", ["a{9999999999}", "(" * 5000, "("])
def test_a_pattern_that_no_engine_takes_is_refused(pattern):
    assert not PATTERN.holds(pattern)


def test_what_no_configuration_holds_is_one_sentence():
    nested = {}
    for _ in range(5000):
        nested = {"a": nested, "b": 1}
    with pytest.raises(ConfigError, match=r"^config has sections nested without end"):
        check({"task": "pretrain", "a": nested})
    for task in ({"a": 1}, [1], None):
        with pytest.raises(ConfigError, match=r"^config\.task(\.a)? must be '"):
            check({"task": task} if not isinstance(task, dict) else {"task": [task]})
    with pytest.raises(ConfigError, match=r"^config\.1 is not a key of the configuration"):
        check({"task": "predict", 1: 2})
