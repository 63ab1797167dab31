"""Two Ray nodes on this machine, each with a lease folder of its own below the given one.

Prints the address. A line on stdin removes the second node as a power cut would, the next one starts
another in its place, and so on; `off` or `on` is printed when it is done. The line `head` kills what Ray
runs on the first node. The end of stdin ends the cluster.
"""

import sys
import threading
import time
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


def reap(head: Any) -> None:
    """Let nothing of a killed head node stay as a zombie, which its workers would take for alive."""
    while True:
        for processes in list(head.all_processes.values()):
            for one in processes:
                one.process.poll()
        time.sleep(0.2)


def main(folder: Path) -> None:
    # Else a lost node counts as alive for ten seconds, and a sweep waits for a new agent there.
    soon = {"health_check_period_ms": 300, "health_check_initial_delay_ms": 1000}
    head = {**node(folder / "head"), "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**node(folder / "second"))
    threading.Thread(target=reap, args=(cluster.head_node,), daemon=True).start()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "head\n":
            for raylet in cluster.head_node.all_processes["raylet"]:
                raylet.process.kill()
            print("off", flush=True)
        elif second is not None:
            cluster.remove_node(second, allow_graceful=False)
            second = None
            print("off", flush=True)
        else:
            second = cluster.add_node(**node(folder / "second"))
            print("on", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
