"""One experiment at a time, and what must be put back after it. Knows nothing of load.

A lock file sees to it that no two experiments of a server run at once, in whatever program. A note beside it says what
the server should serve with again: a program that is killed leaves it, and the next one can put it back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments import records
from experiments.records import Setup
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy
from torchserve_client.file_lock import Locked, held, is_held
from torchserve_client.management import ManagementClient

LOCK_SECONDS = 1.0  # asking whether somebody holds the lock takes it for a moment


class ExperimentFailed(TorchServeError):
    """Why an experiment could not start or go on."""


@contextlib.contextmanager
def only_one(config: ServerConfig) -> Iterator[None]:
    """Raises ExperimentFailed while another experiment of this server runs; the system lets go for a killed program."""
    file = records.folder_of(config) / "lock"
    try:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    except OSError as error:
        raise ExperimentFailed(f"{file} cannot be made ({error.strerror}): make that place writable.") from error
    try:
        with held(file, LOCK_SECONDS):
            yield
    except Locked as error:
        raise ExperimentFailed("An experiment is running already: wait for its end, or cancel it.") from error


def is_running(config: ServerConfig) -> bool:
    """Whether an experiment of this server runs, in this program or another."""
    return is_held(records.folder_of(config) / "lock")


def left_behind(config: ServerConfig) -> Setup | None:
    """What the server should serve with, if an experiment has ended without putting it back."""
    return None if is_running(config) else read_note(config)


def put_back(config: ServerConfig, tell: Callable[[str], None]) -> None:
    """Serves with what an experiment left behind; raises TorchServeError if that fails."""
    with only_one(config):
        setup = read_note(config)
        if setup is None:
            raise ExperimentFailed("There is nothing to put back.")
        serve(config, setup, tell)
        forget(config)


def forget(config: ServerConfig) -> None:
    """Leaves the server as it is, whatever an experiment left behind."""
    note_file(config).unlink(missing_ok=True)


def note_file(config: ServerConfig) -> Path:
    return records.folder_of(config) / "put_back.json"


def read_note(config: ServerConfig) -> Setup | None:
    """What is to be put back at the end of the experiment that runs, or that was killed; None if there is nothing."""
    try:
        return records.setup_from(json.loads(note_file(config).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TorchServeError(f"{note_file(config)} cannot be read ({error}): delete it.") from error


def serve(config: ServerConfig, setup: Setup, tell: Callable[[str], None]) -> None:
    """Makes the model serve with `setup`, registering it if it is not; raises TorchServeError if it cannot.

    Requests in progress may finish before; `tell` gets a sentence whenever there is something new to say.
    """
    management = ManagementClient(config)
    if management.describe() is None:
        management.register(setup.settings, setup.archive)
    else:
        management.apply(setup.settings, setup.archive, DrainPolicy(tell=tell))
