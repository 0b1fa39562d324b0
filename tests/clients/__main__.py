"""Runs other people's clients against TorchServe with the packaged demo model, and against the front before it.

Prints each client's checks, and writes the table of docs/clients.md into .cache/clients/table.md. The exit status is 1
if a check failed. NAME is a part of a client's name; without one, all clients run. uv is in tests/requirements.txt.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.clients import report, runner
from tests.clients.catalogue import CLIENTS
from tests.clients.runner import CACHE, Address
from tests.front.conftest import running_front
from tests.support.gguf_snapshot import write_tokenizer_of
from tests.support.serving import make_home, running_server
from torchserve_client.config import PROJECT
from torchserve_client.keys import Keys
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

DEMO = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"


@contextmanager
def serving(home: Path) -> Iterator[list[Address]]:
    config = make_home(home, model_store=PROJECT / "model_store")
    with running_server(config):
        ManagementClient(config).register(ServingSettings(workers=1, batch_size=8, max_batch_delay_ms=10))
        key = Keys(config, "inference").current()
        assert key, "the configuration asks for keys"
        with running_front(config) as port:
            yield [
                Address("TorchServe", f"{config.inference_url}/predictions/llamacpp/1.0/v1", key, 400),
                Address("front", f"http://127.0.0.1:{port}/v1", key, 401),
            ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = [name.lower() for name in parser.parse_args().names]
    clients = [client for client in CLIENTS if not names or any(name in client.title.lower() for name in names)]
    if not clients:
        parser.error(f"no such client; there are {', '.join(client.title for client in CLIENTS)}")
    if any(client.is_node for client in clients):
        runner.install_node_packages()
    for client in clients:
        if not client.is_node:
            print(f"Installing {client.title} {client.version}", flush=True)
            runner.install_python_packages(client)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that TorchServe ends as well
    rows = []
    with tempfile.TemporaryDirectory(prefix="clients-") as folder, serving(Path(folder, "home")) as addresses:
        tokenizer = write_tokenizer_of(DEMO, Path(folder, "tokenizer"))
        for client in clients:
            results = {address.name: runner.run(client, address, tokenizer) for address in addresses}
            rows.append((client, results))
            print("\n".join(report.lines(client, results)), flush=True)
            (CACHE / "table.md").write_text(report.table(rows))
    return 0 if all(report.is_passed(results) for _, results in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
