"""The benchmarks run, at toy sizes, and say what they measured."""

import argparse
import importlib.util
import json
import os
import re
import time
import zlib
from contextlib import nullcontext
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import parts, scale, step, timing, variants
from benchmarks.job import make_job
from grass_jax import build
from grass_jax.models import ENCODERS, resnet
from grass_jax.models.resnet import BasicBlock, ResNet
from grass_jax.planning.program_cost import Roofline

TINY = ["--model=resnet18", "--width=4", "--size=32", "--tiles=4"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Half of a ResNet-18, and few maps: compiling is most of the time."""
    monkeypatch.setitem(ENCODERS, "resnet18", partial(ResNet, (1, 1, 1, 1), BasicBlock))
    monkeypatch.setattr(parts, "BOX_MAPS", 2)


def cells(text: str) -> list[list[str]]:
    """The rows of all Markdown tables in a text, without headers and rulers."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    rulers = [i for i, line in enumerate(lines) if set(line[0]) == {"-"}]
    return [line for i, line in enumerate(lines) if i not in rulers and i + 1 not in rulers]


def products_of_a_view() -> int:
    """Operations of the small network's convolutions on one view of 32: two for each tap that meets a pixel."""

    def conv(side: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> int:
        places = np.arange(0, side, stride)[:, None] + np.arange(kernel) - kernel // 2
        return 2 * int(((places >= 0) & (places < side)).sum()) ** 2 * inputs * outputs

    found = conv(32, 3, 4, 7, 2) + 2 * conv(8, 4, 4)
    for side, inputs in ((8, 4), (4, 8), (2, 16)):
        outputs = 2 * inputs
        found += conv(side, inputs, outputs, 3, 2) + conv(side // 2, outputs, outputs)
        found += conv(side, inputs, outputs, 1, 2)
    return found


def test_functions_are_timed_in_turns_and_the_first_round_is_not_counted(monkeypatch):
    clock = iter(range(10**6))
    ran = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    functions = {name: partial(ran.append, name) for name in "abc"}
    times = timing.interleaved(functions, rounds=3, calls=2)
    assert "".join(ran) == "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert {name: list(values) for name, values in times.items()} == {name: [0.5, 0.5, 0.5] for name in "abc"}


def test_a_differences_median_is_taken_over_the_rounds():
    times = {
        "targets": np.array([1.0, 1.0, 1.0]),
        "main forward": np.array([2.0, 9.0, 2.0]),
        "forward and backward": np.array([6.0, 13.0, 7.0]),
        "whole update": np.array([8.0, 15.0, 10.0]),
    }
    found = parts.with_differences(times)
    assert [*found][1:4] == ["main forward", "main backward", "forward and backward"]
    np.testing.assert_array_equal(found["main backward"], [4, 4, 5])
    np.testing.assert_array_equal(found["optimiser"], [1, 1, 2])
    del times["targets"]
    np.testing.assert_array_equal(parts.with_differences(times)["optimiser"], [2, 2, 3])


@pytest.mark.parametrize(
    ("room", "devices", "expected"), [(1000, 1, 256), (255, 1, 128), (20, 8, 16), (3, 8, 8), (200, 6, 126)]
)
def test_the_batch_is_halved_until_it_fits(room, devices, expected):
    assert step.largest_that_fits(lambda tiles: tiles <= room, most=256, devices=devices) == expected


def test_a_process_of_its_own_compiles_a_step_and_says_how_long_it_took(capsys):
    start = time.perf_counter()
    step.main([*TINY, "--devices=1", "--only=warm-up"])
    passed = time.perf_counter() - start
    assert 0.1 * passed < float(capsys.readouterr().out) < passed
    step.main([*TINY[:3], "--devices=2", "--only=tiles"])
    assert int(capsys.readouterr().out) == step.CPU_TILES


def test_each_step_is_compiled_into_an_empty_cache_and_out_of_a_full_one(tmp_path, monkeypatch):
    program = tmp_path / "benchmarks" / "step.py"  # in place of the real one: says what it was asked, and what it found
    program.parent.mkdir()
    program.write_text(
        "import os, pathlib, sys\n"
        "cache, asked = os.environ.get('JAX_COMPILATION_CACHE_DIR'), '_'.join(sys.argv[1:])\n"
        "if cache is None: sys.exit(print(-1))\n"
        "cache = pathlib.Path(cache)\ncache.mkdir(exist_ok=True)\n"
        "print('a log line')\nprint(len(list(cache.iterdir())) + (os.environ['JAX_PLATFORMS'] == 'cpu') / 2)\n"
        "(cache / asked).touch()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    caches = {kind: str(tmp_path / kind) for kind in ("warm-up", "GS")}
    found = step.compile_seconds(["--size=32"], caches, 4)
    assert found == {kind: {"cold": 0.5, "cached": 1.5} for kind in caches}
    assert step.in_a_process(["--only=tiles"]) == -1  # an empty name would be a folder, too
    program.write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"--size=32 --tiles=4 --only=GS has failed"):
        step.compile_seconds(["--size=32"], {"GS": caches["GS"]}, 4)


def test_what_was_compiled_into_a_folder_is_taken_from_it_and_costs_the_same(tmp_path):
    hits, before = [], jax.config.jax_compilation_cache_dir

    def compiled():
        return jax.jit(lambda x: jnp.sin(x @ x)).lower(jnp.ones((16, 16))).compile()

    first = compiled()
    jax.monitoring.register_event_listener(lambda event, **_: event.endswith("/cache_hits") and hits.append(event))
    for folder, count in (("a", 0), ("a", 1), ("b", 1), ("a", 2)):
        with step.kept_in(str(tmp_path / folder)):
            again = compiled()
        assert len(hits) == count
        assert step.cost_of(again) == step.cost_of(first)
    assert jax.config.jax_compilation_cache_dir == before


def test_step_times_both_steps_and_their_parts(tmp_path, capsys, monkeypatch):
    asked = []

    def in_a_process(arguments, cache=""):
        asked.append((arguments[-1], cache.rpartition("/")[2]))
        return {"--only=tiles": 4.0, "--only=GS": 2.0}.get(arguments[-1], 1.0)

    monkeypatch.setattr(step, "in_a_process", in_a_process)
    step.main([*TINY[:3], "--devices=1", "--pairs=2", "--repeats=1", "--peak=0.5", f"--json={tmp_path / 'step.json'}"])
    found = json.loads((tmp_path / "step.json").read_text())
    rows = {row[0]: row[1:] for row in cells(capsys.readouterr().out)}
    more = found["steps"]["GS"]["flops_per_device"] - found["steps"]["warm-up"]["flops_per_device"]
    forward = 8 * products_of_a_view()
    assert forward < more < 1.1 * forward  # beside it the head and the similarities, forwards and backwards
    for name, numbers in found["steps"].items():
        seconds = numbers["seconds"]["median"]
        assert rows[name][0].startswith(f"{1000 * seconds:,.1f} (")
        assert numbers["views_per_second"] == pytest.approx(8 / seconds)
        assert numbers["share_of_peak"] == pytest.approx(numbers["flops_per_device"] / seconds / 0.5e12)
        assert numbers["compiled_memory_bytes"] > 8 * 32 * 32 * 3 * 4  # the views
        assert numbers["compile_seconds"] == dict.fromkeys(["cold", "cached"], {"warm-up": 1.0, "GS": 2.0}[name])
    assert rows["GS / warm-up"][0].startswith(f"{found['ratios']['GS / warm-up']['median']:.3f} (")
    assert [name for name in found["parts"] if name != parts.MAPS_TO_CROPS] == [
        *("augmentation", "guidance forward, head, loss, map", "map to box", "crop", "main forward", "main backward"),
        *("forward and backward", "optimiser", "whole update"),
    ]
    assert "optimiser (difference)" in rows
    assert rows["whole update"][-1]
    assert not rows[parts.MAPS_TO_CROPS][-1]  # as many maps are no part of the step
    twice = [(f"--only={kind}", kind) for kind in ("warm-up", "GS") for _ in range(2)]
    assert asked == [("--only=tiles", ""), *twice]


def test_a_target_network_is_one_more_part_and_micro_batches_reach_the_encoder(monkeypatch):
    wrapped = []
    monkeypatch.setattr(build, "MicroBatched", lambda encoder, parts: wrapped.append(parts) or encoder)
    parser = argparse.ArgumentParser()
    step.add_options(parser)
    job = step.make_job(parser.parse_args([*TINY[:3], "--method=byol", "--micro_batches=2"]), jax.devices()[:1])
    assert wrapped == [2]
    calls = parts.part_calls(job, 4)
    assert "targets" in calls
    projections, momentum = calls["targets"]()
    assert projections.shape == (4, 2, 256)
    assert float(momentum) == pytest.approx(0.99)


def test_scaling_is_held_against_the_first_number_of_devices():
    runs = [{"devices": n, "tiles": 8, "seconds": {"median": s, "low": s, "high": s}} for n, s in [(2, 4.0), (8, 2.0)]]
    first, second = scale.compared(runs, virtual=False)
    assert (first["views_per_second"], first["efficiency"]) == (4.0, 1.0)
    assert (second["views_per_second"], second["efficiency"]) == (8.0, 0.5)
    assert scale.compared(runs, virtual=True)[1]["efficiency"] == 2.0


def test_virtual_devices_take_the_place_of_those_already_asked_for(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8 --b=2")
    flags = scale.environment(4)["XLA_FLAGS"]
    assert re.findall(r"device_count=(\d+)", flags) == ["4"]
    assert flags.startswith("--a=1")
    assert "--b=2" in flags


def test_a_worker_counts_what_devices_send(capsys):
    tiny = [*TINY, "--step=warm-up", "--tiles_per_device=4", "--rounds=1"]
    found = {}
    for devices in (1, 2):
        scale.main([*tiny, f"--worker={devices}"])
        found[devices] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [found[n][mode]["tiles"] for mode in ("strong", "weak") for n in (1, 2)] == [4, 4, 4, 8]
    assert not found[1]["strong"]["sent_bytes"]
    # what two devices must exchange: a gradient for every parameter, in float32
    job = make_job(argparse.Namespace(**found[2]["options"]), jax.devices()[:1])
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(job.state().params))
    sent = found[2]["strong"]["sent_bytes"]
    assert parameters < sent["all-reduce"] < 1.3 * parameters
    # four more tiles add their embeddings' gradients
    assert found[2]["weak"]["sent_bytes"]["all-reduce"] == pytest.approx(sent["all-reduce"], rel=0.1)
    text = scale.written(scale.compared([found[n]["weak"] for n in (1, 2)], virtual=True))
    assert [row[0] for row in cells(text)] == ["1", "2"]
    assert "all-reduce" in cells(text)[1][-1]


def test_variants_are_held_against_the_step_and_one_that_changes_nothing_is_not_timed(monkeypatch, capsys):
    chosen = ("1x1 convolutions as convolutions", "gradients as XLA writes them on CPU", "state not donated")
    monkeypatch.setitem(variants.CHANGES, "nothing at all", nullcontext)
    variants.main([*TINY, "--tiles=8", "--rounds=1", "--only=1x1,XLA,not donated,nothing"])
    rows = {row[0]: row[1:] for row in cells(capsys.readouterr().out)}
    assert rows.pop("nothing at all") == ["the same program", "", ""]
    assert rows["as it is"][1] == "1.000 (1.000 to 1.000)"
    assert set(rows) == {"as it is", *chosen}


def gradient_program(layer, size, platform):
    """The program of a layer's gradients on another platform than this machine's, before it is compiled there."""
    x = jnp.zeros((2, size, size, 4))
    variables = layer.init(jax.random.key(0), x)
    gradient = jax.grad(lambda variables, x: layer.apply(variables, x).sum(), argnums=(0, 1))
    return jax.jit(gradient).trace(variables, x).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("kernel", "same"), [(1, False), (3, True)])
def test_the_variant_of_1x1_convolutions_changes_no_others(kernel, same):
    ours, other = (cls(8, kernel, stride=2) for cls in (resnet.Conv, variants.AsConvolution))
    programs = [gradient_program(layer, 9, "cpu") for layer in (ours, other)]
    assert (programs[0] == programs[1]) == same
    x = jnp.arange(2.0 * 9 * 9 * 4).reshape(2, 9, 9, 4)
    variables = ours.init(jax.random.key(0), x)
    np.testing.assert_allclose(ours.apply(variables, x), other.apply(variables, x), rtol=1e-5)


def test_the_variant_of_the_pooling_changes_it_on_other_platforms_and_nothing_else():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            return resnet.max_pool(resnet.Conv(4, 3)(resnet.Conv(4, 1)(x)))

    with variants.CHANGES["pooling's gradient as on CPU"]():
        programs = [gradient_program(Layers(), 8, "cuda")]
    programs += [gradient_program(Layers(), 8, platform) for platform in ("cuda", "cpu")]
    counts = [[text.count(name) for name in ("select_and_scatter", "convolution(", "dot_general")] for text in programs]
    assert counts[0] == [0, *counts[1][1:]]
    assert [count[0] for count in counts] == [0, 1, 0]
    assert counts[1][1:] != counts[2][1:]  # where all gradients are as on CPU


def test_a_state_that_is_not_donated_takes_more_memory():
    parser = argparse.ArgumentParser()
    step.add_options(parser)
    job = make_job(parser.parse_args(TINY[:3]), jax.devices()[:1])
    kept, donated = (variants.memory_of(variants.compiled_step(job, 4, donate=donate)) for donate in (False, True))
    assert kept > donated


@pytest.mark.slow
def test_scale_measures_each_number_of_devices_in_a_process_of_its_own(tmp_path, capsys):
    written = tmp_path / "scale.json"
    scale.main([*TINY, "--virtual", "--devices=1,2", "--tiles_per_device=2", "--rounds=1", f"--json={written}"])
    assert "virtual" in capsys.readouterr().out
    found = json.loads(written.read_text())
    assert [row["devices"] for row in found["weak"]] == [1, 2]


def test_the_share_of_the_loss_holds_the_longer_of_arithmetic_and_memory(monkeypatch):
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):  # which the import sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    from benchmarks.loss_growth import share_of

    assert share_of(Roofline(10e-6, 30e-6, 50e-6), 16.0) == pytest.approx(0.5)
    assert share_of(Roofline(30e-6, 10e-6, 50e-6), 16.0) == pytest.approx(0.5)


def test_without_torch_a_sentence_says_what_to_install(monkeypatch):
    from benchmarks import torch_step

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install torch"):
        torch_step.main([])


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: pip install torch")


@needs_torch
def test_the_torch_program_is_the_original(vectors):
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks.torch_gs import Network, Trainer

    z = vectors("step_mini_96")
    network = Network([int(n) for n in z["layers"]]).double()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 or name.startswith("dense"):
            original = re.sub(r"dense(\d)", lambda m: f"heads.{int(m[1]) - 1}.clf.0", name)
            shape = network.get_parameter(name.replace("bias", "weight")).shape
            seed = zlib.crc32(original.encode()) & 0x7FFFFFFF
            drawn = np.random.RandomState(seed).uniform(-1, 1, parameter.shape) / np.sqrt(np.prod(shape[1:]))
            parameter.data = torch.from_numpy(drawn.astype(np.float32).astype(np.float64))
    trainer = Trainer(network, temperature=float(z["temperature"]))
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)[..., None, None]
    for t, images in enumerate(z["images_u8_nchw"]):
        views = torch.from_numpy(((images / np.float32(255) - mean) / std).astype(np.float64))
        found = trainer(views, float(z["lr"][t]))
        np.testing.assert_array_equal(found.boxes, z["box_f64run"][t])
        np.testing.assert_allclose(found.loss_before, z["loss_before_f64run"][t], rtol=1e-9)
        np.testing.assert_allclose(found.loss, z["loss_after_f64run"][t], rtol=1e-9)
        names = [re.sub(r"heads\.(\d)\.clf\.0", lambda m: f"dense{int(m[1]) + 1}", str(n)) for n in z["names"]]
        lengths = [network.get_parameter(name).detach().norm().item() for name in names]
        np.testing.assert_allclose(lengths, z["param_l2_f64run"][t], rtol=1e-9, atol=1e-12)


@needs_torch
def test_the_torch_program_computes_our_losses_and_boxes(tmp_path, capsys):
    from benchmarks import torch_step

    written = tmp_path / "torch.json"
    sizes = ["--layers", "1", "1", "1", "1", "--width=8", "--size=64", "--tiles=4", "--pairs=1"]
    torch_step.main([*sizes, f"--json={written}"])
    found = json.loads(written.read_text())
    np.testing.assert_allclose(found["losses"]["ours"], found["losses"]["PyTorch"], rtol=1e-5)
    assert found["equal_boxes"] == 1
    assert len(cells(capsys.readouterr().out)) == 3


def test_lam_like_maps_have_both_signs():
    maps = parts.lam_like_maps(4, 7)
    assert maps.shape == (4, 7, 7)
    assert maps.dtype == jnp.float32
    assert float(maps.min()) < 0 < float(maps.max())
