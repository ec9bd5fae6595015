#!/usr/bin/env python3
"""Makes small vocabularies in the formats of tiktoken and sentencepiece, and what these libraries make of texts.

Each directory beside this script is the tokenizer of a model without a `tokenizer.json`, and a `cases.json`:

- `cases`: texts, with the `ids` in which nothing is special, the ids where special tokens are read as such
  (`rendered`, where they differ), and what the library decodes `ids` to (`decoded`, where it is not the text).
- `tokens`: the bytes of every token, in hex.

    python3 -m venv /tmp/venv
    /tmp/venv/bin/pip install -r tests/tokenizers/requirements.txt
    /tmp/venv/bin/python tests/tokenizers/make.py            write all anew
    /tmp/venv/bin/python tests/tokenizers/make.py --check    compare, write nothing
"""

import argparse
import base64
import filecmp
import io
import json
import re
import sys
import tempfile
from pathlib import Path

import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from texts import PROSE, TEXTS, drawn

# By which Moonshot's tokenization_kimi.py cuts texts.
KIMI_PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])
KIMI_RESERVED = 256
# Names and places as in Kimi K2, counted from the first reserved id.
KIMI_NAMED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 9: "[EOT]",
              10: "<|im_system|>", 11: "<|tool_calls_section_begin|>", 13: "<|tool_call_begin|>", 17: "<|im_middle|>",
              22: "<think>", 23: "</think>", 254: "[UNK]", 255: "[PAD]"}
NOT_SPECIAL = ("<|tool_call", "<think>", "</think>")

CHARACTERS = sorted(set(pre_tokenizers.ByteLevel.alphabet()))

# Of what a model of sentencepiece replaces: compatibility characters, a composition, what vanishes, odd spaces.
REPLACEMENTS = {"Ａ": "A", "Ｂ": "B", "①": "1", "ﬁ": "fi", "ﬁﬁ": "FIFI", "e\u0301": "é", "e\u0301\u0301": "ë", "\u200b": "",
                "\u3000": " ", "\t": " ", "\u00a0": " ", "㍿": "株式会社", "\u0001": "  "}

SENTENCEPIECE = {
    # As Llama 2's.
    "sentencepiece-bpe": {
        "train": dict(model_type="bpe", vocab_size=760, byte_fallback=True, split_digits=True, character_coverage=0.99,
                      normalization_rule_name="identity", remove_extra_whitespaces=False,
                      allow_whitespace_only_pieces=True),
        "settings": {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"},
    },
    # As Gemma's: no space before a text, runs of blanks that are defined, and a tab that is only a byte.
    "sentencepiece-defined": {
        "train": dict(model_type="bpe", vocab_size=700, byte_fallback=True, character_coverage=0.98,
                      normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
                      allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>",
                      eos_piece="<eos>", control_symbols=["<start_of_turn>"],
                      user_defined_symbols=["<mask>", "\n\n", "▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁", "[BOS]", "机器",
                                            "<end_of_turn>"]),
        "settings": {"tokenizer_class": "GemmaTokenizer"},
        "tabs": True,
    },
    "sentencepiece-unigram": {
        "train": dict(model_type="unigram", vocab_size=310, character_coverage=0.98, replacements=REPLACEMENTS,
                      user_defined_symbols=["<mask>", "ﬁx"]),
        "settings": {"bos_token": "<s>", "eos_token": "</s>"},
    },
    "sentencepiece-unigram-bytes": {
        "train": dict(model_type="unigram", vocab_size=560, byte_fallback=True, character_coverage=0.98,
                      normalization_rule_name="identity", remove_extra_whitespaces=False, split_by_whitespace=False),
        "settings": {"tokenizer_class": "LlamaTokenizer", "legacy": True},
    },
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if check else here
        make_kimi(out / "kimi")
        for name, case in SENTENCEPIECE.items():
            make_sentencepiece(out / name, case)
        if check:
            made = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
            changed = [str(path) for path in made if not filecmp.cmp(out / path, here / path, shallow=False)]
            sys.exit(f"other than before: {', '.join(changed)}" if changed else 0)


def make_kimi(out):
    out.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(KIMI_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=743, initial_alphabet=CHARACTERS, show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    by_character = {character: byte for byte, character in enumerate(byte_characters())}
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes(by_character[character] for character in name) for name, _ in vocab]
    # One that is a whole piece or nothing.
    tokens.append(b"zqxjkv")
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (out / "tiktoken.model").write_text("".join(lines))
    ranks = load_tiktoken_bpe(str(out / "tiktoken.model"))
    base = len(ranks)
    names = {base + place: name for place, name in KIMI_NAMED.items()}
    special = {names.get(token, f"<|reserved_token_{token}|>"): token for token in range(base, base + KIMI_RESERVED)}
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    write_json(out / "tokenizer_config.json", {
        "added_tokens_decoder": {
            str(token): {"content": name, **flags, "special": not name.startswith(NOT_SPECIAL)}
            for token, name in names.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "tokenizer_class": "TikTokenTokenizer",
    })
    # Tokens that are not called special are markers all the same, so they are read in every text.
    always = {name for name in special if name.startswith(NOT_SPECIAL)}
    cases = []
    for text in TEXTS + drawn(40):
        ids = encoding.encode(text, allowed_special=always, disallowed_special=())
        cases.append(case_of(text, ids, encoding.encode(text, allowed_special="all"), encoding.decode(ids)))
    write_cases(out, cases, [encoding.decode_single_token_bytes(token) for token in range(base + KIMI_RESERVED)])


def byte_characters():
    """The character of every byte in GPT-2's alphabet."""
    prints = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def make_sentencepiece(out, case):
    out.mkdir(exist_ok=True)
    options = dict(case["train"])
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        replacements = options.pop("replacements", None)
        if replacements:
            for before, after in replacements.items():
                codes = [" ".join(f"{ord(character):X}" for character in text) for text in (before, after)]
                rules.write("\t".join(codes) + "\n")
            rules.flush()
            options["normalization_rule_tsv"] = rules.name
        # Training gives the same on one thread only.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(PROSE.splitlines() * 2), model_writer=model, num_threads=1, minloglevel=2, **options)
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    if case.get("tabs"):
        assert "\t\t" in [piece.piece for piece in proto.pieces]
        for piece in proto.pieces:
            piece.piece = "꙰" if piece.piece == "\t" else piece.piece
    # Where the rules were matters to nobody.
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    (out / "tokenizer.model").write_bytes(proto.SerializeToString(deterministic=True))
    write_json(out / "tokenizer_config.json", case["settings"])

    whole = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    later = sentencepiece_model_pb2.ModelProto()
    later.CopyFrom(proto)
    if not case["settings"].get("legacy"):
        later.normalizer_spec.add_dummy_prefix = False
    later = sentencepiece.SentencePieceProcessor(model_proto=later.SerializeToString())
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    # The unknown piece has a role, which makes it special.
    control = [piece.piece for piece in proto.pieces if piece.type in (kinds.CONTROL, kinds.UNKNOWN)]
    if "tokenizer_class" not in case["settings"]:
        control.remove("<unk>")
    pattern = re.compile("(" + "|".join(map(re.escape, control)) + ")")

    def rendered(text):
        ids, is_first = [], True
        for part in filter(None, pattern.split(text)):
            encoder = whole if is_first else later
            ids += [whole.piece_to_id(part)] if part in control else encoder.encode(part)
            is_first = False
        return ids

    cases = []
    for text in TEXTS + drawn(40):
        ids = whole.encode(text)
        cases.append(case_of(text, ids, rendered(text), whole.decode(ids)))
    write_cases(out, cases, [bytes_of(piece, kinds) for piece in proto.pieces])


def bytes_of(piece, kinds):
    if piece.type == kinds.BYTE:
        return bytes([int(piece.piece[1:-1], 16)])
    return piece.piece.replace("▁", " ").encode()


def case_of(text, ids, rendered, decoded):
    case = {"text": text, "ids": ids}
    if rendered != ids:
        case["rendered"] = rendered
    if decoded != text:
        case["decoded"] = decoded
    return case


def write_cases(out, cases, tokens):
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    tokens = json.dumps([token.hex() for token in tokens])
    (out / "cases.json").write_text(f'{{"cases": [\n{lines}\n],\n"tokens": {tokens}}}\n')


def write_json(file, value):
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
