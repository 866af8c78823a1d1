"""What a run has made and what is known of it, for whoever takes it away."""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from grass_jax.bands import Bands
from grass_jax.buckets import existing
from grass_jax.checkpoints.reading import kept_steps
from grass_jax.checkpoints.resume import begun_with, intact
from grass_jax.config import phase_length
from grass_jax.report.records import read_record
from grass_jax.segment.model import counted_step, load_segmenter
from grass_jax.state import load_encoder

STEPS = {
    "warmup_step": "instance discrimination (SimCLR, ID warm-up)",
    "gs_step": "gradient guided sampling (GraSS)",
}
STEPS_OF_OTHERS = {
    "warmup_step": "self-supervised pretraining ({})",
    "gs_step": "gradient guided sampling (GraSS) with the loss of {}",
}


class Trained(NamedTuple):
    """A network with its weights and its record.

    Attributes:
        config: of the run, resolved.
        tiles: that it was trained on.
        classes: of a fine-tuned network; none for a pretrained encoder.
        versions: of the libraries that trained it.
        summary: of the run; empty where it has not ended.
        step: updates behind the weights.
        phase: in which the last of them was.
        bands: that it reads, with their normalisation.
        variables: `params` and `batch_stats`: of the encoder after pretraining, of the whole network after fine-tuning.
    """

    config: dict[str, Any]
    tiles: int
    classes: tuple[str, ...]
    versions: dict[str, Any]
    summary: dict[str, Any]
    step: int
    phase: str
    bands: Bands
    variables: dict[str, Any]

    @property
    def method(self) -> str:
        """How it was trained, in words."""
        if self.classes:
            return f"supervised fine-tuning for segmentation, head {self.config['head']['name']}"
        phases = self.config["phases"]
        steps = [self.config[name]["step"] for name in phases[: phases.index(self.phase) + 1]]
        name = self.config["method"]["name"]
        words = STEPS if name == "simclr" else STEPS_OF_OTHERS
        return ", then ".join(words[step].format(name) for step in steps)


def open_trained(workdir: str | Path, step: int = 0) -> Trained:
    """Loads a run's network, onto one device.

    Args:
        workdir: folder of a pretraining or fine-tuning run.
        step: of a checkpoint that was kept; 0 takes the one that counts: that which fine-tuning chose, else the newest.

    Returns:
        What was trained.

    Raises:
        FileNotFoundError: there is no run, it is damaged, or it has no checkpoint of that step.
    """
    workdir = existing(workdir)
    path = workdir / "config.json"
    record = read_record(path)
    with intact(path):
        task = record["config"].get("task") if "config" in record else None
    if task not in ("pretrain", "segment"):
        raise FileNotFoundError(f"{workdir} holds no run: give the --workdir of a pretraining or fine-tuning run.")
    with intact(path):
        (config, data), versions = begun_with(workdir), dict(record["environment"]["versions"])
    step = step or (counted_step(workdir) if task == "segment" else None) or kept_steps(workdir)[-1]
    network = (load_encoder if task == "pretrain" else load_segmenter)(workdir, step)
    return Trained(
        config=config,
        tiles=data["tiles"],
        classes=tuple(record["labels"]["classes"]) if task == "segment" else (),
        versions=versions,
        summary=read_record(workdir / "summary.json", "the card is without the run's figures"),
        step=step,
        phase=_phase(config, step, steps_per_epoch=data["tiles"] // data["batch_size"]),
        bands=network.bands,
        variables=network.variables,
    )


def describe(trained: Trained) -> dict[str, str]:
    """What a weights file says of itself: short text under short names, lists in JSON."""
    config, bands = trained.config, trained.bands
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    described = {
        "format": "pt",
        "method": trained.method,
        "encoder": config["model"]["name"],
        "width": config["model"]["width"],
        "output_stride": config["model"]["output_stride"],
        "bands": bands.numbers,
        "rgb": bands.rgb,
        **{key: getattr(bands, key) for key in ("dtype", "low", "high", "mean", "std")},
        "step": trained.step,
        "phase": trained.phase,
        "data": data_name(config["data"]),
        "tiles": trained.tiles,
        "config_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "grass_jax": metadata.version("grass_jax"),
    }
    if trained.classes:
        described["classes"] = trained.classes
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


def data_name(data: Mapping[str, Any]) -> str:
    """The data set's name, and that of its folder: never a whole path."""
    return " ".join([data["name"], *([Path(data["path"]).name] if data["path"] else [])])


def _phase(config: Mapping[str, Any], step: int, *, steps_per_epoch: int) -> str:
    end = 0
    for name in config["phases"]:
        end += phase_length(config[name], steps_per_epoch)
        if step <= end:
            return name
    return config["phases"][-1]
