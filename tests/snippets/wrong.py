"""Calls that are wrong, one in every function; pyright says so at the line with the mark. Read, and never run."""

from archport import engine


def w01(model: engine.Model) -> object:
    return model.encode_query("q", dimension=3)  # wrong


def w02(model: engine.Model) -> object:
    return model.embed(["a"], batch_size=32)  # wrong


def w03(model: engine.Model) -> object:
    return model.embed(["a"], overflow="cut")  # wrong


def w04(model: engine.Model) -> object:
    return model.embed(["a"], precision="int4")  # wrong


def w05(model: engine.Model) -> object:
    return model.rerank("q", ["d"], top_n=3)  # wrong


def w06(model: engine.Model) -> object:
    return model.rerank(["d"], "q", return_documents="yes")  # wrong


def w07(model: engine.Model) -> object:
    return model.classify("a", apply_softmax=True)  # wrong


def w08(model: engine.Model) -> object:
    return model.generate("Once", max_new_tokens=10)  # wrong


def w09(model: engine.Model) -> object:
    return model.generate("Once", temperature="hot")  # wrong


def w10(model: engine.Model) -> str:
    return model.generate(["one", "two"]).text  # wrong


def w11() -> object:
    return engine.load("name", torch_dtype="float16")  # wrong


def w12(model: engine.Model) -> object:
    return model.embed(["a"], errors="ignore")  # wrong
