"""The HTTP API of the worker: one module for each family of paths. routes.py is the entrance.

Each family checks the body of a request, makes a GenerationRequest of it, and shapes the answer. In between, reply.py
takes the text from the engine. The modules know no TorchServe and no llama.cpp.
"""
