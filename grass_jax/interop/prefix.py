"""Which of the networks in a weights file is the encoder: what lies below one prefix of the names."""

from collections.abc import Iterable

FIRST, BLOCK = "conv1.weight", "layer1.0.conv1.weight"
DEEP_STEMS = ("conv1.0.weight", "stem.0.weight")


def choose_prefix(names: Iterable[str], wanted: str = "") -> str:
    """Finds the prefix below which a ResNet lies.

    Files have many: `module.` of DistributedDataParallel, `state_dict.module.encoder_q.` of MoCo, `backbone.`,
    `classy_state_dict.base_model.model.trunk._feature_blocks.` of VISSL.

    Args:
        names: of all tensors, with the keys of nested dicts.
        wanted: the prefix, with or without its last dot, `.` for no prefix; empty where the file has only one ResNet.

    Returns:
        The prefix with its last dot, or "".

    Raises:
        ValueError: there is no ResNet, or one of another kind, or several; half a sentence about the file.
    """
    names = set(names)
    below = sorted(name.removesuffix(BLOCK) for name in names if name == BLOCK or name.endswith("." + BLOCK))
    found = [prefix for prefix in below if prefix + FIRST in names]
    listed = ", ".join(prefix.rstrip(".") or "." for prefix in found[:10])
    if wanted:
        prefix = wanted.strip(".") + "." if wanted.strip(".") else ""
        if prefix in found:
            return prefix
        refuse_deep_stem(prefix, names)
        raise ValueError(f"has no ResNet below {wanted!r}: set config.init_prefix to one of {listed or 'none'}")
    if len(found) > 1:
        raise ValueError(f"has {len(found)} networks ({listed}): choose one of them with config.init_prefix=NAME")
    if found:
        return found[0]
    for prefix in below:
        refuse_deep_stem(prefix, names)
    if not names:
        raise ValueError("has no tensors by name: give a file of a state dict, as model.state_dict() has it")
    raise ValueError(
        f"has no ResNet, no {FIRST} and {BLOCK} below one name, but {len(names)} other tensors "
        f"({', '.join(sorted(names)[:5])}, ...): give the state dict of a ResNet"
    )


def refuse_deep_stem(prefix: str, names: set[str]) -> None:
    """Raises ValueError where the stem has three convolutions."""
    if any(prefix + stem in names for stem in DEEP_STEMS):
        raise ValueError(
            "holds a ResNet whose stem has three convolutions (ResNet-C or -D, resnetv1c, resnet50d), which is another "
            "network: give one whose stem is a single 7x7 convolution, as torchvision's"
        )
