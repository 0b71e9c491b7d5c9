"""Cut The Jargon File into 1,000 paragraphs of mixed length: minilm/corpus.json.gz and minilm/paragraphs.json.

Knows the plain-text layout of the Debian package `dict-jargon` (entries at column 0, bodies indented by four). Knows no
model and no tokenizer. The output is committed, so this runs only when somebody wants other paragraphs:

    apt-get download dict-jargon && dpkg -x dict-jargon_*.deb jargon
    python tests/goldens/make_paragraphs.py jargon/usr/share/dictd/jargon.dict.dz
"""

import gzip
import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent / "minilm"
CORPUS_SIZE = 1000
REFERENCE_SIZE = 256  # paragraphs.json: the corpus' first rows, the ones with recorded vectors
SEED = 20240229


def read_entries(text: str) -> list[list[str]]:
    """Return one list of paragraphs per dictionary entry, unwrapped, with the {cross reference} braces removed."""
    entries: list[list[str]] = []
    for block in re.split(r"\n(?=\S)", text):
        _headword, _, body = block.partition("\n")
        paragraphs = []
        for chunk in re.split(r"\n\s*\n", body):
            lines = [line for line in chunk.split("\n") if line.strip()]
            # Deeper indentation is ASCII art, a quotation in verse or a program: not a paragraph of English.
            if not lines or any(line.startswith("     ") for line in lines):
                continue
            paragraph = " ".join(line.strip() for line in lines)
            paragraph = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", paragraph)
            letters = sum(character.isalpha() or character == " " for character in paragraph)
            if len(paragraph) >= 40 and letters >= 0.85 * len(paragraph):
                paragraphs.append(paragraph)
        if paragraphs:
            entries.append(paragraphs)
    return entries


def choose(entries: list[list[str]]) -> list[str]:
    """Return CORPUS_SIZE distinct paragraphs; every second entry is kept whole, so that some run over 256 tokens."""
    dice = random.Random(SEED)
    pool: list[str] = []
    for paragraphs in entries:
        if dice.random() < 0.5:
            pool.append("\n".join(paragraphs)[:6000])
        else:
            pool.extend(paragraphs)
    pool = sorted(set(pool))
    dice.shuffle(pool)
    return pool[:CORPUS_SIZE]


def main(source: Path) -> None:
    """Write both files from the package's dictionary (dictzip, which gzip reads)."""
    corpus = choose(read_entries(gzip.decompress(source.read_bytes()).decode()))
    HERE.mkdir(exist_ok=True)
    packed = gzip.compress(json.dumps(corpus, ensure_ascii=False).encode(), mtime=0)
    (HERE / "corpus.json.gz").write_bytes(packed)
    reference = json.dumps(corpus[:REFERENCE_SIZE], ensure_ascii=False, indent=0)
    (HERE / "paragraphs.json").write_text(reference + "\n", encoding="utf-8")
    characters = sorted(map(len, corpus))
    print(f"{len(corpus)} paragraphs, characters min/median/max {characters[0]}/{characters[500]}/{characters[-1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
