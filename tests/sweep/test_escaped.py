"""What a listed suggestion holds arrives as it is written, `\\${...}` as the text `${...}`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.bench import Bench

APP = """
import json, os, hydra
@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(json.dumps({"event": "start", "x": str(cfg.x)}) + "\\n")
    return 1.0
if __name__ == "__main__":
    main()
"""
CONFIG = r"""
task: a
y: 5
x: 0
hydra:
  sweeper:
    handover: {init_from: null}
    task_params:
      a: [{x: '\${y}'}, {x: 'a \${oc.env:HOME} b'}, {x: '${hydra.sweeper.top_k}'}]
"""


def test_an_escaped_interpolation_is_text_and_another_one_is_resolved(
    benches: Callable[..., Bench], tmp_path: Path
) -> None:
    (tmp_path / "app/conf").mkdir(parents=True)
    (tmp_path / "app/app.py").write_text(APP)
    (tmp_path / "app/conf/config.yaml").write_text(CONFIG)
    bench = benches(tmp_path / "app/app.py")
    bench.run("hydra/sweeper=autocl", "hydra/launcher=basic", "task=a", "hydra.sweeper.top_k=2")
    assert [event["x"] for event in bench.ledger()] == ["${y}", "a ${oc.env:HOME} b", "2"]
