"""`python -m autocl_sweeper.script`: sweep any command line, whose program knows nothing of us."""
