"""A model that is one number: it learns a task by moving to its target, and so forgets the others."""

import json
from pathlib import Path
from statistics import mean

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> dict[str, object]:
    number = json.loads(Path(cfg.init_from, "model.json").read_text()) if cfg.init_from else 0.0
    number += cfg.rate * (cfg.targets[cfg.task] - number)

    checkpoint = Path(HydraConfig.get().runtime.output_dir, "checkpoint")
    checkpoint.mkdir()
    (checkpoint / "model.json").write_text(json.dumps(number))

    scores = {task: 1 - (cfg.targets[task] - number) ** 2 for task in cfg.seen_tasks or [cfg.task]}
    return {"score": mean(scores.values()), "eval": scores}


if __name__ == "__main__":
    main()
