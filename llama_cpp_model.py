"""All that is said to llama.cpp but for the samplers, and the GGUF: tokens, chat template, decode, quantize.

Knows nothing of requests, schedules or TorchServe. Not thread-safe: llama.cpp crashes or freezes when two
threads use one context, so one thread owns a Model (in the worker, its only one).

Not covered: encoder-decoder and recurrent models, images, adapters (LoRA), more than one GPU's placement.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import jinja2
import llama_cpp
import numpy as np
import psutil
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_cpp_sampler import Sampler, Vocabulary, log_probabilities
from sampling_params import SampledToken, SamplingParams, TokenLogprob

logger = logging.getLogger(__name__)

# What a base model without a chat template gets: the plain format of the user's own example.
RAW_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer: '}[message.role] + message.content + '\n' }}"
    "{%- endfor %}Answer:"
)
MEMORY_SHARE = 1 / 3  # of the free memory, for the KV cache: the weights and other workers need room, too
CELL_ALIGNMENT = 256  # llama.cpp rounds the cells of a sequence up to a multiple of this
NO_ROOM_IN_CACHE = 1  # llama_decode's return value

QUANTIZATIONS = {
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
}


class ModelLoadError(RuntimeError):
    """The GGUF could not be loaded, or its cache does not fit; the message says what to change."""


class DecodeError(RuntimeError):
    """llama_decode refused a batch; `is_cache_full` tells whether less work could succeed."""

    def __init__(self, status: int) -> None:
        self.is_cache_full = status == NO_ROOM_IN_CACHE
        super().__init__("no room in the KV cache" if self.is_cache_full else f"llama_decode failed with {status}")


class PromptTooLong(ValueError):
    """A text that cannot fit the context window, known from its size alone (tokenizing it would stall everybody)."""

    def __init__(self, least_tokens: int, window: int) -> None:
        super().__init__(f"at least {least_tokens:,} tokens, but the context window has {window:,}")


class TemplateError(ValueError):
    """The model's chat template refused these messages."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch; `position` is that of the first."""

    slot: int
    position: int
    tokens: Sequence[int]
    wants_logits: bool  # of the last token


class Model:
    """A GGUF and one llama.cpp context with `n_slots` sequences, each with a cache of `window` tokens of its own.

    Separate caches (not `kv_unified`) because attention then reads only a sequence's own cells.
    Raises ModelLoadError.
    """

    def __init__(
        self,
        path: str,
        n_slots: int,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_gpu_layers: int = -1,
        n_threads: int = 0,
    ) -> None:
        if not Path(path).is_file():
            raise ModelLoadError(f"There is no model file at '{path}': run package_llama.sh, or correct model_path.")
        most = llama_cpp.llama_max_parallel_sequences()
        if not 1 <= n_slots <= most:
            raise ModelLoadError(f"A batch size of {n_slots} is not possible: llama.cpp takes 1 to {most} sequences.")
        llama_cpp.llama_log_set(_forward_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = n_gpu_layers
        self.path = path
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise ModelLoadError(f"llama.cpp cannot load '{path}': is it a whole GGUF file? Its log has the reason.")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)

        self.n_slots = n_slots
        self.n_ctx_train = llama_cpp.llama_model_n_ctx_train(self._model)
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx = self._fitting_window(n_ctx) * n_slots
        context_params.n_seq_max = n_slots
        context_params.n_batch = context_params.n_ubatch = max(n_batch, n_slots)
        context_params.n_threads = context_params.n_threads_batch = n_threads or physical_cores()
        context_params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, context_params)
        if not self._context:
            raise ModelLoadError(f"llama.cpp has no memory for {n_slots} sequences: choose a smaller batch size.")
        self.window: int = llama_cpp.llama_n_ctx_seq(self._context)
        self.n_batch: int = llama_cpp.llama_n_batch(self._context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self._piece_buffer = ctypes.create_string_buffer(512)

        texts = [llama_cpp.llama_vocab_get_text(self._vocab, token) or b"" for token in range(self.n_vocab)]
        self._longest_piece = max(map(len, texts))
        self._end_tokens = frozenset(
            token for token in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token)
        )
        self._vocabulary = Vocabulary(self.n_vocab, self._end_tokens, lambda: self._all_pieces)
        self._split_controls = self._control_token_splitter(texts)
        self._load_template(texts)

    def describe(self) -> dict[str, object]:
        """What the model is, for people: file, kind, size in bytes, parameters, context, template, devices."""
        text = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self._model, text, len(text))
        return {
            "file": Path(self.path).name,
            "description": text.value.decode(),
            "size_bytes": llama_cpp.llama_model_size(self._model),
            "parameters": llama_cpp.llama_model_n_params(self._model),
            "context_window": self.window,
            "context_train": self.n_ctx_train,
            "slots": self.n_slots,
            "threads": llama_cpp.llama_n_threads(self._context),
            "chat_template": "model" if self._has_own_template else "raw",
            "gpu_offload": bool(llama_cpp.llama_supports_gpu_offload()),
        }

    def fingerprint(self) -> str:
        """The same for answers of the same file (by its name and size) and the same llama.cpp."""
        path = Path(self.path)
        identity = f"{path.name} {path.stat().st_size} {version('llama-cpp-python')}"
        return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def set_threads(self, n_threads: int) -> None:
        """Threads for the next decode; takes effect at once."""
        llama_cpp.llama_set_n_threads(self._context, n_threads, n_threads)

    def close(self) -> None:
        """Frees everything; the model is unusable afterwards. (A worker just ends.)"""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    # --- text to tokens and back

    def tokenize_prompt(self, prompt: str) -> list[int]:
        """Tokens of a raw prompt, BOS first where the model wants one. Control tokens in it are the caller's wish.

        Raises PromptTooLong.
        """
        return self._tokenize(prompt, add_special=True, parse_special=True)

    def tokenize_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of `messages` (dicts with `role` and `content`) in the model's own chat template.

        Control tokens come from the template alone: a "<|im_end|>" or "</s>" typed by a person stays text.
        A last message of the assistant is continued: it stays open, as in llama-server.
        Raises TemplateError, PromptTooLong.
        """
        mark = f"\ufdd0{secrets.token_hex(8)}\ufdd1"  # cannot occur in any message

        def marked(text: str) -> str:
            return self._split_controls.sub(lambda found: mark + found[0] + mark, text)

        guarded = [message | {"content": marked(message["content"])} for message in messages]
        begun = guarded.pop()["content"] if messages and messages[-1]["role"] == "assistant" else ""
        try:
            text = self._template.render(
                messages=guarded, add_generation_prompt=True, bos_token=self._bos_text, eos_token=self._eos_text
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from error
        text += begun
        parts = text.split(mark)  # every second one lies between two marks
        if len(parts) == 1:
            # The template has already written BOS.
            return self._tokenize(text, add_special=not self._has_own_template, parse_special=True)
        return self._tokenize_guarded(parts)

    def _tokenize_guarded(self, parts: Sequence[str]) -> list[int]:
        """As llama.cpp does it: the text between control tokens whole, since SentencePiece begins each with a space."""
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        tokens = [] if self._has_own_template or not llama_cpp.llama_vocab_get_add_bos(self._vocab) else [bos]
        run = ""
        for index, part in enumerate(parts):
            pieces = [part] if index % 2 else re.split(f"({self._split_controls.pattern})", part)
            for position, piece in enumerate(pieces):
                if position % 2 == 0:
                    run += piece
                    continue
                tokens += self._tokenize(run, add_special=False, parse_special=False)
                tokens += self._tokenize(piece, add_special=False, parse_special=True)
                run = ""
        return tokens + self._tokenize(run, add_special=False, parse_special=False)

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        """The bytes a token stands for: perhaps a part of a character; nothing for a control token, or its name."""
        length = llama_cpp.llama_token_to_piece(
            self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, shows_control
        )
        assert length >= 0, f"token {token} is longer than {len(self._piece_buffer)} bytes"
        return self._piece_buffer.raw[:length]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return token in self._end_tokens

    # --- decode and sample

    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Sampler:
        """A sampler chain for one completion of `prompt` (tokens); close it when the completion ends."""
        return Sampler(params, self._vocabulary, prompt)

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Reads at most `n_batch` tokens into the cache; returns the batch index of each chunk's last token.

        Chunks must come in ascending order of slot: llama.cpp splits any other order into several passes.
        Raises DecodeError; the cache may then hold some of the tokens (`keep` trims it).
        """
        batch = self._batch
        last_indices = []
        size = 0
        for chunk in chunks:
            for offset, token in enumerate(chunk.tokens):
                batch.token[size] = token
                batch.pos[size] = chunk.position + offset
                batch.n_seq_id[size] = 1
                batch.seq_id[size][0] = chunk.slot
                batch.logits[size] = 0
                size += 1
            batch.logits[size - 1] = chunk.wants_logits
            last_indices.append(size - 1)
        batch.n_tokens = size
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise DecodeError(status)
        return last_indices

    def sample(self, sampler: Sampler, index: int, *, forbid_end: bool) -> int:
        """The next token, from the logits at batch `index` of the last decode; no end token if that is forbidden.

        (Where a grammar lets nothing else follow, it is an end token nevertheless.) Raises SamplingError.
        """
        if not forbid_end:
            return sampler.sample(self._context, index)
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        kept = {token: logits[token] for token in self._end_tokens}
        for token in kept:
            logits[token] = float("-inf")
        try:
            return sampler.sample(self._context, index)
        finally:
            for token, logit in kept.items():  # `logprobs` may want them
                logits[token] = logit

    def logprobs(self, index: int, token: int, count: int) -> SampledToken:
        """A token sampled from the logits at batch `index`, with the `count` likeliest ones before any sampler."""
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, index), (self.n_vocab,))
        (_, logprob), *likeliest = log_probabilities(logits, token, count)
        return SampledToken(
            TokenLogprob(self.piece(token), logprob),
            tuple(TokenLogprob(self.piece(other, shows_control=True), value) for other, value in likeliest),
        )

    # --- what a slot's cache holds

    def keep(self, slot: int, n_tokens: int) -> None:
        """Forgets all but the first `n_tokens` of a slot's sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)

    def save(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        """A copy of a slot's sequence, as bytes for `restore`."""
        size = llama_cpp.llama_state_seq_get_size(self._context, slot)
        state = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self._context, state, size, slot)
        assert written == size, f"{written} of {size} bytes of a sequence were written"
        return state

    def restore(self, slot: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Puts a saved sequence into a slot, instead of what the slot held."""
        self.keep(slot, 0)
        read = llama_cpp.llama_state_seq_set_data(self._context, state, len(state), slot)
        assert read == len(state), "a saved sequence did not fit a slot"

    # --- set-up

    def _fitting_window(self, wanted: int) -> int:
        """Tokens per sequence: what is wanted (0: the model's own), less where the caches would fill the memory."""
        per_layer = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        per_layer *= llama_cpp.llama_model_n_head_kv(self._model)
        bytes_per_token = 2 * 2 * per_layer * llama_cpp.llama_model_n_layer(self._model)  # K and V, f16
        budget = psutil.virtual_memory().available * MEMORY_SHARE
        fitting = int(budget / (bytes_per_token * self.n_slots)) // CELL_ALIGNMENT * CELL_ALIGNMENT
        if fitting == 0:
            raise ModelLoadError(
                f"The KV caches of {self.n_slots} sequences do not fit into the free memory "
                f"({budget / 2**20:,.0f} MiB may be used): choose a smaller batch size."
            )
        window = min(wanted or self.n_ctx_train, self.n_ctx_train)
        if fitting < window:
            logger.warning("Context window shortened from %d to %d tokens: memory is short.", window, fitting)
        return min(window, fitting)

    @cached_property
    def _all_pieces(self) -> list[bytes]:
        return [self.piece(token) for token in range(self.n_vocab)]

    def _control_token_splitter(self, texts: Sequence[bytes]) -> re.Pattern[str]:
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        controls = {
            text.decode(errors="replace")
            for token, text in enumerate(texts)
            if text and llama_cpp.llama_vocab_get_attr(self._vocab, token) & special
        }
        longest_first = sorted(controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _load_template(self, texts: Sequence[bytes]) -> None:
        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        def text_of(token: int) -> str:
            return texts[token].decode(errors="replace") if token >= 0 else ""

        template = llama_cpp.llama_model_chat_template(self._model, None)
        self._has_own_template = template is not None
        # As Hugging Face renders chat templates: sandboxed, blocks trimmed, these two helpers.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
        try:
            self._template = environment.from_string(template.decode() if template else RAW_CHAT_TEMPLATE)
        except jinja2.TemplateError as error:
            raise ModelLoadError(f"The chat template in '{self.path}' cannot be read: {error}") from error
        self._bos_text = text_of(llama_cpp.llama_vocab_bos(self._vocab))
        self._eos_text = text_of(llama_cpp.llama_vocab_eos(self._vocab))

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        if len(raw) > self.window * self._longest_piece:
            raise PromptTooLong(len(raw) // self._longest_piece, self.window)
        room = len(raw) + 2  # a token is at least a byte; BOS and EOS come on top
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
        assert count >= 0, "a text has more tokens than bytes"
        return list(tokens[:count])


def physical_cores() -> int:
    """Cores of this machine, hyper-threads not counted: llama.cpp's threads spin, more of them slow each other."""
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def quantize_gguf(source: str, target: str, quantization: str) -> None:
    """Writes `source` (a GGUF) as `target` in the `quantization` named; progress goes to stderr.

    Raises ValueError for an unknown type and RuntimeError when llama.cpp fails.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"Unknown quantization '{quantization}': choose one of {', '.join(QUANTIZATIONS)}.")
    last_errors: list[str] = []
    shown_percent = -10

    @llama_cpp.llama_log_callback
    def on_log(level: int, text: bytes, _: object) -> None:
        nonlocal shown_percent
        line = text.decode(errors="replace")
        if level == _GGML_LOG_ERROR:
            last_errors.append(line.strip())
        if found := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
            done, total = int(found[1]), int(found[2])
            percent = 100 * done // total
            if sys.stderr.isatty():
                print(f"\rquantizing to {quantization}: tensor {done} of {total}", end="", file=sys.stderr, flush=True)
            elif percent >= shown_percent + 10 or done == total:
                shown_percent = percent
                print(f"quantizing to {quantization}: {percent} %", file=sys.stderr, flush=True)

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[quantization]
    params.allow_requantize = True
    try:
        status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(_forward_log, ctypes.c_void_p(0))
        if sys.stderr.isatty():
            print(file=sys.stderr)
    if status != 0:
        reason = last_errors[-1] if last_errors else "llama.cpp gave no reason; is the disk full?"
        raise RuntimeError(f"Quantizing '{source}' failed: {reason}")


_GGML_LOG_WARN, _GGML_LOG_ERROR = 3, 4  # enum ggml_log_level in ggml.h; llama_cpp._logger has an older one


@llama_cpp.llama_log_callback
def _forward_log(level: int, text: bytes, _: object) -> None:
    """llama.cpp's warnings and errors into our log; it would otherwise fill stderr with every detail of a model."""
    if level in (_GGML_LOG_WARN, _GGML_LOG_ERROR):
        logger.log(
            logging.ERROR if level == _GGML_LOG_ERROR else logging.WARNING, "%s", text.decode(errors="replace").rstrip()
        )
