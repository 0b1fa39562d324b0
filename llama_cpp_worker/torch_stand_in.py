"""The file torch.py of the archive: all that TorchServe's worker uses of torch, so that torch need not be installed.

ts/protocol/otf_message_handler.py of TorchServe 0.12 imports torch, and asks of each value that a handler returns
whether it is a `torch.Tensor`. The handler here returns text. The archive's folder comes first on the worker's path.
See docs/torchserve-facts.md, fact 5.
"""


class Tensor:
    pass
