"""All that is said to llama.cpp but for the samplers, and the GGUF: tokens, chat template, decode.

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
import psutil

from llama_cpp_worker.chat_template import ChatTemplate, TemplateError
from llama_cpp_worker.devices import Placement, has_memory_pressure, physical_cores
from llama_cpp_worker.sampler import Sampler, Vocabulary, log_probabilities
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob

logger = logging.getLogger(__name__)

CELL_ALIGNMENT = 256  # llama.cpp rounds the cells of a sequence up to a multiple of this
NO_ROOM_IN_CACHE = 1  # llama_decode's return value


class ModelLoadError(RuntimeError):
    """The GGUF could not be loaded, or its cache does not fit; the message says what to change."""


class DecodeError(RuntimeError):
    """llama_decode refused a batch."""


class PromptTooLong(ValueError):
    """A text that cannot fit the context window, known from its size alone (tokenizing it would stall everybody)."""

    def __init__(self, least_tokens: int, window: int) -> None:
        super().__init__(f"at least {least_tokens:,} tokens, but the context window has {window:,}")


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
    `fingerprint` and `changed_at` (of the file, seconds since 1970) are as they were when it was loaded.
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
        self.changed_at = Path(path).stat().st_mtime
        self.fingerprint = _fingerprint(path, n_ctx)
        self._model, self.placement = _load(path, model_params)
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
        self.template = self._load_template(texts)

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
            "chat_template": "raw" if self.template.is_raw else "model",
            "layers": self.placement.n_layers,
            "devices": self.placement.describe(),
            "fingerprint": self.fingerprint,
        }

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

        text = self.template.render([message | {"content": marked(message["content"])} for message in messages])
        parts = text.split(mark)  # every second one lies between two marks
        if len(parts) == 1:
            # The template has already written BOS.
            return self._tokenize(text, add_special=self.template.is_raw, parse_special=True)
        return self._tokenize_guarded(parts)

    def _tokenize_guarded(self, parts: Sequence[str]) -> list[int]:
        """As llama.cpp does it: the text between control tokens whole, since SentencePiece begins each with a space."""
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        tokens = [bos] if self.template.is_raw and llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
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
        Raises DecodeError; the cache may then hold some of the tokens (`trim` removes them).
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
            full = status == NO_ROOM_IN_CACHE
            raise DecodeError("no room in the KV cache" if full else f"llama_decode returned {status}")
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

    def trim(self, slot: int, n_tokens: int) -> None:
        """Forgets all but the first `n_tokens` of a slot's sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)

    def save_state(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        """A copy of a slot's sequence, as bytes for `restore_state`."""
        size = llama_cpp.llama_state_seq_get_size(self._context, slot)
        state = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self._context, state, size, slot)
        assert written == size, f"{written} of {size} bytes of a sequence were written"
        return state

    def restore_state(self, slot: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Puts a saved sequence into a slot, instead of what the slot held."""
        self.trim(slot, 0)
        read = llama_cpp.llama_state_seq_set_data(self._context, state, len(state), slot)
        assert read == len(state), "a saved sequence did not fit a slot"

    # --- set-up

    def _fitting_window(self, wanted: int) -> int:
        """Tokens per sequence: what is wanted (0: the model's own), less where the caches would fill the memory."""
        per_layer = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        per_layer *= llama_cpp.llama_model_n_head_kv(self._model)
        bytes_per_token = 2 * 2 * per_layer * llama_cpp.llama_model_n_layer(self._model)  # K and V, f16
        weights = llama_cpp.llama_model_size(self._model)
        budget = self.placement.cache_room(weights, psutil.virtual_memory().available)
        fitting = int(budget / (bytes_per_token * self.n_slots)) // CELL_ALIGNMENT * CELL_ALIGNMENT
        if fitting == 0:
            raise ModelLoadError(
                f"The KV caches of {self.n_slots} sequences do not fit into the free memory "
                f"({budget / 2**20:,.0f} MiB may be used): choose a smaller batch size."
            )
        window = min(wanted or self.n_ctx_train, self.n_ctx_train)
        if fitting < window:
            hint = " macOS reports memory pressure: close other programs." if has_memory_pressure() else ""
            logger.warning("Context window shortened from %d to %d tokens: memory is short.%s", window, fitting, hint)
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

    def _load_template(self, texts: Sequence[bytes]) -> ChatTemplate:
        def text_of(token: int) -> str:
            return texts[token].decode(errors="replace") if token >= 0 else ""

        source = llama_cpp.llama_model_chat_template(self._model, None)
        bos, eos = llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)
        try:
            return ChatTemplate(source.decode() if source else None, text_of(bos), text_of(eos))
        except TemplateError as error:
            raise ModelLoadError(f"'{self.path}': {error}.") from error

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        if len(raw) > self.window * self._longest_piece:
            raise PromptTooLong(len(raw) // self._longest_piece, self.window)
        room = len(raw) + 2  # a token is at least a byte; BOS and EOS come on top
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
        assert count >= 0, "a text has more tokens than bytes"
        return list(tokens[:count])


def _fingerprint(path: str, n_ctx: int) -> str:
    """The same for answers of the same file (by its name and size), wanted context window and llama.cpp.

    The wanted one, since workers that have started with less free memory than their sibling have a smaller window.
    """
    identity = f"{Path(path).name} {Path(path).stat().st_size} {n_ctx} {version('llama-cpp-python')}"
    return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


_GGML_LOG_WARN, _GGML_LOG_ERROR = 3, 4  # enum ggml_log_level in ggml.h; llama_cpp._logger has an older one


def _load(path: str, params: llama_cpp.llama_model_params) -> tuple[llama_cpp.llama_model_p | None, Placement]:
    """The model, None if it cannot be loaded, and where llama.cpp says meanwhile that it puts the layers."""
    placement = Placement()

    @llama_cpp.llama_log_callback
    def on_log(level: int, text: bytes, _: object) -> None:
        placement.read(text.decode(errors="replace"))
        _forward(level, text)

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    try:
        return llama_cpp.llama_model_load_from_file(path.encode(), params), placement
    finally:
        llama_cpp.llama_log_set(_forward_log, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback
def _forward_log(level: int, text: bytes, _: object) -> None:
    _forward(level, text)


def _forward(level: int, text: bytes) -> None:
    """llama.cpp's warnings and errors into our log; it would otherwise fill stderr with every detail of a model."""
    if level in (_GGML_LOG_WARN, _GGML_LOG_ERROR):
        logger.log(
            logging.ERROR if level == _GGML_LOG_ERROR else logging.WARNING, "%s", text.decode(errors="replace").rstrip()
        )
