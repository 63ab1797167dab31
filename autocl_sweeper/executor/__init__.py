"""Ways to run jobs; each fulfils `autocl_sweeper.protocols.Executor`."""
