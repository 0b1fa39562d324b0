"""The model: loads a GGUF, tokenizes, decodes, copies sequences. Samplers and embeddings call llama.cpp themselves.

Knows nothing of requests, the schedule and TorchServe. Not thread-safe: llama.cpp crashes or freezes if two threads
use one context, so only one thread at a time may call a Model.

Not covered: encoder-decoder and recurrent models, images, adapters (LoRA), the placement on more than one GPU.
"""

import ctypes
import hashlib
import logging
import re
import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import psutil
from llguidance.llamacpp import lltokenizer_from_vocab

from llama_cpp_worker.answer_grammar import SpecialTokens
from llama_cpp_worker.chat_template import ChatTemplate, TemplateError
from llama_cpp_worker.constraint import grammar_problem
from llama_cpp_worker.devices import Placement, has_memory_pressure, physical_cores
from llama_cpp_worker.embedder import Embedder, EmbeddingError, metadata
from llama_cpp_worker.reasoning import MARKS
from llama_cpp_worker.sampler import Sampler, Vocabulary, log_probabilities
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob
from llama_cpp_worker.tool_formats import CALL_MARKS, Message, with_parsed_arguments

logger = logging.getLogger(__name__)

CELL_ALIGNMENT = 256  # llama.cpp rounds the cells of a sequence up to a multiple of this
NO_ROOM_IN_CACHE = 1  # llama_decode's return value
# Logits of this many tokens can be computed in one decode. Their memory is this x vocabulary x 4 bytes, once for the
# computation and once, when they are first needed, for the results: 2 x 12 MiB for 49,152 tokens.
MIN_OUTPUTS = 64
# The settings' kv_cache_type: llama.cpp's number and the bytes of a value. A block of q8_0 has 32 values and a scale.
KV_CACHE_TYPES = {"f16": (llama_cpp.GGML_TYPE_F16, 2.0), "q8_0": (llama_cpp.GGML_TYPE_Q8_0, 34 / 32)}
MAX_TEXT_BYTES = 1_048_576  # of a text: it is tokenized in 0.5 s, in which no answer goes on;
MAX_BYTES_PER_TOKEN = 8  # more for a large context window
SPEED_TEST_TOKENS = 32  # 0.1 s for 135M parameters, 2 s for 7B (2 cores)


class ModelLoadError(RuntimeError):
    """The GGUF could not be loaded, or its KV cache does not fit; the message says what to change."""


class DecodeError(RuntimeError):
    """llama_decode refused a batch."""


class InfillUnsupported(ValueError):
    """The model has no tokens that mark the text before and after a gap."""


class PromptTooLong(ValueError):
    """A text is too long for the context window, by its size. To tokenize it would stop all other answers."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch; `position` is the first token's place in the sequence."""

    slot: int
    position: int
    tokens: Sequence[int]
    wants_logits: bool  # of the last token
    wants_all_logits: bool = False  # of every token


class Model:
    """A GGUF and one llama.cpp context with `n_slots` sequences, each with a separate KV cache of `window` tokens.

    With `kv_unified` instead, attention would read the cells of all sequences.
    n_saved_bytes: memory to leave for saved sequences (see prefix_cache.py). kv_cache_type: one of KV_CACHE_TYPES.
    embeddings: whether there is an `embedder`, else it is None.
    `fingerprint` and `changed_at` (seconds since 1970) describe the file at the time of loading.
    `fim_tokens` mark a text with a gap: the part before it, the part after it, the gap. Most models have none.
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
        n_saved_bytes: int = 0,
        kv_cache_type: str = "f16",
        embeddings: bool = False,
    ) -> None:
        if not Path(path).is_file():
            raise ModelLoadError(f"There is no model file at '{path}': run package_llama.sh, or correct model_path.")
        max_slots = llama_cpp.llama_max_parallel_sequences()
        if not 1 <= n_slots <= max_slots:
            raise ModelLoadError(f"The batch size is {n_slots}, but llama.cpp takes 1 to {max_slots} sequences.")

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
        self.n_saved_bytes = n_saved_bytes
        self._n_caches = n_slots + embeddings
        cache_type, self._bytes_per_cached_value = KV_CACHE_TYPES[kv_cache_type]
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self._model)
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx = self._fitting_window(n_ctx) * n_slots
        context_params.n_seq_max = n_slots
        context_params.n_batch = context_params.n_ubatch = max(n_batch, n_slots)
        context_params.n_threads = context_params.n_threads_batch = n_threads or physical_cores()
        # Unset, llama.cpp reserves n_batch x vocabulary floats for logits.
        context_params.n_outputs_max = min(max(n_slots, MIN_OUTPUTS), context_params.n_batch)
        context_params.type_k = context_params.type_v = cache_type
        context_params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, context_params)
        if not self._context:
            raise ModelLoadError(f"llama.cpp has no memory for {n_slots} sequences: choose a smaller batch size.")
        self.window: int = llama_cpp.llama_n_ctx_seq(self._context)
        self.n_batch: int = llama_cpp.llama_n_batch(self._context)
        self.n_outputs = min(max(n_slots, MIN_OUTPUTS), self.n_batch)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self.embedder: Embedder | None = None
        if embeddings:
            try:
                self.embedder = Embedder(
                    self._model, self.window, self.n_batch, context_params.n_threads, context_params.type_k
                )
            except EmbeddingError as error:
                raise ModelLoadError(f"'{path}': {error}; set embeddings to false.") from error
        self._piece_buffer = ctypes.create_string_buffer(512)

        texts = [llama_cpp.llama_vocab_get_text(self._vocab, token) or b"" for token in range(self.n_vocab)]
        self._longest_piece = max(map(len, texts))
        is_end = partial(llama_cpp.llama_vocab_is_eog, self._vocab)
        self._end_tokens = frozenset(filter(is_end, range(self.n_vocab)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # llguidance 1.9.1 calls llama_token_get_attr
            # Here and not in the first request, because it takes some tenths of a second.
            tokenizer = lltokenizer_from_vocab(self._vocab, eos_token=sorted(self._end_tokens))
        self._vocabulary = Vocabulary(self.n_vocab, self._end_tokens, tokenizer)
        self.special_tokens = self._special_tokens(texts, tokenizer.is_special_token)
        self._mark_tokens = frozenset(self.special_tokens.marks.values())
        self._split_controls = self._control_token_splitter(texts)
        self.fim_tokens = self._fim_tokens()
        self.template = self._load_template(texts)
        with ThreadPoolExecutor(1) as thread:  # libgomp has a team of threads for each caller; this one ends here
            thread.submit(self._measure_speeds).result()

    def describe(self) -> dict[str, object]:
        """The model's file, kind, size, parameters, context, template, devices and main memory, for people."""
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
            "embedding_size": self.embedder.size if self.embedder else None,
            "layers": self.placement.n_layers,
            "devices": self.placement.describe(),
            "memory_bytes": self._main_memory(),
            "fingerprint": self.fingerprint,
        }

    def set_threads(self, n_threads: int) -> None:
        """Sets the number of threads, from the next decode on."""
        llama_cpp.llama_set_n_threads(self._context, n_threads, n_threads)
        if self.embedder:
            self.embedder.set_threads(n_threads)

    def close(self) -> None:
        """Frees the memory; the model is unusable afterwards. (A worker need not call this before it ends.)"""
        if self.embedder:
            self.embedder.close()
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    # --- text to tokens and back

    def tokenize_prompt(self, prompt: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of a raw prompt.

        add_special: BOS comes first and EOS last, each if the model wants it.
        parse_special: the names of control tokens in the prompt become these tokens. Raises PromptTooLong.
        """
        return self._tokenize(prompt, add_special=add_special, parse_special=parse_special)

    def tokenize_infill(self, prefix: str, suffix: str) -> list[int]:
        """The tokens of a text with a gap, so that the model continues with the text of the gap.

        The order is prefix, suffix, middle (PSM), as in llama-server's /infill. Both texts stay texts: names of
        control tokens in them are not parsed. Raises InfillUnsupported, PromptTooLong.
        """
        if self.fim_tokens is None:
            raise InfillUnsupported("this model cannot fill in the middle of a text; send the prompt without a suffix")
        before, after, middle = self.fim_tokens
        bos = [llama_cpp.llama_vocab_bos(self._vocab)] if llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
        texts = [self._tokenize(text, add_special=False, parse_special=False) for text in (prefix, suffix)]
        return [*bos, before, *texts[0], after, *texts[1], middle]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, with the names of control tokens. Bytes that are no character become U+FFFD."""
        return b"".join(self.piece(token, shows_control=True) for token in tokens).decode(errors="replace")

    def tokenize_chat(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), *, continues_answer: bool = True
    ) -> list[int]:
        """The tokens of `messages` and definitions of functions in the model's chat template: see ChatTemplate.render.

        Only the template's control tokens count: "<|im_end|>" or "</s>" in a message or a definition stays text.
        Raises TemplateError, PromptTooLong.
        """
        mark = f"\ufdd0{secrets.token_hex(8)}\ufdd1"  # occurs in no message

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                return self._split_controls.sub(lambda found: mark + found[0] + mark, value)
            if isinstance(value, dict):
                return {marked(name): marked(part) for name, part in value.items()}
            return [marked(part) for part in value] if isinstance(value, list) else value

        messages = with_parsed_arguments(messages)  # before marks are set: JSON may spell a control token with escapes
        text = self.template.render(marked(messages), marked(list(tools)), continues_answer=continues_answer)
        self._check_size(text)
        parts = text.split(mark)  # every second part is a control token's name from a message
        if len(parts) == 1:  # BOS is in the template's text already
            return self._tokenize(text, add_special=self.template.is_raw, parse_special=True)
        return self._tokenize_guarded(parts)

    def _tokenize_guarded(self, parts: Sequence[str]) -> list[int]:
        """Tokenizes the text between two control tokens in one piece: SentencePiece puts a space before each piece."""
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        tokens = [bos] if self.template.is_raw and llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
        plain = ""
        for index, part in enumerate(parts):
            pieces = [part] if index % 2 else re.split(f"({self._split_controls.pattern})", part)
            for position, piece in enumerate(pieces):
                if position % 2 == 0:
                    plain += piece
                    continue
                tokens += self._tokenize(plain, add_special=False, parse_special=False)
                tokens += self._tokenize(piece, add_special=False, parse_special=True)
                plain = ""
        return tokens + self._tokenize(plain, add_special=False, parse_special=False)

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        """A token's bytes, possibly a part of a character. Those of a control token are empty, or its name.

        A token that marks a call or reasoning always has its name: the parser of the answer needs it.
        """
        is_shown = shows_control or token in self._mark_tokens
        length = llama_cpp.llama_token_to_piece(
            self._vocab, token, self._piece_buffer, len(self._piece_buffer), 0, is_shown
        )
        assert length >= 0, f"token {token} is longer than {len(self._piece_buffer)} bytes"
        return self._piece_buffer.raw[:length]

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return token in self._end_tokens

    # --- decode and sample

    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None = None) -> Sampler:
        """A sampler for one completion of `prompt` (tokens); the caller closes it at the end.

        constraint: a grammar for llguidance; None: the one that `params` ask for.
        """
        return Sampler(params, self._vocabulary, prompt, constraint)

    def constraint_problem(self, constraint: str) -> str:
        """Why no answer of this model can follow a grammar for llguidance; nothing if one can."""
        return grammar_problem(self._vocabulary.tokenizer, constraint)

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Decodes at most `n_batch` tokens, for logits of at most `n_outputs`. Returns the index of each last token.

        The chunks must be in ascending order of their slots: llama.cpp splits any other order into several passes.
        Raises DecodeError; the KV cache may then contain some of the tokens (`trim` removes them).
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
                batch.logits[size] = chunk.wants_all_logits
                size += 1
            batch.logits[size - 1] = chunk.wants_logits or chunk.wants_all_logits
            last_indices.append(size - 1)
        batch.n_tokens = size
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            full = status == NO_ROOM_IN_CACHE
            raise DecodeError("no room in the KV cache" if full else f"llama_decode returned {status}")
        return last_indices

    def sample(self, sampler: Sampler, index: int, *, forbid_end: bool) -> int:
        """The next token, from the logits at batch `index` of the last decode.

        forbid_end: choose no end token, unless a grammar allows nothing else. Raises SamplingError.
        """
        if not forbid_end:
            return sampler.sample(self._context, index)
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        end_logits = {token: logits[token] for token in self._end_tokens}
        for token in end_logits:
            logits[token] = float("-inf")
        try:
            return sampler.sample(self._context, index)
        finally:
            for token, logit in end_logits.items():  # `logprobs` reports them
                logits[token] = logit

    def logprobs(self, index: int, token: int, count: int, *, shows_control: bool = False) -> SampledToken:
        """A token after batch `index`, and the `count` likeliest tokens before any sampler changed the logits.

        shows_control: report a control token under its name; the piece of a sampled one is empty, like its text.
        For 49,152 tokens it takes 0.1 ms, or 0.6 ms if `count` is not 0.
        """
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, index), (self.n_vocab,))
        (_, logprob), *likeliest = log_probabilities(logits, token, count)
        return SampledToken(
            TokenLogprob(self.piece(token, shows_control=shows_control), logprob),
            tuple(TokenLogprob(self.piece(other, shows_control=True), value) for other, value in likeliest),
        )

    # --- the KV cache of a slot

    def trim(self, slot: int, n_tokens: int) -> None:
        """Removes all but the first `n_tokens` of a slot's sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)

    def state_size(self, slot: int) -> int:
        """The bytes of `save_state`, without a copy."""
        return int(llama_cpp.llama_state_seq_get_size(self._context, slot))

    @property
    def copied_bytes_per_second(self) -> float:
        """The mean speed of `save_state` and `restore_state` until now."""
        return self._copied_bytes / max(self._copy_seconds, 1e-6)

    def save_state(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        """A copy of a slot's sequence, for `restore_state`."""
        started = time.perf_counter()
        size = self.state_size(slot)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        n_copied = llama_cpp.llama_state_seq_get_data(self._context, state, size, slot)
        assert n_copied == size, f"{n_copied} of {size} bytes of a sequence were copied"
        self._count_copy(size, started)
        return state

    def restore_state(self, slot: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Replaces a slot's sequence by a saved one."""
        started = time.perf_counter()
        self.trim(slot, 0)
        n_copied = llama_cpp.llama_state_seq_set_data(self._context, state, len(state), slot)
        assert n_copied == len(state), "a saved sequence did not fit a slot"
        self._count_copy(len(state), started)

    def _count_copy(self, n_bytes: int, started: float) -> None:
        self._copied_bytes += n_bytes
        self._copy_seconds += time.perf_counter() - started

    # --- set-up

    def _cache_bytes_per_token(self) -> float:
        """K and V. Most models leave out the size of a head; Qwen 3 and Gemma have another one than the usual."""
        usual: int = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        architecture = metadata(self._model, "general.architecture")
        sizes = [metadata(self._model, f"{architecture}.attention.{name}_length") for name in ("key", "value")]
        per_head = sum(int(size) if size.isdigit() else usual for size in sizes)
        n_layers: int = llama_cpp.llama_model_n_layer(self._model)
        n_heads: int = llama_cpp.llama_model_n_head_kv(self._model)
        return per_head * n_heads * n_layers * self._bytes_per_cached_value

    def _main_memory(self) -> dict[str, int]:
        """The main memory that a worker needs when its slots and its saved sequences are full, in bytes by use."""
        share = self.placement.main_memory_share
        kv_cache = self._cache_bytes_per_token() * self.window * self.n_slots
        return {
            "weights": int(llama_cpp.llama_model_size(self._model) * share),
            "kv_cache": int(kv_cache * share),
            "embeddings": self.embedder.memory_bytes(self._cache_bytes_per_token() * share) if self.embedder else 0,
            "saved_sequences": self.n_saved_bytes,
        }

    def _fitting_window(self, n_ctx: int) -> int:
        """Tokens per sequence: `n_ctx` (0: the model's own), or fewer if the KV caches would not fit the memory."""
        weights = llama_cpp.llama_model_size(self._model)
        budget = self.placement.cache_budget(weights, psutil.virtual_memory().available, self.n_saved_bytes)
        fitting = int(budget / (self._cache_bytes_per_token() * self._n_caches)) // CELL_ALIGNMENT * CELL_ALIGNMENT
        if fitting == 0:
            raise ModelLoadError(
                f"The KV caches of {self.n_slots} sequences do not fit into the free memory "
                f"({budget / 2**20:,.0f} MiB may be used): choose a smaller batch size."
            )
        window = min(n_ctx or self.n_ctx_train, self.n_ctx_train)
        if fitting < window:
            hint = " macOS reports memory pressure: close other programs." if has_memory_pressure() else ""
            logger.warning("Context window shortened from %d to %d tokens: memory is short.%s", window, fitting, hint)
        return min(window, fitting)

    def _measure_speeds(self) -> None:
        """Decodes one token, then SPEED_TEST_TOKENS, and copies their state, to know what each of them costs."""
        n_tokens = min(SPEED_TEST_TOKENS, self.n_batch)
        self._seconds_to_decode(1)  # the first decode also allocates memory
        self.seconds_per_pass = self._seconds_to_decode(1)
        self.prefilled_tokens_per_second = n_tokens / self._seconds_to_decode(n_tokens)
        self._copied_bytes, self._copy_seconds = 0, 0.0
        self.restore_state(0, self.save_state(0))
        self.trim(0, 0)

    def _seconds_to_decode(self, n_tokens: int) -> float:
        self.trim(0, 0)
        started = time.perf_counter()
        self.decode([Chunk(0, 0, [0] * n_tokens, False)])
        llama_cpp.llama_synchronize(self._context)
        return max(time.perf_counter() - started, 1e-6)

    def _fim_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before the text before a gap, before the text after it, and before the gap's; None: no such."""
        functions = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        before, after, middle = (function(self._vocab) for function in functions)
        return None if llama_cpp.LLAMA_TOKEN_NULL in (before, after, middle) else (before, after, middle)

    def _control_token_splitter(self, texts: Sequence[bytes]) -> re.Pattern[str]:
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        controls = {
            text.decode(errors="replace")
            for token, text in enumerate(texts)
            if text and llama_cpp.llama_vocab_get_attr(self._vocab, token) & special
        }
        longest_first = sorted(controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _special_tokens(self, texts: Sequence[bytes], is_special: Callable[[int], bool]) -> SpecialTokens:
        ids = frozenset(token for token in range(self.n_vocab) if is_special(token)) - self._end_tokens
        known = {*CALL_MARKS, *(mark for marks in MARKS for mark in marks)}
        names = {token: texts[token].decode(errors="replace") for token in ids}
        return SpecialTokens(ids, {name: token for token, name in names.items() if name in known})

    def _load_template(self, texts: Sequence[bytes]) -> ChatTemplate:
        def text_of(token: int) -> str:
            return texts[token].decode(errors="replace") if token >= 0 else ""

        source = llama_cpp.llama_model_chat_template(self._model, None)
        bos, eos = llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)
        try:
            return ChatTemplate(source.decode() if source else None, text_of(bos), text_of(eos))
        except TemplateError as error:
            raise ModelLoadError(f"'{self.path}': {error}.") from error

    def _check_size(self, text: str) -> bytes:
        """The text as UTF-8. Raises PromptTooLong, also for a text whose tokens could fit, but would take too long."""
        raw = text.encode()
        if len(raw) > self.window * self._longest_piece:
            n_tokens = len(raw) // self._longest_piece
            raise PromptTooLong(f"at least {n_tokens:,} tokens, but the context window has {self.window:,}")
        if len(raw) > (limit := max(MAX_TEXT_BYTES, MAX_BYTES_PER_TOKEN * self.window)):
            raise PromptTooLong(f"{len(raw):,} bytes of text are too many, at most {limit:,} are possible")
        return raw

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = self._check_size(text)
        room = len(raw) + 3  # a token is at least a byte; BOS, EOS and the space before a text come on top
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
        assert count >= 0, "a text has more tokens than bytes"
        return list(tokens[:count])


def _fingerprint(path: str, n_ctx: int) -> str:
    """Equal for workers with an equal file (by name and size), n_ctx and llama.cpp.

    The window is not part of it: a worker that starts with less free memory gets a smaller one.
    """
    identity = f"{Path(path).name} {Path(path).stat().st_size} {n_ctx} {version('llama-cpp-python')}"
    return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"


_LOG_LEVELS = {
    3: logging.WARNING,
    4: logging.ERROR,
}  # enum ggml_log_level in ggml.h; llama_cpp._logger has an older one


def _forward_log(level: int, text: bytes, _: object) -> None:
    """Forwards llama.cpp's warnings and errors to our log. By default llama.cpp prints all details to stderr."""
    if level in _LOG_LEVELS:
        logger.log(_LOG_LEVELS[level], "%s", text.decode(errors="replace").rstrip())


_FORWARD_LOG = llama_cpp.llama_log_callback(_forward_log)  # stays referenced: llama.cpp calls it at any time


def _load(path: str, params: llama_cpp.llama_model_params) -> tuple[llama_cpp.llama_model_p | None, Placement]:
    """The model (None if it cannot be loaded) and the placement of its layers, which only the log says."""
    placement = Placement()

    def on_log(level: int, text: bytes, _: object) -> None:
        placement.add_log_line(text.decode(errors="replace"))
        _forward_log(level, text, _)

    callback = llama_cpp.llama_log_callback(on_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        return llama_cpp.llama_model_load_from_file(path.encode(), params), placement
    finally:
        llama_cpp.llama_log_set(_FORWARD_LOG, ctypes.c_void_p(0))
