from setuptools import find_namespace_packages, setup

setup(
    name="autocl-sweeper",
    version="0.1.0",
    description=(
        "Continual-learning hyper-parameter search for Hydra: a sequential top-k sweeper, "
        "and a launcher that gives every job a GPU of its own"
    ),
    python_requires=">=3.10",
    # Named one by one: train/, tests/ and conf/ lie beside the packages and stay in the repository.
    packages=find_namespace_packages(
        include=["hydra_plugins.*", "autocl_sweeper", "autocl_sweeper.*"]
    ),
    # Makes an editable install a plain path entry. Setuptools' import finder, which it is otherwise,
    # cannot list the hydra_plugins namespace, and Hydra 1.3 finds plugins by listing it.
    package_dir={"": "."},
    package_data={"autocl_sweeper": ["py.typed"]},
    entry_points={
        "console_scripts": ["autocl = autocl_sweeper.cli:main"],
        # How Hydra 1.4 finds plugins; 1.3 scans hydra_plugins. Read at install time.
        "hydra.plugins": [
            "autocl = hydra_plugins.hydra_autocl_sweeper.sweeper:AutoCLSweeper",
            "gpu = hydra_plugins.hydra_autocl_sweeper.launcher:GPULauncher",
            "include = hydra_plugins.hydra_autocl_sweeper.include:FileConfigSource",
            "guard = hydra_plugins.hydra_autocl_sweeper.guard:StartGuard",
            "ray = hydra_plugins.hydra_autocl_sweeper.launcher:RayLauncher",
        ],
    },
    install_requires=[
        "hydra-core>=1.3.8,<1.5",
        "hydra-joblib-launcher>=1.2.0",
        "nvidia-ml-py>=12.550.52",
        "omegaconf>=2.3.0",
        "optuna>=4.0.0",
        "rich>=13.0.0",
    ],
    extras_require={
        "ray": ["ray>=2.50"],
        "train": [
            "accelerate>=1.15",
            "numpy>=2.0",
            "peft>=0.21",
            "pillow>=12",
            "safetensors>=0.8",
            "scikit-learn>=1.9",
            "sentencepiece>=0.2",
            "torch>=2.13",
            "torchmetrics>=1.9",
            "transformers>=5.23",
        ],
        "test": [
            "hydra-submitit-launcher>=1.2.0",
            "hypothesis>=6.100",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            "setuptools>=77",
        ],
        "bench": [
            "hydra-submitit-launcher>=1.2.0",
            "ray>=2.50",
        ],  # benchmarks/launchers/overhead.py
        "test14": ["hydra-optuna-sweeper>=1.4.0rc3"],  # that for Hydra 1.3 wants an Optuna before 3
        "check": ["mypy>=2.4", "ruff>=0.17", "types-PyYAML"],
    },
    classifiers=[
        "Framework :: Hydra",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
    ],
)
