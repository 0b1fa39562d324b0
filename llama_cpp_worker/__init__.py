"""Everything that runs in TorchServe's worker beside llama_cpp_handler.py, in the order a request passes through it.

settings.py          the worker's settings, from model-config.yaml
torchserve_worker.py what the handler needs of TorchServe: request paths, streams, logs, other workers
api/                 the HTTP API: one module for each family of paths checks requests and shapes answers
sampling_params.py   names, defaults and bounds of the sampling parameters; shared with the client and the apps
constraint.py        the grammar or JSON schema that the answer has to follow
json_schema.py       a JSON schema prepared for llguidance; gbnf.py does this for a grammar
prompt.py            a request's prompts as tokens that fit the context window
tokenizer.py         text to tokens and back
chat_template.py     messages as the text that the model was trained with
tools.py             functions that the model may call; tool_formats.py has the notations of models
answer.py            the rules of an answer: answer_grammar.py constrains it, reasoning.py and tools.py take it apart
engine.py            the schedule: slots, the order of prefills, batches; chunk_size.py has the sizes
prefix_cache.py      which computed tokens a new prompt can reuse
embedding_queue.py   texts that wait for embeddings; embedder.py computes them
model.py             llama.cpp: decode, the KV cache of each slot
weights.py           the loaded GGUF, and the context window that fits beside it
devices.py           the machine: threads, memory, where the layers are
sampler.py           how the next token is chosen
text_assembler.py    tokens to whole characters without stop strings
output.py            what the text of an answer means: text, reasoning, calls
metrics.py           the engine's metrics for TorchServe

Imports: sampling_params.py imports nothing of ours, llama_cpp_handler.py imports the rest. Only the handler,
torchserve_worker.py and metrics.py import `ts`. Only weights.py, tokenizer.py, model.py, sampler.py and embedder.py
import `llama_cpp`.
"""
