"""The tasks that use a fine-tuned network: scoring it on another labelled folder, and mapping images."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from grass_jax.bands import RGB
from grass_jax.buckets import on_this_machine, open_workdir, place
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.resume import run_config
from grass_jax.config import ConfigError, phase_length
from grass_jax.data.landscape import landscape
from grass_jax.initial import images_folder
from grass_jax.report.atomic import replacing
from grass_jax.report.environment import environment
from grass_jax.report.log import write_json
from grass_jax.report.records import read_record
from grass_jax.schemas import check
from grass_jax.segment.evaluate import check_class_names, draw_evaluation, evaluate, log_scores, write_confusion
from grass_jax.segment.labelled_data import open_all_scenes, open_data
from grass_jax.segment.map_writer import OutputError
from grass_jax.segment.model import Segmentation, counted_step, load_segmenter
from grass_jax.segment.predict import predict_files
from grass_jax.sharding import local_mesh, sum_over_processes

DEMONSTRATION = 950  # seed of the landscape that is mapped when no image is given; nothing has trained on it


def evaluate_model(config: Any, workdir: str | Path) -> dict[str, Any] | None:
    """Scores a fine-tuned network on all scenes of a labelled folder, or on the sample's test scenes.

    Args:
        config: a ConfigDict of `configs/evaluate.py`.
        workdir: folder of `summary.json` and the figures.

    Returns:
        The content of `summary.json`; None on processes other than the first.

    Raises:
        ConfigError: a key or value that cannot be run.
    """
    check(config)
    began, workdir = time.monotonic(), open_workdir(workdir)
    network = _network(config)
    config.data.gsd = config.data.gsd or network.gsd or 0.0
    check_class_names(config.evaluate.without, network.classes)
    folder = config.data.name == "segmentation_folder"
    labelled = None if folder else open_data(config.data, numbers=network.bands.numbers)
    if labelled and (labelled.bands.numbers, labelled.bands.dtype) != (network.bands.numbers, network.bands.dtype):
        raise ConfigError(
            f"config.data.name: the images of {config.data.name} hold {labelled.bands.dtype}, and the model reads "
            f"{network.bands.dtype}: score it on a folder of its kind of images."
        )
    classes = labelled.classes if labelled else tuple(config.data.classes)
    if classes != network.classes:
        known, given = ", ".join(network.classes), ", ".join(classes)
        advice = (
            "score it on a folder, with --config=configs/evaluate.py:folder --config.data.path=FOLDER."
            if not folder
            else "name the model's, in its order, and their ids or colours in config.data.mask_values."
        )
        raise ConfigError(f"The model knows the classes {known}, and the data's are {given}: {advice}")
    what = {"model": str(place(config.model, absolute=True)), "data": config.data.to_dict()}
    old = workdir / "summary.json"
    recorded = read_record(old, "it is written anew")
    if recorded and {key: recorded.get(key) for key in what} != json.loads(json.dumps(what)):
        raise ConfigError(f"{workdir} holds the scores of another model or data set: give another --workdir.")
    scenes = labelled.test if labelled else open_all_scenes(config.data, network.bands)
    logging.info("Scoring %s on %d scenes.", config.model, len(scenes))
    seen = seen_in_training(config, [scene.name for scene in scenes])
    settings = config.evaluate
    evaluation = evaluate(
        network.forward(local_mesh()),
        scenes,
        classes,
        window=settings.window or network.window,
        overlap=settings.overlap,
        batch_size=settings.batch_size,
        bands=network.bands,
        boundary=settings.boundary,
        without=settings.without,
        pictures=settings.figure_scenes,
        title="scoring",
    )
    if jax.process_index() != 0:
        return None
    write_confusion(workdir, evaluation, classes)
    draw_evaluation(workdir / "figures", evaluation, classes, network.colours, title=Path(config.data.path).name)
    log_scores("scores", evaluation.scores)
    summary = {**what, "seconds": round(time.monotonic() - began, 1), "scenes_seen_in_training": seen}
    summary["test"] = evaluation.scores
    write_json(workdir / "summary.json", {**summary, "environment": environment()})
    return summary


def predict_images(config: Any, workdir: str | Path) -> dict[str, Any]:
    """Maps images with a fine-tuned network; the processes of a job share the images.

    Args:
        config: a ConfigDict of `configs/predict.py`.
        workdir: where the maps go when `config.output` is empty.

    Returns:
        Of this process, `written`: pixels of each class by map; `skipped`: reasons by image.

    Raises:
        ConfigError: a key or value that cannot be run, or, in all processes when all are done, images that could not be
            mapped.
    """
    check(config)
    network = _network(config)
    workdir = on_this_machine(workdir, "--workdir of a task that maps")
    devices = len(jax.local_devices())
    if not config.input and (network.bands.numbers, network.bands.dtype) != (RGB.numbers, RGB.dtype):
        raise ConfigError(
            "config.input must be given: the drawn scene has red, green and blue of 8 bits, and the network reads "
            f"{len(network.bands)} band(s) of {network.bands.dtype}."
        )
    try:
        outcome = predict_files(
            network.forward(local_mesh()),
            config.input or demonstration(workdir),
            on_this_machine(config.output or workdir, "config.output"),
            classes=network.classes,
            colours=network.colours,
            bands=network.bands,
            window=config.window or network.window,
            overlap=config.overlap,
            batch_size=-(-config.batch_size // devices) * devices,
            probabilities=config.probabilities,
            quicklook=config.quicklook,
            gsd=network.gsd,
        )
    except OutputError as error:
        raise ConfigError(f"config.output: {error}") from error
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ConfigError(f"config.input: {error}") from error
    for path, counts in outcome.written.items():
        total = max(1, sum(counts.values()))
        shares = ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in counts.items() if count)
        logging.info("%s: %s", path, shares or "no pixel with data")
    # one that raised alone would end the others in the middle of their images
    written, skipped = sum_over_processes(np.array([len(outcome.written), len(outcome.skipped)], np.int64)).tolist()
    if skipped:
        where = "see above" if jax.process_count() == 1 else "see the logs of all processes"
        raise ConfigError(f"{skipped} of {skipped + written} images could not be mapped, {where}; the others are done.")
    return outcome._asdict()


def demonstration(workdir: Path) -> Path:
    """Draws a georeferenced scene of the sample's landscape to map, and returns its path."""
    import rasterio
    from affine import Affine

    path = workdir / "input" / "scene.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    image, _ = landscape(DEMONSTRATION)
    profile = {"driver": "GTiff", "height": image.shape[0], "width": image.shape[1], "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32633", "transform": Affine(0.8, 0, 500_000, 0, -0.8, 5_800_000), "compress": "deflate"}
    with replacing(path) as temporary, rasterio.open(temporary, "w", **profile, photometric="RGB") as raster:
        raster.write(np.moveaxis(image, -1, 0))
    logging.info("No image is given: mapping a drawn scene, %s.", path)
    return path


def seen_in_training(config: Any, names: Sequence[str]) -> int:
    """Counts the scenes to score on of which the network was trained on crops, and warns where there are some.

    Args:
        config: of the scoring.
        names: of the scenes, relative to the images' folder.

    Returns:
        Their number; 0 where the run of the network was on another folder.
    """
    crops = place(config.model) / "labels.txt"
    if config.data.name != "segmentation_folder" or not crops.exists():
        return 0  # the sample and the published sets are scored on their own test part
    data = run_config(config.model, task="segment")["data"]
    if data["name"] != config.data.name or images_folder(data) != images_folder(config.data):
        return 0
    trained = {line.rsplit("\t", 2)[0] for line in os.fsdecode(crops.read_bytes()).split("\n")}
    seen = [name for name in names if name in trained]
    if seen:
        logging.warning(
            "%d of these %d scenes trained this network (%s, ...): give another config.data.path; the score of its "
            "run's own test scenes is in %s.",
            *(len(seen), len(names), seen[0], place(config.model) / "summary.json"),
        )
    return len(seen)


def _network(config: Any) -> Segmentation:
    if not config.model:
        raise ConfigError("config.model must be the folder of a fine-tuning run: --config.model=runs/segment_sample.")
    try:
        network = load_segmenter(config.model, config.model_step or None)
        if not config.model_step and counted_step(config.model) is None:
            _warn_of_unfinished(config.model)
    except FileNotFoundError as error:
        raise ConfigError(f"config.model: {error}") from error
    return network


def _warn_of_unfinished(model: str) -> None:
    run, done = run_config(model, task="segment"), kept_steps(model)[-1]
    end = 1 if run["head"]["name"] == "linear" else sum(phase_length(run[name], 1) for name in run["phases"])
    if done < end:
        logging.warning("%s has done %d of %d steps: start its command again, which goes on.", model, done, end)
