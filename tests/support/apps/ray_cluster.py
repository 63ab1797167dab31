"""Two Ray nodes on this machine, each with a lease folder of its own below the given one.

Prints the address. A line on stdin removes the second node as a power cut would, the next one starts
another in its place, and so on; `off` or `on` is printed when it is done. The end of stdin ends the
cluster.
"""

import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster


def node(folder: Path) -> dict[str, Any]:
    return {
        "num_cpus": 2,
        "object_store_memory": 80 * 2**20,
        "include_dashboard": False,
        "env_vars": {"AUTOCL_LEASE_DIR": str(folder)},
    }


def main(folder: Path) -> None:
    # Else a lost node counts as alive for ten seconds, and a sweep waits for a new agent there.
    soon = {"health_check_period_ms": 300, "health_check_initial_delay_ms": 1000}
    head = {**node(folder / "head"), "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**node(folder / "second"))
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        if second is not None:
            cluster.remove_node(second, allow_graceful=False)
            second = None
        else:
            second = cluster.add_node(**node(folder / "second"))
        print("on" if second else "off", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
