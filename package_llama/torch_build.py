"""Which build of torch pip gets for llama.cpp's converter, the only program here that computes with torch.

On Linux it is the CPU build, from PyTorch's own index. PyPI's build cannot even be imported without CUDA's packages.
Knows only the standard library, because the set-up of the tests uses it, too.
"""

import os
import subprocess
import sys

from package_llama.errors import PackagingError

VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_PACKAGES = "3.0 GB"  # what pip downloads for PyPI's build for Linux x86-64, with its dependencies
ASK_VARIABLE = "TORCH_FROM_PYPI"
CONNECT_SECONDS = 5


def pip_arguments() -> list[str]:
    """What `pip install` needs to get torch. Raises PackagingError rather than fetch GPU packages by itself.

    One query finds out whether a CPU build can be had: from CPU_INDEX, or from a source that pip is configured with.
    """
    if sys.platform != "linux" or os.environ.get(ASK_VARIABLE):
        return [f"torch=={VERSION}"]
    source = ["--extra-index-url", CPU_INDEX]
    quickly = ["--timeout", str(CONNECT_SECONDS), "--retries", "0"]
    query = [sys.executable, "-m", "pip", "index", "versions", "torch", *source, *quickly]
    found = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if f"{VERSION}+cpu" in found.stdout:
        return [f"torch=={VERSION}+cpu", *source]
    raise PackagingError(
        f"torch's CPU build is not at {CPU_INDEX} for this Python, or that server cannot be reached, and PyPI's build "
        f"brings {GPU_PACKAGES} of GPU packages: check the network connection, or ask for them with {ASK_VARIABLE}=1."
    )


if __name__ == "__main__":
    try:
        print(*pip_arguments(), sep="\n")
    except PackagingError as error:
        sys.exit(str(error))
