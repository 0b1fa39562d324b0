"""Several TorchServes as one: a Ray Serve application. Only entry_file.py and key.py import no ray."""
