"""The Ray Serve application: an entry, and a node on each machine."""

import os

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from cluster.entry import Entry, EntrySettings
from cluster.environment import HEAD_RESOURCE, SECONDS_TO_FINISH
from cluster.model_archive import ModelArchive
from cluster.node import Node
from torchserve_client.config import TorchServeError
from torchserve_client.status import ServingSettings

NAME = "llama"
HEAD = {HEAD_RESOURCE: 0.001}
MAX_QUEUED = 256  # as job_queue_size in config.properties; more requests are refused with 503


def deploy(
    archive: ModelArchive, settings: ServingSettings, folder: str, nodes: tuple[int, int], entry_settings: EntrySettings
) -> None:
    """Deploys to the cluster that this process is connected to, and returns when a node serves.

    folder: of the nodes, on each machine. nodes: the least and the most. Raises TorchServeError if no node can serve.
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
    try:
        serve.run(bound, name=NAME, route_prefix=None)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        advice = f"the logs are in {os.environ['RAY_TMPDIR']}/ray/session_latest/logs/serve"
        raise TorchServeError(f"The cluster cannot serve ({reason}): {advice}.") from error


def count_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())
