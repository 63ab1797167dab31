"""One Hydra job: composed by the controller, run in its own process."""
