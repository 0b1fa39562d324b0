"""The Ray Serve application: an entry, and a node on each machine."""

import os
import time

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from cluster.entry import Entry, EntrySettings
from cluster.environment import APPLICATION, HEAD_RESOURCE, SECONDS_TO_FINISH
from cluster.model_archive import ModelArchive
from cluster.node import Node
from torchserve_client.config import TorchServeError
from torchserve_client.status import ServingSettings

HEAD = {HEAD_RESOURCE: 0.001}
POLL_SECONDS, ALL_NODES_SECONDS = 0.5, 300.0
MAX_QUEUED = 256  # as job_queue_size in config.properties; more requests are refused with 503


def deploy(
    archive: ModelArchive, settings: ServingSettings, folder: str, nodes: tuple[int, int], entry_settings: EntrySettings
) -> None:
    """Deploys to the cluster that this process is connected to.

    Returns when all nodes serve, or when one does after ALL_NODES_SECONDS. folder: of the nodes, on each machine.
    nodes: the least and the most. Raises TorchServeError if no node can serve.
    """
    queue = max(1, settings.batch_size // 2)
    least, most = nodes
    node = serve.deployment(
        Node,
        max_ongoing_requests=settings.batch_size + queue,
        max_queued_requests=MAX_QUEUED,
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0},
        autoscaling_config=AutoscalingConfig(
            min_replicas=least,
            initial_replicas=most,
            max_replicas=most,
            target_ongoing_requests=settings.batch_size,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class="cluster.sticky_router.StickyRouter",
            request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 1},
            request_routing_stats_period_s=2.0,
        ),
        health_check_period_s=2.0,
        graceful_shutdown_timeout_s=SECONDS_TO_FINISH,
    )
    entry = serve.deployment(
        Entry,
        health_check_period_s=2.0,
        ray_actor_options={"num_cpus": 0, "resources": HEAD},  # so the end of another machine cuts only its own answers
    )
    serve.start(proxy_location="Disabled")
    bound = entry.bind(node.bind(archive, settings, folder), entry_settings)
    serve.run_many([serve.RunTarget(bound, APPLICATION, route_prefix=None)], wait_for_applications_running=False)
    _await_nodes()


def _await_nodes() -> None:
    """Ray Serve itself would wait for all nodes for ever, so one machine that cannot serve would stop the others."""
    deadline = time.monotonic() + ALL_NODES_SECONDS
    while True:
        application = serve.status().applications[APPLICATION]
        if application.status == "RUNNING":
            return
        is_late = time.monotonic() > deadline
        if is_late and all(deployment.replica_states.get("RUNNING") for deployment in application.deployments.values()):
            return
        if application.status == "DEPLOY_FAILED" or (is_late and application.status == "UNHEALTHY"):
            reason = " ".join(application.message.split())[-300:]
            advice = f"the logs are in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs/serve"
            raise TorchServeError(f"The cluster cannot serve ({reason}): {advice}.")
        time.sleep(POLL_SECONDS)


def machine_names() -> list[str]:
    """Of all machines of the cluster. Raises TorchServeError if two have the same name: each has a folder by it."""
    names = sorted(str(machine["NodeName"]) for machine in ray.nodes() if machine["Alive"])
    if twice := {name for name in names if names.count(name) > 1}:
        raise TorchServeError(f"Two machines have the name {min(twice)}: start one of them with another --name.")
    return names
