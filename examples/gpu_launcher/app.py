"""A number estimated by throwing dice: the more points, the longer it takes and the closer it comes."""

import logging
import os
import random

import hydra
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    dice = random.Random(cfg.seed)
    inside = sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(cfg.points))
    pi = 4 * inside / cfg.points
    log.info("pi is about %.4f, by process %d on %s", pi, os.getpid(), device())
    return abs(pi - 3.141592653589793)


def device() -> str:
    """The GPU this job was given, as CUDA sees it before any library is imported."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") or "a processor core"


if __name__ == "__main__":
    main()
