"""What the configs of the other methods share: the main job's recipe with another method, and without guidance."""

from typing import Any

from ml_collections import ConfigDict

from configs import gs


def baseline(
    method: dict[str, Any],
    preset: str,
    *,
    small: dict[str, Any] | None = None,
    full: dict[str, Any] | None = None,
) -> ConfigDict:
    """Returns a preset of `configs/gs.py` with another method, for the same data, views, encoder and length.

    Its two phases, `warmup` and `plain`, are the method as published, for as many epochs as the main job's two have;
    `--config.phases="('warmup','gs')"` makes the second one GS training with this method's own loss.

    Args:
        method: the section `method`, full size.
        preset: of `configs/gs.py`, without `reference`.
        small: what differs in `method` with the narrow encoder of the laptop presets.
        full: what differs in other sections of the full-size presets, such as the optimiser's settings.
    """
    if preset == "reference" or preset not in gs.PRESETS:
        known = ", ".join(name for name in gs.PRESETS if name != "reference")
        raise ValueError(f"configs/baselines/{method['name']}.py has the presets {known}, not {preset!r}.")
    config: Any = gs.get_config(preset)
    narrow = config.model.width < 64
    config.method = ConfigDict(method | (small or {} if narrow else {}))
    config.update({} if narrow else full or {})
    config.plain = {"step": "warmup_step", "epochs": config.gs.epochs}
    config.name, config.phases = method["name"], ("warmup", "plain")
    return config
