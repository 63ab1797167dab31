"""Ways to run jobs; each fulfils `autocl_sweeper.types.Executor`."""
