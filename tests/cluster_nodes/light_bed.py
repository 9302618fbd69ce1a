"""Run as a program: several Ray nodes at one address, for machines without namespaces; obeys words on its input.

Prints the cluster's address; `add` starts a node with 4 CPUs, `remove` kills the one that was added last, and the end
of the input ends all. A program of its own, since Ray takes its authentication mode once a process.
"""

import sys

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100 * 2**20


def main() -> None:
    """Head without actors' CPUs, two workers, then whatever is said."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False},
    )
    added = [cluster.add_node(num_cpus=4, object_store_memory=OBJECT_STORE_BYTES) for _ in range(2)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "add":
                added.append(cluster.add_node(num_cpus=4, object_store_memory=OBJECT_STORE_BYTES))
            case "remove":
                cluster.remove_node(added.pop(), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
