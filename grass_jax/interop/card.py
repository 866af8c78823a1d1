"""The model card: what weights are, what they read, what they come from, and how they are loaded."""

import datetime
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from grass_jax.config import flatten
from grass_jax.interop.pytorch_code import encoder_code, network_code, plain_code, prepare_code, smp_code
from grass_jax.interop.trained import Trained, data_name
from grass_jax.models import build_encoder
from grass_jax.models.resnet import Bottleneck

# what has a place of its own on the card, or says nothing of the weights
ELSEWHERE = ("task", "name", "preset", "data", "bands", "model", "init", "phases", "evaluate", "probe", "log")
ELSEWHERE += ("checkpoint", "compilation_cache", "init_prefix", "init_ignore", "init_step")
# what a run records of single areas and of its course, not of the weights
UNTOLD = {"area_miou", "learning_rate", "images_per_second", "input_wait"}
AUTHOR = "Trained with grass_jax"
# strides and dilations of the stages in mmsegmentation
STAGES = {16: ((1, 2, 2, 1), (1, 1, 1, 2)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}


class Export(NamedTuple):
    """What is exported, and how.

    Attributes:
        trained: the network with its record.
        part: encoder or network.
        format: torchvision, timm or mmsegmentation.
        output: the weights file, or timm's folder.
        licence: of the data, as the user states it; may be empty.
        data: the data in the user's words; may be empty.
    """

    trained: Trained
    part: str
    format: str
    output: Path
    licence: str = ""
    data: str = ""

    @property
    def card(self) -> Path:
        """The card's path."""
        return self.output / "README.md" if self.format == "timm" else self.output.with_suffix(".md")


def write_card(export: Export, path: Path) -> None:
    """Writes the model card, in Markdown."""
    trained = export.trained
    model, bands = trained.config["model"], trained.bands
    name = f"ResNet-{model['name'].removeprefix('resnet')}"
    head = f" with a {trained.config['head']['name']} head" if export.part == "network" else ""
    lines = [
        f"# {name}{head} for aerial and satellite images",
        f"{AUTHOR}: {trained.method}. Exported on {datetime.date.today()} after step {trained.step} "
        f"(phase {trained.phase}).",
        "## Architecture",
        *_table(
            [
                ("encoder", f"{model['name']} as torchvision builds it"),
                ("width of the stem", model["width"]),
                ("output stride", model["output_stride"]),
                ("computed in", model["dtype"]),
                *_head(export),
            ]
        ),
        "## Bands and normalisation",
        f"Input: {len(bands)} bands of {bands.dtype}. A stored value v becomes (v - low) / (high - low), cut to 0..1, "
        "then (v - mean) / std.",
        *_bands(trained),
        "## Data",
        *([export.data] if export.data else []),
        f"{data_name(trained.config['data'])}, {trained.tiles} tiles of {trained.config['data']['tile_size']} pixels.",
        f"Licence of the data: {export.licence or 'not stated by whoever exported the weights'}.",
        "## Training",
        *_table(_settings(trained.config)),
        "## Metrics",
        *_metrics(export),
        "## Versions",
        ", ".join(f"{package} {version}" for package, version in trained.versions.items() if version)
        + f"; exported by grass_jax {metadata.version('grass_jax')}.",
        "## Loading",
        *_loading(export),
    ]
    path.write_text(_joined(lines), encoding="utf-8")


def is_card(path: Path) -> bool:
    """Whether a file is what `write_card` has written."""
    try:
        title, _, second, *_ = path.read_bytes()[:1000].decode("utf-8", "replace").split("\n")
    except (OSError, ValueError):
        return False
    return title.startswith("# ResNet-") and second.startswith(AUTHOR)


def _joined(lines: Iterable[str]) -> str:
    """Paragraphs with empty lines between; the rows of a table stay together."""
    text, before = "", ""
    for line in lines:
        text += ("\n" if line.startswith("|") and before.startswith("|") else "\n\n") + line
        before = line
    return text.strip() + "\n"


def _table(rows: Iterable[tuple[Any, ...]], head: tuple[str, ...] = ("", "")) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(_text(cell).replace("|", "\\|") for cell in row) + " |" for row in cells]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_text, value)) if isinstance(value, tuple | list) else str(value)


def _head(export: Export) -> list[tuple[str, Any]]:
    if export.part == "encoder":
        return [("part", "the encoder; its head is left out")]
    head = {key: value for key, value in export.trained.config["head"].items() if key != "dropout"}
    return [*((f"head.{key}", value) for key, value in head.items()), ("classes", export.trained.classes)]


def _bands(trained: Trained) -> list[str]:
    bands = trained.bands
    colour = dict(zip(bands.rgb, ("red", "green", "blue"), strict=False))
    rows = [
        (f"{number} {colour.get(number, '')}".strip(), *values)
        for number, *values in zip(bands.numbers, bands.low, bands.high, bands.mean, bands.std, strict=True)
    ]
    return _table(rows, ("band of the file", "low", "high", "mean", "std"))


def _settings(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A row for every key or section of a configuration that shaped the weights."""
    init = Path(config.get("init", "")).name or "random weights"
    step = f", step {config['init_step']}" if config.get("init_step") else ""
    rows: list[tuple[str, Any]] = [("begun from", init + step), ("phases", config["phases"])]
    for key, value in config.items():
        if key not in ELSEWHERE:
            value = Path(value).name if isinstance(value, str) else value  # whose folders lead nowhere for a reader
            section = hasattr(value, "items")
            rows.append((key, "; ".join(f"{k} {_text(v)}" for k, v in flatten(value).items()) if section else value))
    return rows


def _metrics(export: Export) -> list[str]:
    summary, trained = export.trained.summary, export.trained
    if trained.classes:
        found, whose = summary.get("test", {}), "of the whole network on the test scenes"
        of = summary.get("chosen_step")
    else:
        ends = {name: phase["ends"] for name, phase in summary.get("phases", {}).items()}
        found = ends | {"probe": summary.get("probe", {})}
        whose, of = "means over the last tenth of each phase, and the probes", summary.get("steps")
    numbers = {k: v for k, v in flatten(found).items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rows = [(key, value) for key, value in numbers.items() if not UNTOLD & set(key.split("."))]
    if not rows:
        return ["None were recorded."]
    other = f" They are those of step {of}, not of these weights." if of != trained.step else ""
    return [f"As the run recorded them: {whose}.{other}", *_table(rows, ("metric", "value"))]


def _loading(export: Export) -> list[str]:
    """The ways that lead to a network, as code."""
    trained, file = export.trained, export.output.name
    model, bands = trained.config["model"], len(trained.bands)
    plain, strided = model["width"] == 64, model["output_stride"] != 32
    # of a basic block, timm and mmsegmentation dilate other convolutions than torchvision would
    settable = issubclass(build_encoder(**model).block, Bottleneck)
    stride = f"The run computed features at output stride {model['output_stride']}"
    lines = ["Images as they are stored to what the network reads:", _python(prepare_code(trained.bands))]
    if export.part == "network":
        code = network_code(model, trained.config["head"], len(trained.classes), bands, file)
        return [*lines, "The network, in PyTorch:", _python(code)]
    match export.format:
        case "timm":
            arguments = f'"local-dir:{file}", pretrained=True, num_classes=0, in_chans={bands}'
            arguments += f", output_stride={model['output_stride']}" if strided and settable else ""
            lines += ["With timm:", _python(f"import timm\n\nencoder = timm.create_model({arguments})\n")]
            if strided:
                lines += [
                    stride + (", as the model above does." if settable else "; the model above computes them at 32.")
                ]
        case "mmsegmentation":
            lines += [
                "With mmsegmentation, in a model's config:",
                f"```\n{_backbone(model, bands, file, settable)}\n```",
            ]
            lines += ["The type is ResNet, not ResNetV1c, whose stem is another."]
            if strided:
                asked = ", for which the strides and dilations above are."
                lines += [stride + (asked if settable else "; the config above computes them at 32.")]
        case _:
            if plain:
                lines += ["With torchvision:", _python(plain_code(model, bands, file))]
                lines += ["With segmentation_models_pytorch:", _python(smp_code(model, bands, file))]
            else:
                lines += [
                    f"torchvision, timm and segmentation_models_pytorch build only width 64 by name; this encoder has "
                    f"{model['width']}, and the class below builds it from torchvision's."
                ]
            if strided:
                lines += [f"{stride}, as the class below does."]
            if strided or not plain:
                lines += ["The features of all four stages:", _python(encoder_code(model, bands, file))]
    return lines


def _python(code: str) -> str:
    return f"```python\n{code}```"


def _backbone(model: Mapping[str, Any], bands: int, file: str, settable: bool) -> str:
    width, stride = model["width"], model["output_stride"]
    more = f" stem_channels={width}, base_channels={width}," if width != 64 else ""
    if stride in STAGES and settable:
        strides, dilations = STAGES[stride]
        more += f"\n    strides={strides}, dilations={dilations}, contract_dilation=True,"
    return (
        f"backbone=dict(type='ResNet', depth={model['name'].removeprefix('resnet')}, in_channels={bands},{more}\n"
        f"    init_cfg=dict(type='Pretrained', checkpoint='{file}', prefix='backbone.'))"
    )
