"""Arms as configurations: what they share, what they change, and what is refused."""

import pytest

from configs import compare
from grass_jax.comparison.arms import chosen_arms, config_hash, pretraining_of, segmentation_of, training_hash
from grass_jax.config import ConfigError
from grass_jax.schemas import check


@pytest.mark.parametrize("preset", compare.PRESETS)
def test_every_arm_of_every_preset_passes_the_check(preset, tmp_path):
    (tmp_path / "images").mkdir()
    config = compare.get_config(preset)
    if config.data.name != "sample":
        config.data.path = str(tmp_path)
        config.pretrain.data.path = str(tmp_path / "images")
    if preset == "folder":
        config.data.classes = ("town", "country")
    check(config)
    assert chosen_arms(config)
    for name in config.arms:
        pretraining_of(config, name, 3)
    segmentation_of(config, 3, "50", 1, init="")


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"sample, folder, dubai_small, .*, not 'huge'"):
        compare.get_config("huge")


def test_the_causal_arms_differ_in_what_the_protocol_says(tiny_compare):
    config = tiny_compare(only=(), groups=("causal",))
    arms = chosen_arms(config)
    causal = ["random", "warmup", "simclr_updates", "simclr_compute", "gs", "gs_random"]
    assert list(arms) == [*causal, "imagenet", "imagenet_simclr", "imagenet_gs"]
    arms = {name: arms[name] for name in causal}
    trunk = {name: "t" if arm.trunk else "" for name, arm in arms.items()}
    runs = {name: pretraining_of(config, name, 5, ratio=1.5, trunk=trunk[name]) for name in arms}
    assert {run.seed for run in runs.values()} == {5}
    assert [runs[name].branch for name in arms] == ["", "", "t", "t", "t", "t"]
    assert [runs[name][runs[name].phases[-1]].step for name in list(arms)[2:]] == ["warmup_step"] * 2 + ["gs_step"] * 2
    assert [runs[name][runs[name].phases[-1]].epochs for name in list(arms)[2:]] == [1.0, 1.5, 1.0, 1.0]
    assert runs["gs"].guidance.boxes == "guided"
    assert runs["gs_random"].guidance.boxes == "random"
    assert all(run.schedule.restart for run in runs.values())
    # beside that they are one recipe
    flat = []
    for run in runs.values():
        plain = run.to_dict()
        for key in ("name", "preset", "branch", "phases", "simclr"):
            del plain[key]
        del plain["guidance"]["boxes"]
        flat.append(plain)
    assert all(plain == flat[0] for plain in flat)


def test_arms_are_chosen_by_group_and_by_name_in_their_order(tiny_compare):
    assert list(chosen_arms(tiny_compare(only=(), groups=("breadth",)))) == list(compare.BASELINES)
    assert list(chosen_arms(tiny_compare(only=("gs_random", "random")))) == ["random", "gs_random"]
    with pytest.raises(ConfigError, match=r"^config\.only must name arms, .*random.*, not 'sg'\.$"):
        chosen_arms(tiny_compare(only=("sg",)))
    with pytest.raises(ConfigError, match=r"^config\.groups must name groups, .*causal.*, not 'all'\.$"):
        chosen_arms(tiny_compare(only=(), groups=("all",)))
    with pytest.raises(ConfigError, match=r"^config\.only names byol, which is of the group 'breadth': name that in"):
        chosen_arms(tiny_compare(only=("gs", "byol")))
    with pytest.raises(ConfigError, match=r"choose no arm"):
        chosen_arms(tiny_compare(only=(), groups=()))


def test_branches_follow_the_length_of_the_guided_one(tiny_compare):
    config = tiny_compare(**{"pretrain.gs.epochs": 4.0})
    lengths = {"simclr_updates": 4.0, "simclr_compute": 5.0, "gs": 4.0, "gs_random": 4.0}
    for name, epochs in lengths.items():
        own = pretraining_of(config, name, 0, ratio=1.25)
        assert own[own.phases[-1]].epochs == epochs


def test_another_method_replaces_the_section(tiny_compare):
    config = tiny_compare()
    assert pretraining_of(config, "byol", 0).method.name == "byol"
    assert "temperature" not in pretraining_of(config, "byol", 0).method
    total = config.pretrain.warmup.epochs + config.pretrain.gs.epochs
    assert pretraining_of(config, "byol", 0).warmup.epochs == total


def test_changes_that_do_not_fit_are_named_with_the_arm(tiny_compare):
    config = tiny_compare()
    config.arms.gs.changes = {"guidance": {"threshold": 2.0}}
    with pytest.raises(ConfigError, match=r"^config\.arms\.gs: config\.pretrain\.guidance\.threshold must .*2\.0\.$"):
        pretraining_of(config, "gs", 0)
    config.arms.gs.changes = {"guided": {"threshold": 0.5}}
    with pytest.raises(ConfigError, match=r"^config\.arms\.gs.*guided"):
        pretraining_of(config, "gs", 0)
    config.arms.gs.trunk = "wormup"
    with pytest.raises(ConfigError, match=r"^config\.arms\.gs\.trunk must name an arm, .*, not 'wormup'\.$"):
        chosen_arms(config)
    with pytest.raises(ConfigError, match=r"^config\.base must name an arm, .*, not 'wormup'\.$"):
        chosen_arms(tiny_compare(base="wormup"))


def test_the_budget_of_the_report_is_measured(tiny_compare):
    with pytest.raises(ConfigError, match=r"^config\.report\.budget must be one of .*'4', 'all', not '50'\.$"):
        check(tiny_compare(**{"report.budget": "50"}))


def test_the_hash_follows_what_enters_the_numbers(tiny_compare):
    config = tiny_compare()
    before = {name: config_hash(config, name, "probe", "d") for name in config.arms}
    assert len(set(before.values())) == len(before)
    same = tiny_compare(**{"results": "elsewhere.jsonl", "pretrain.log.every": 3, "seeds": (4,)})
    assert config_hash(same, "gs", "probe", "d") == before["gs"]
    other = tiny_compare(**{"pretrain.warmup.epochs": 3.0})
    assert config_hash(other, "gs", "probe", "d") != before["gs"]  # its trunk is another one
    assert config_hash(config, "gs", "probe", "e") != before["gs"]
    ignored = tiny_compare(**{"data.ignored": (("south", 0, 0, 9, 9),)})
    assert config_hash(ignored, "gs", "probe", "d") != before["gs"]
    assert training_hash(ignored, "gs") == training_hash(config, "gs")
    assert config_hash(tiny_compare(**{"probe.l2": 0.1}), "gs", "probe", "d") != before["gs"]
    fine = config_hash(config, "gs", "finetune", "d")
    assert config_hash(tiny_compare(**{"probe.l2": 0.1}), "gs", "finetune", "d") == fine
    assert config_hash(tiny_compare(**{"segment.schedule.peak": 0.1}), "gs", "finetune", "d") != fine
