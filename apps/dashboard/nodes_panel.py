"""The nodes of a cluster on the server app's page: their state and load, the sums, and how clients reach them.

Drawn only where .cluster/entry.json exists. The page never has the cluster's key.
"""

from typing import Literal

import streamlit as st

from apps.dashboard.cluster_nodes import ClusterNode, ClusterNodes, NodeState, Reading
from apps.dashboard.connect_panel import key_command
from apps.dashboard.wording import counted, megabytes
from apps.shared.labels import as_label
from cluster.entry_file import ClusterEntry, entry_file, read_entry
from torchserve_client.config import ServerConfig, TorchServeError

REFRESH_SECONDS = 2
MOST_ROWS = 50  # a table of all nodes of a large cluster would take a browser seconds, every two seconds
MOST_PROBLEMS = 5
LONGEST_PROBLEM = 300  # characters
SPACE = "\u00a0"  # no line breaks at it in a narrow column
BADGES: dict[NodeState, str] = {
    "serving": ":green-badge[:material/check_circle: serving]",
    "starting": ":blue-badge[:material/hourglass_top: starting]",
    "idle": ":gray-badge[:material/bedtime: idle]",
    "draining": ":orange-badge[:material/logout: draining]",
    "gone": ":red-badge[:material/cancel: gone]",
}
OWN_SERVER = (
    "Each node has a TorchServe of its own. The state above and the sidebar's buttons are about another one, "
    "that of config.properties: it need not run."
)


def show_nodes(config: ServerConfig) -> None:
    st.caption(OWN_SERVER)
    st.fragment(_show, run_every=REFRESH_SECONDS, key="nodes")(config)


def _show(config: ServerConfig) -> None:
    try:
        entry = read_entry(config.home)
    except TorchServeError as error:
        st.error(str(error), icon=":material/error:")
        return
    if entry is None:
        st.info("The cluster has ended.", icon=":material/stop_circle:")
        return
    reading = _shared_nodes(str(config.path), config, entry.url, entry.key).latest()
    if reading.problem:
        st.error(reading.problem, icon=":material/error:")
    elif reading.nodes:
        _show_sums(reading)
        _show_table(reading.nodes)
        _show_problems(reading.nodes)
    else:
        st.info("The cluster has no nodes yet. This page goes on by itself.", icon=":material/hourglass_top:")
    _show_address(config, entry)


@st.cache_resource(max_entries=4)
def _shared_nodes(path: str, _config: ServerConfig, url: str, key: str) -> ClusterNodes:
    """All pages of a server share it."""
    return ClusterNodes(ClusterEntry(url, key), entry_file(_config.home))


def _has_report(node: ClusterNode) -> bool:
    """Whether its figures are those of now."""
    return node.slots > 0 and node.state != "gone"


def _show_sums(reading: Reading) -> None:
    nodes = reading.nodes
    reports = [node for node in nodes if _has_report(node)]
    serving = sum(node.state == "serving" for node in nodes)
    requests, slots = sum(node.requests for node in reports), sum(node.slots for node in reports)
    waiting = reading.waiting + sum(node.waiting for node in reports)
    color: Literal["green", "orange"] = (
        "green" if all(node.state in ("serving", "idle") for node in nodes) else "orange"
    )
    with st.container(horizontal=True, gap="xsmall", key="node_sums"):
        st.badge(f"{serving:,} of {counted(len(nodes), 'node')} serving", color=color)
        st.badge(f"{requests:,} of {counted(slots, 'slot')} busy", color="blue" if requests else "gray")
        st.badge(f"{counted(waiting, 'request')} waiting", color="orange" if waiting else "gray")
        st.badge(f"{sum(node.tokens_per_second for node in reports):,.0f} tokens/s", color="gray")
        st.badge(megabytes(sum(node.memory_bytes for node in reports)), color="gray")


def _show_table(nodes: tuple[ClusterNode, ...]) -> None:
    """Of a large cluster, the nodes that do not serve and the busiest ones."""
    shown = nodes
    if len(nodes) > MOST_ROWS:
        shown = tuple(sorted(nodes, key=lambda node: (node.state == "serving", -node.requests - node.waiting)))
    st.table([_row(node) for node in shown[:MOST_ROWS]], hide_index=True)
    if len(nodes) > MOST_ROWS:
        st.caption(f"{MOST_ROWS} of {len(nodes):,} nodes: first those that do not serve, then the busiest.")
    st.caption(
        "Cached: the share of the prompt tokens of the last minutes that a node had in its KV cache. "
        "An idle machine's node starts when the others are busy for a while."
    )


def _row(node: ClusterNode) -> dict[str, str]:
    has_report = _has_report(node)
    return {
        "Node": as_label(node.name),
        "State": BADGES[node.state],
        "Slots busy": f"{node.requests:,}{SPACE}of{SPACE}{node.slots:,}" if has_report else "",
        "Waiting": f"{node.waiting:,}" if has_report else "",
        "Tokens/s": f"{node.tokens_per_second:,.0f}" if has_report else "",
        "Cached": f"{100 * node.cached_share:.0f} %" if has_report and node.cached_share is not None else "",
        "Memory": megabytes(node.memory_bytes) if has_report else "",
    }


def _show_problems(nodes: tuple[ClusterNode, ...]) -> None:
    broken = [node for node in nodes if node.problem]
    for node in broken[:MOST_PROBLEMS]:
        problem = node.problem if len(node.problem) <= LONGEST_PROBLEM else f"{node.problem[:LONGEST_PROBLEM]} …"
        st.warning(f"**{as_label(node.name)}** · {as_label(problem)}", icon=":material/warning:")
    if len(broken) > MOST_PROBLEMS:
        st.caption(f"{counted(len(broken) - MOST_PROBLEMS, 'more node')} with a problem.")


def _show_address(config: ServerConfig, entry: ClusterEntry) -> None:
    st.markdown("**The chat app** · under Settings, Server, press Use the cluster")
    st.markdown("**OpenAI's clients** · their base URL, and in the project's folder the command that prints the key")
    st.code(f"{entry.url}/v1", language=None)
    st.code(key_command(config, "cluster.key"), language="bash", wrap_lines=True)
