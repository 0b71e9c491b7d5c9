"""5,000 texts that tokenizers disagree on when they are put together wrongly, the same in every process.

Code, CJK, emoji, right-to-left scripts, the text of special tokens, white space, combining marks, English.
Imports the standard library only, so that both environments read it.
"""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

COUNT = 5000
# Texts whose ids share one digest.
BLOCK = 100
SPECIAL = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<|vision_pad|>",
    ),
    *(
        "<bos>",
        "<eos>",
        "<pad>",
        "<unk>",
        "<mask>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<unused7>",
    ),
    *("<|im_start", "<|im_ end|>", "[multimodal]", "<image_soft_token>", "</s>", "<s>", "<0x0A>", "\u2581"),
)
SPACES = (
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\ufeff",
    "   \n  ",
    "\x0b",
    "\x85",
)
EMOJI = ("😀", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🤷🏼‍♀️", "©", "™", "𝔘", "🜁")  # noqa: RUF001
RANGES = {
    "cjk": ((0x4E00, 0x9FFF), (0x3040, 0x30FF), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E)),
    "rtl": ((0x05D0, 0x05EA), (0x0621, 0x064A), (0x064B, 0x0655), (0x0700, 0x074A)),
    "marks": ((0x0041, 0x017F), (0x0300, 0x036F), (0x1E00, 0x1EFF), (0x0900, 0x0963)),
    "wide": ((0x21, 0x2FF), (0x370, 0x52F), (0x2000, 0x2BFF), (0x10000, 0x100FF), (0x1D400, 0x1D7FF)),
}
CODE = (
    "def f(x: int) -> str:\n    return f'{x:>{8}}'\n",
    "for (int i=0;i<n;++i){a[i]+=b[i]<<2;}",
    "x = 1_000.5e-10 + 0xFFp3",
    "SELECT * FROM t WHERE a<>'b''c' --x",
    "#!/bin/sh\nset -eu; echo \"${1:-x}\" | sed 's/a/b/g' >&2\n",
    '<div class="a">&nbsp;</div>',
    "\\begin{align} \\frac{1}{2} &= x^{2} \\\\ \\end{align}",
    "don't we'll I'VE they'RE it'S",
    "\t\tif err != nil {\n\t\t\treturn nil, err\n\t\t}\n",
    'let v: Vec<&\'static str> = vec!["a"; 3];',
    '{"a": [1, 2.50, null], "b\\u00e9": "\\n"}',
    "12345678901234567890 3.14159 1,000,000",
)


def texts() -> list[str]:
    """All of them."""
    chance = random.Random(15)
    path = Path(__file__).parent / "minilm" / "corpus.json.gz"
    corpus: list[str] = json.loads(gzip.decompress(path.read_bytes()))
    kinds: tuple[Callable[[], str], ...] = (
        lambda: _english(chance, corpus),
        lambda: "".join(chance.choice(CODE) for _ in range(chance.randint(1, 3))),
        lambda: _characters(chance, "cjk"),
        lambda: _characters(chance, "rtl"),
        lambda: _characters(chance, "marks"),
        lambda: _characters(chance, "wide"),
        lambda: chance.choice(("", " ", "a")).join(chance.choice(EMOJI) for _ in range(chance.randint(1, 8))),
        lambda: _mixed(chance, corpus, SPECIAL),
        lambda: _mixed(chance, corpus, SPACES),
        lambda: "".join(chance.choice(SPACES) for _ in range(chance.randint(0, 12))),
        lambda: _mixed(chance, corpus, (*SPECIAL, *SPACES, *EMOJI, *CODE)),
    )
    return [chance.choice(kinds)() for _ in range(COUNT)]


def _english(chance: random.Random, corpus: list[str]) -> str:
    text = chance.choice(corpus)
    start = chance.randrange(len(text))
    return text[start : start + chance.randint(1, 300)]


def _characters(chance: random.Random, kind: str) -> str:
    ranges = RANGES[kind]
    found = [chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randint(1, 40))]
    return "".join(character + (" " if chance.random() < 0.1 else "") for character in found)


def _mixed(chance: random.Random, corpus: list[str], between: tuple[str, ...]) -> str:
    parts: list[str] = []
    for _ in range(chance.randint(1, 6)):
        parts += [_english(chance, corpus)[: chance.randint(0, 20)], chance.choice(between)]
    return "".join(parts)
