"""The tokenizer: text to tokens and back, with the GGUF's vocabulary and chat template.

Special tokens have their effect only where they are wanted: a control token's name in a message stays text.
Knows nothing of contexts, logits and requests. Not thread-safe: `piece` has one buffer.
"""

import ctypes
import re
import secrets
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import llama_cpp
from llguidance.llamacpp import lltokenizer_from_vocab

from llama_cpp_worker.answer_grammar import SpecialTokens
from llama_cpp_worker.chat_template import ChatTemplate, TemplateError
from llama_cpp_worker.reasoning import MARKS
from llama_cpp_worker.tool_formats import CALL_MARKS, Message, with_parsed_arguments
from llama_cpp_worker.weights import ModelLoadError, Weights

MAX_TEXT_BYTES = 1_048_576  # of a text: it is tokenized in 0.5 s, in which no answer goes on;
MAX_BYTES_PER_TOKEN = 8  # more for a large context window


class InfillUnsupported(ValueError):
    """The model has no tokens that mark the text before and after a gap."""


class PromptTooLong(ValueError):
    """A text is too long for the context window, by its size. To tokenize it would stop all other answers."""


class Tokenizer:
    """The vocabulary of `weights` and its chat template.

    window: tokens of a sequence; a text that has more for certain is not tokenized.
    `end_tokens`: each ends an answer. `special_tokens`: see answer_grammar.py. `grammar_tokenizer`: for llguidance.
    `fim_tokens` mark a text with a gap: the part before it, the part after it, the gap. Most models have none.
    Raises ModelLoadError.
    """

    def __init__(self, weights: Weights, window: int) -> None:
        self.window = window
        self._vocab = llama_cpp.llama_model_get_vocab(weights.pointer)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._bos = [llama_cpp.llama_vocab_bos(self._vocab)] if llama_cpp.llama_vocab_get_add_bos(self._vocab) else []
        self._piece_buffer = ctypes.create_string_buffer(512)
        raw = [llama_cpp.llama_vocab_get_text(self._vocab, token) or b"" for token in range(self.n_vocab)]
        self._longest_piece = max(map(len, raw))
        texts = [text.decode(errors="replace") for text in raw]
        is_end = partial(llama_cpp.llama_vocab_is_eog, self._vocab)
        self.end_tokens = frozenset(filter(is_end, range(self.n_vocab)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # llguidance 1.9.1 calls llama_token_get_attr
            # Here and not in the first request, because it takes some tenths of a second.
            self.grammar_tokenizer = lltokenizer_from_vocab(self._vocab, eos_token=sorted(self.end_tokens))
        self.special_tokens = self._special_tokens(texts)
        self._mark_tokens = frozenset(self.special_tokens.marks.values())
        self._split_controls = self._control_token_splitter(texts)
        self.fim_tokens = self._fim_tokens()
        self.template = self._load_template(weights, texts)

    # --- text to tokens

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The tokens of a raw prompt.

        add_special: BOS comes first and EOS last, each if the model wants it.
        parse_special: the names of control tokens in the text become these tokens. Raises PromptTooLong.
        """
        raw = self._check_size(text)
        room = len(raw) + 3  # a token is at least a byte; BOS, EOS and the space before a text come on top
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
        assert count >= 0, "a text has more tokens than bytes"
        return list(tokens[:count])

    def tokenize_infill(self, prefix: str, suffix: str) -> list[int]:
        """The tokens of a text with a gap, so that the model continues with the text of the gap.

        The order is prefix, suffix, middle (PSM), as in llama-server's /infill. Both texts stay texts: names of
        control tokens in them are not parsed. Raises InfillUnsupported, PromptTooLong.
        """
        if self.fim_tokens is None:
            raise InfillUnsupported("this model cannot fill in the middle of a text; send the prompt without a suffix")
        before, after, middle = self.fim_tokens
        texts = [self.tokenize(text, add_special=False, parse_special=False) for text in (prefix, suffix)]
        return [*self._bos, before, *texts[0], after, *texts[1], middle]

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
            return self.tokenize(text, add_special=self.template.is_raw)
        return self._tokenize_guarded(parts)

    def _tokenize_guarded(self, parts: Sequence[str]) -> list[int]:
        """Tokenizes the text between two control tokens in one piece: SentencePiece puts a space before each piece."""
        tokens = list(self._bos) if self.template.is_raw else []
        plain = ""
        for index, part in enumerate(parts):
            pieces = [part] if index % 2 else re.split(f"({self._split_controls.pattern})", part)
            for position, piece in enumerate(pieces):
                if position % 2 == 0:
                    plain += piece
                    continue
                tokens += self.tokenize(plain, add_special=False, parse_special=False)
                tokens += self.tokenize(piece, add_special=False)
                plain = ""
        return tokens + self.tokenize(plain, add_special=False, parse_special=False)

    def _check_size(self, text: str) -> bytes:
        """The text as UTF-8. Raises PromptTooLong, also for a text whose tokens could fit, but would take too long."""
        raw = text.encode()
        if len(raw) > self.window * self._longest_piece:
            n_tokens = len(raw) // self._longest_piece
            raise PromptTooLong(f"at least {n_tokens:,} tokens, but the context window has {self.window:,}")
        if len(raw) > (limit := max(MAX_TEXT_BYTES, MAX_BYTES_PER_TOKEN * self.window)):
            raise PromptTooLong(f"{len(raw):,} bytes of text are too many, at most {limit:,} are possible")
        return raw

    # --- tokens to text

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

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, with the names of control tokens. Bytes that are no character become U+FFFD."""
        return b"".join(self.piece(token, shows_control=True) for token in tokens).decode(errors="replace")

    # --- set-up

    def _fim_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before the text before a gap, before the text after it, and before the gap's; None: no such."""
        functions = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        before, after, middle = (function(self._vocab) for function in functions)
        return None if llama_cpp.LLAMA_TOKEN_NULL in (before, after, middle) else (before, after, middle)

    def _control_token_splitter(self, texts: Sequence[str]) -> re.Pattern[str]:
        special = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        controls = {
            text
            for token, text in enumerate(texts)
            if text and llama_cpp.llama_vocab_get_attr(self._vocab, token) & special
        }
        longest_first = sorted(controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _special_tokens(self, texts: Sequence[str]) -> SpecialTokens:
        ids = frozenset(filter(self.grammar_tokenizer.is_special_token, range(self.n_vocab))) - self.end_tokens
        known = {*CALL_MARKS, *(mark for marks in MARKS for mark in marks)}
        return SpecialTokens(ids, {texts[token]: token for token in ids if texts[token] in known})

    def _load_template(self, weights: Weights, texts: Sequence[str]) -> ChatTemplate:
        source = llama_cpp.llama_model_chat_template(weights.pointer, None)
        ends = (llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab))
        bos, eos = (texts[token] if token >= 0 else "" for token in ends)
        try:
            return ChatTemplate(source.decode() if source else None, bos, eos)
        except TemplateError as error:
            raise ModelLoadError(f"'{weights.path}': {error}.") from error
