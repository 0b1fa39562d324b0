"""The experiment lock, and the settings that must be restored after an experiment. Knows nothing of load.

The lock lets one experiment at a time run against a server, in any program. A note beside the lock says how the server
must serve after the experiment. A killed program leaves the note, and the next program can restore the settings.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from experiments.json_file import read_json, write_json
from experiments.plan import Setup
from experiments.records import records_folder
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy
from torchserve_client.file_lock import file_lock, is_locked
from torchserve_client.management import ManagementClient

LOCK_SECONDS = 1.0  # is_running() takes the lock for an instant


class ExperimentFailed(TorchServeError):
    """Why an experiment could not start, or why it ended early."""


def experiment_lock(config: ServerConfig) -> AbstractContextManager[None]:
    """Raises ExperimentFailed while another experiment of this server runs. The lock of a killed program is free."""
    if_locked = ExperimentFailed("An experiment is running already: wait for its end, or cancel it.")
    return file_lock(_lock_file(config), LOCK_SECONDS, if_locked)


def is_running(config: ServerConfig) -> bool:
    """Whether an experiment of this server runs, in this program or in another one."""
    return is_locked(_lock_file(config))


def _lock_file(config: ServerConfig) -> Path:
    return records_folder(config) / "lock"


def restore_note_file(config: ServerConfig) -> Path:
    return records_folder(config) / "restore.json"


def read_restore_note(config: ServerConfig) -> Setup | None:
    """Returns the setup before the experiment that runs or was killed. None: there is nothing to restore."""
    return read_json(restore_note_file(config), Setup)


def write_restore_note(config: ServerConfig, setup: Setup) -> None:
    write_json(restore_note_file(config), setup)


def discard_restore_note(config: ServerConfig) -> None:
    """The server keeps the settings that it has now."""
    restore_note_file(config).unlink(missing_ok=True)


def unrestored_setup(config: ServerConfig) -> Setup | None:
    """Returns the setup to restore if an experiment was killed, else None."""
    return None if is_running(config) else read_restore_note(config)


def restore_setup(config: ServerConfig, on_progress: Callable[[str], None]) -> None:
    """Restores the setup that a killed experiment has changed. Raises TorchServeError if that fails."""
    with experiment_lock(config):
        setup = read_restore_note(config)
        if setup is None:
            raise ExperimentFailed("There is nothing to put back.")
        apply_setup(config, setup, on_progress)
        discard_restore_note(config)


def apply_setup(config: ServerConfig, setup: Setup, on_progress: Callable[[str], None]) -> None:
    """Serves the model with `setup`, and registers it if necessary. Raises TorchServeError if that fails.

    Requests in progress may finish first. `on_progress` gets a sentence at each new stage.
    """
    management = ManagementClient(config)
    if management.describe() is None:
        management.register(setup.settings, setup.archive)
    else:
        management.apply(setup.settings, setup.archive, DrainPolicy(on_progress=on_progress))
