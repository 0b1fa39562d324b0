"""Fetches files of a Hugging Face hub into the cache of huggingface_hub. Does not know what they are for.

HF_ENDPOINT, HF_HOME, HF_TOKEN and the other variables of that library apply. A download that was interrupted goes on
where it stopped. huggingface_hub 2.4 alone would begin such a file anew: its temporary file has a new name each time
(file_download.py, _download_to_tmp_and_move). So its http_get writes into a file of ours beside its own, which then
gets the name of the library's blob, and hf_hub_download finds it and adds the links.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public by its documentation

from package_llama.console import gigabytes, report
from package_llama.disk import locked_folder, require_space
from package_llama.errors import PackagingError

REVISION = "main"
PARTIAL = ".package-llama"  # the end of the name of a file that is not complete


def fetch(repo: str, choose: Callable[[Collection[str]], list[str]], is_offline: bool) -> Path:
    """The snapshot folder, or the first file if that is a GGUF file. Raises PackagingError.

    choose: the files to fetch, of those that the repository has. is_offline: use what was fetched before, which is also
    done if the hub cannot be reached.
    """
    with sentences(repo):
        if is_offline:
            return _fetched_before(repo, choose)
        try:
            info = HfApi().model_info(repo, revision=REVISION, files_metadata=True)
        except (httpx2.TransportError, OfflineModeIsEnabled):
            with suppress(LocalEntryNotFoundError):
                return _fetched_before(repo, choose)
            raise
        siblings = {each.rfilename: each for each in info.siblings or []}
        names = choose(siblings)
        n_bytes = sum(siblings[name].size or 0 for name in names)
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        with locked_folder(blobs.parent):
            etags = {lfs.sha256 if (lfs := siblings[name].lfs) else siblings[name].blob_id for name in names}
            n_present = sum(path.stat().st_size for path in blobs.iterdir() if path.name.removesuffix(PARTIAL) in etags)
            if n_present < n_bytes:
                require_space(f"Fetching {repo}", blobs, n_bytes - n_present)
                report(f"Fetching {repo}, {gigabytes(n_bytes - n_present)}, into {blobs.parent}")
            for name in names:
                _fetch_blob(repo, name, blobs)
                path = hf_hub_download(repo, name, revision=REVISION)
        return _result(Path(path.removesuffix(name)), names)


def _fetched_before(repo: str, choose: Callable[[Collection[str]], list[str]]) -> Path:
    """Raises LocalEntryNotFoundError if there is nothing."""
    folder = Path(snapshot_download(repo, local_files_only=True))
    names = choose(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    report(f"Using {folder}, which was fetched before")
    return _result(folder, names)


def _result(folder: Path, names: list[str]) -> Path:
    return folder / names[0] if names[0].endswith(".gguf") else folder


def _fetch_blob(repo: str, name: str, blobs: Path) -> None:
    """Gets the file's content, or the rest of it, into the place where huggingface_hub looks for it."""
    url = hf_hub_url(repo, name, revision=REVISION)
    metadata = get_hf_file_metadata(url)
    if metadata.etag is None or metadata.size is None or "/" in metadata.etag:
        raise PackagingError(
            f"{url} has no ETag or no size, so {constants.ENDPOINT} is no Hugging Face hub: check HF_ENDPOINT."
        )
    blob = blobs / metadata.etag
    if blob.exists():
        return
    partial = blob.with_name(f"{blob.name}{PARTIAL}")
    with partial.open("ab") as file:
        if file.tell() > metadata.size:
            file.truncate(0)
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers() | {"Accept-Encoding": "identity"},
            expected_size=metadata.size,
            displayed_filename=name,
        )
    partial.replace(blob)


@contextmanager
def sentences(repo: str) -> Iterator[None]:
    """Turns the errors of a download into PackagingErrors that name the next step. No sentence has a token."""
    page = f"{constants.ENDPOINT}/{repo}"
    again = "run the same command again, and it goes on where it stopped"
    try:
        yield
    except GatedRepoError as error:
        login = "wait until access is granted" if get_token() else "run 'hf auth login' (or set HF_TOKEN)"
        raise PackagingError(f"{repo} is gated: accept its licence at {page}, {login}, then {again}.") from error
    except HFValidationError as error:
        raise PackagingError(f"{repo} is neither a path here nor a valid id: check the spelling.") from error
    except LocalEntryNotFoundError as error:
        raise PackagingError(f"{repo} has not been fetched yet: run this once without 'false'.") from error
    except OfflineModeIsEnabled as error:
        advice = "unset HF_HUB_OFFLINE, or give the path of a snapshot folder or a GGUF file"
        raise PackagingError(f"{repo} cannot be fetched in offline mode: {advice}.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, RepositoryNotFoundError) or (status == 401 and not get_token()):
            missing = f"{repo} is neither a path here nor a model at {constants.ENDPOINT}"
            advice = "check the spelling, or run 'hf auth login' if it is private"
            raise PackagingError(f"{missing}: {advice}.") from error
        advice = "run 'hf auth login' again, since the token is not accepted" if status in (401, 403) else again
        raise PackagingError(f"{page} answers with {status}: {advice}.") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise PackagingError(f"{page} did not send all of a file: {again}.") from error
    except httpx2.HTTPError as error:
        raise PackagingError(f"{page} cannot be reached ({_cause(error)}): check the network, then {again}.") from error


def _cause(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
