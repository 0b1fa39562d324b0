"""Simulates 10 to 1,000 nodes that serve conversations, and compares routings by cached share and first token.

    python -m benchmarks.cluster_simulation            all tables
    python -m benchmarks.cluster_simulation two-nodes  only the check against two real nodes

steady:    a steady load on 10, 100 and 1,000 nodes
load:      the first token, p99, and tokens/s a node, of 30 nodes by load
outage:    one node dies and returns two minutes later: first token, p99, and cached share, before, meanwhile, after
two-nodes: 40 conversations of 5 turns on two nodes, 20 seeds, beside the measured record in measured.py
queue:     the two nodes, by how many requests a node accepts
node:      long prompts on one node, beside docs/measurements.md

Needs no server and no model. The same seed gives the same tables. costs.py has the cost model with its sources.
"""

from benchmarks import argument_parser
from benchmarks.cluster_simulation.report import TABLES


def main() -> None:
    parser = argument_parser("cluster_simulation", __doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"{', '.join(TABLES)}; all of them if none is named")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (1)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.tables if name not in TABLES]
    if unknown:
        parser.error(f"There is no table {unknown[0]!r}; the tables are {', '.join(TABLES)}.")
    for name in arguments.tables or TABLES:
        print(f"\n{name}\n")
        for line in TABLES[name](arguments.seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
