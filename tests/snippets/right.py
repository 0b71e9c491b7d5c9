"""Snippets of users, each a function; pyright's strict mode has nothing to say about them. Read, and never run."""

import asyncio
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from archport import ArchportError, engine
from archport.compat import CrossEncoder, SentenceTransformer
from archport.contract import AdmissionRefused, InputError


def s01() -> np.ndarray:
    return engine.load("all-MiniLM-L6-v2").embed(["a text", "another"])


def s02() -> tuple[int, ...]:
    return engine.load(Path("folder")).embed("a text").shape


def s03(model: engine.Model) -> float:
    a, b = model.embed(["a", "b"])
    return float(a @ b)


def s04(model: engine.Model) -> np.ndarray:
    return model.encode_query("a question", dimensions=256)


def s05(model: engine.Model) -> np.ndarray:
    return model.encode_document(["a", "b"], overflow="truncate", progress=True)


def s06(model: engine.Model) -> np.ndarray:
    return model.similarity(model.encode_query(["q"]), model.encode_document(["d"]))


def s07(model: engine.Model) -> list[int]:
    made = model.embed(["a", ""], errors="collect")
    return [index for index in made.errors] + list(made.rows)


def s08(model: engine.Model) -> np.ndarray:
    return model.embed(["a"], errors="collect").results


def s09(model: engine.Model) -> list[str]:
    ranked = model.rerank("a query", ["one", "two"], top_k=1, return_documents=True)
    return [str(row.document) for row in ranked if row.score > 0.5]


def s10(model: engine.Model) -> dict[int, ArchportError]:
    return dict(model.rerank("q", ["d"], errors="collect").errors)


def s11(model: engine.Model) -> str:
    return model.classify("a text")[0].label


def s12(model: engine.Model) -> dict[str, float]:
    return model.classify([("a", "b")], raw_scores=True)[0].scores


def s13(model: engine.Model) -> str:
    return model.generate("Once upon a time", max_tokens=20).text


def s14(model: engine.Model) -> list[str]:
    return [made.text for made in model.generate(["one", "two"], temperature=0.7, seed=[1, 2])]


def s15(model: engine.Model) -> str:
    chat = [{"role": "user", "content": "Hello"}]
    return model.generate(chat, max_tokens=200, enable_thinking=False).text


def s16(model: engine.Model) -> Iterator[str]:
    for piece in model.generate("Once", stream=True):
        yield piece.text


def s17(model: engine.Model) -> str:
    with model.generate([1, 2, 3], stream=True, stop="\n") as pieces:
        return "".join(piece.text for piece in pieces)


def s18(model: engine.Model) -> int:
    return model.generate([1, 2, 3], max_tokens=4).usage.prompt_tokens


def s19(model: engine.Model) -> int:
    return len(model.generate("Once", n=3, temperature=1.0))


def s20(model: engine.Model) -> str:
    return model.plan([300, 20], new_tokens=10).explain()


def s21(model: engine.Model) -> str:
    return model.plan([300]).explain(verbose=True)


def s22() -> int:
    try:
        return len(engine.load("name", memory_budget="16GB").embed(["a"]))
    except AdmissionRefused as refusal:
        print(refusal)
    except InputError:
        pass
    return 0


def s23() -> str:
    with engine.load("name", dtype="float16", max_context=512) as model:
        return model.name


def s24(model: engine.Model) -> engine.Model:
    return pickle.loads(pickle.dumps(model))


def s25(model: engine.Model) -> engine.Model:
    return copy.deepcopy(model)


def s26(model: engine.Model) -> int:
    return int(model.count_tokens(["a", "b c"]).sum())


def s27(model: engine.Model) -> list[int]:
    return model.tokenizer.encode("a text").ids


def s28(model: engine.Model) -> tuple[int, int]:
    return model.dimensions, model.max_tokens


async def s29(model: engine.Model) -> np.ndarray:
    return await model.aembed(["a"], normalize=False)


async def s30(model: engine.Model) -> float:
    ranked = await model.arerank("q", ["d", "e"], top_k=1)
    return ranked[0].score


def s31(model: engine.Model) -> np.ndarray:
    return asyncio.run(model.aencode_query("q", prompt_name="query"))


def s32(model: engine.Model) -> int:
    return sum(len(vectors) for _, vectors in model.stream(open("texts.txt"), window=100))


def s33(model: engine.Model) -> np.ndarray:
    return model.embed(["a"], precision="int8", prompt="query: ")


def s34(model: engine.Model) -> list[str]:
    return [span.text for span in model.tag("Ada lives in Paris.")[0]]


def s35(model: engine.Model) -> str:
    return model.fill_mask("The capital of France is [MASK].", top_k=3)[0][0][0].token


def s36(model: engine.Model) -> np.ndarray:
    return model.maxsim("a query", ["a document"])


def s37(model: engine.Model) -> int:
    return model.memory().weights


def s38() -> int:
    return SentenceTransformer("all-MiniLM-L6-v2", truncate_dim=64).get_embedding_dimension()


def s39() -> float:
    return CrossEncoder("name", max_length=128).rank("q", ["d"], top_k=1)[0]["score"]


def s40(model: engine.Model) -> str:
    return "" if model.last_plan is None else model.last_plan.explain()
