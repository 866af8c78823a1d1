"""What the README shows is run."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_loop_in_the_readme_runs(capsys):
    (loop,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "compile_step" in code]
    body = loop[loop.index("mesh, aug") :]
    assert len(body.strip().splitlines()) <= 15
    names: dict = {}
    exec(loop, names)
    assert int(names["state"].step) == 4
    assert {"loss", "box_area"} <= names["metrics"].keys()
    assert all(np.isfinite(float(value)) for value in names["metrics"].values())
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_files_and_commands_in_the_readme_exist():
    root = Path(__file__).parents[1]
    for name in re.findall(r"(?:configs|docs)/\w+\.\w+", README):
        assert (root / name).exists(), name
    presets = set(re.findall(r"gs\.py:(\w+)", README))
    from configs import gs

    assert presets <= gs.PRESETS.keys()
