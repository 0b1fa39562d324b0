"""An optional HTTP front for one TorchServe: OpenAI's and Anthropic's addresses, keys and errors. See __main__.py."""
