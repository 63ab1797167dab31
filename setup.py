from pathlib import Path

from setuptools import find_namespace_packages, setup

setup(
    name="autocl-sweeper",
    version="0.1.0",
    description=(
        "Continual-learning hyper-parameter search for Hydra: a sequential top-k sweeper, "
        "and a launcher that gives every job a GPU of its own"
    ),
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="autocl-sweeper contributors",
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Named one by one: train/, tests/ and conf/ lie beside the packages and stay in the repository.
    packages=find_namespace_packages(
        include=["hydra_plugins.*", "autocl_sweeper", "autocl_sweeper.*"],
        exclude=["autocl_sweeper.docs"],
    ),
    # Makes an editable install a plain path entry. Setuptools' import finder, which it is otherwise,
    # cannot list the hydra_plugins namespace, and Hydra 1.3 finds plugins by listing it.
    package_dir={"": "."},
    # autocl_sweeper/docs is a link to docs/: a wheel gets the pages, which `autocl docs` shows.
    package_data={
        "autocl_sweeper": ["py.typed", "docs/*.md"],
        "autocl_sweeper.page.parts": ["*.j2", "*.css", "*.js"],
    },
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
    # The lowest versions that pass the tests: docs/dependencies.md says why each package is there, and
    # constraints-oldest.txt holds the bounds of these and of the extra `test` for `make test-oldest`.
    install_requires=[
        "cloudpickle>=2.1.0",
        "cma>=4.5",
        "cmaes>=0.13",
        "hydra-core>=1.3.2,<1.5",
        "hydra-joblib-launcher>=1.2.0",
        "nvidia-ml-py>=12.550.52",
        "omegaconf>=2.2.1",
        "optuna>=5.0",
        "rich>=12.3.0",
        "scipy>=1.14",
    ],
    extras_require={
        "gp": ["torch>=2.13"],  # hydra/sweeper/search=gp
        "tensorboard": ["tensorboardX>=2.6.5"],  # hydra.sweeper.export.tensorboard
        "mlflow": ["mlflow-skinny>=3.17"],  # hydra.sweeper.export.mlflow
        "lightning": ["pytorch-lightning>=2.6"],  # autocl_sweeper.integrations.lightning
        "ray": ["ray>=2.50"],
        "report": ["jinja2>=3.1", "vl-convert-python>=1.9"],  # autocl report, plot, serve
        "completion": ["argcomplete>=3.6"],  # of `autocl` in a shell
        "train": [
            "accelerate>=1.15",
            "nltk>=3.10",
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
        "families": ["pycocotools>=2.0.11", "seqeval>=1.2.2"],  # metrics of boxes and of names
        "models": ["gguf>=0.19", "onnx>=1.23"],  # python -m train.models
        "test": [
            "hydra-submitit-launcher>=1.2.0",
            "hypothesis>=6.100",
            "pyte>=0.8.2",
            "pytest>=8.2",
            "pytest-xdist>=3.6.1",
            "setuptools>=77.0.1",
        ],
        "bench": [
            "hydra-submitit-launcher>=1.2.0",
            "ray>=2.50",
        ],  # benchmarks/launchers/overhead.py
        "test14": ["hydra-optuna-sweeper>=1.4.0rc3"],  # those for Hydra 1.3 need an Optuna before 3
        "check": ["mypy>=2.4", "ruff>=0.17", "types-PyYAML"],
        "docs": ["furo>=2025.12.19", "myst-parser>=5.2", "sphinx>=9.0.4"],  # make docs
    },
    classifiers=[
        "Framework :: Hydra",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
