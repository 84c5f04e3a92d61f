"""Continue a conversation after the server was restarted, without computing its beginning again.

    python examples/continue_conversation.py                     # in a temporary directory
    python examples/continue_conversation.py lu:/kv/chat.pages   # on a cluster

A small model with Multi-head Latent Attention and random weights, on the CPU, serves a long prompt and saves the pages
of its KV cache. One process then simply continues. Another one, restarted, finds the pages by the tokens of the
conversation, loads them, and continues as well; a third computes everything again. The first two must agree in every
bit of every logit.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from luciola.plugins.flashmla import (
    PageCache,
    PagedKVFile,
    PageLayout,
    flash_mla_with_kvcache,
    get_mla_metadata,
)

LAYERS, HIDDEN, HEADS, HEAD_DIM, VOCABULARY = 6, 512, 8, 64, 1000
LATENT, ROPE, PAGE = 512, 64, 64
MODEL = "example MLA, seed 7"
ANSWER_TOKENS = 24


class Model:
    """Attention in absorbed form: one latent row a token is key and value of all heads."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def weight(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator) * shape[-2] ** -0.5

        self.embedding = torch.randn((VOCABULARY, HIDDEN), generator=generator)
        self.head = weight(HIDDEN, VOCABULARY)
        self.layers = [
            {
                "down": weight(HIDDEN, LATENT + ROPE),
                "query": weight(HIDDEN, HEADS * (HEAD_DIM + ROPE)),
                "key": weight(HEADS, HEAD_DIM, LATENT),
                "value": weight(HEADS, LATENT, HEAD_DIM),
                "out": weight(HEADS * HEAD_DIM, HIDDEN),
                "wide": weight(HIDDEN, 4 * HIDDEN),
                "narrow": weight(4 * HIDDEN, HIDDEN),
            }
            for _ in range(LAYERS)
        ]

    def step(self, tokens: list[int], start: int, cache: PageCache, blocks: list[int]) -> torch.Tensor:
        """Logits after the last of some new tokens, the first of which is number `start` of its conversation."""
        places = torch.arange(start, start + len(tokens))
        table = torch.tensor([blocks], dtype=torch.int32)
        length = torch.tensor([start + len(tokens)], dtype=torch.int32)
        schedule, _ = get_mla_metadata()
        x = self.embedding[tokens]
        for weights, memory in zip(self.layers, cache.layers, strict=True):
            h = F.rms_norm(x, (HIDDEN,))
            latent, rope = (h @ weights["down"]).split((LATENT, ROPE), dim=-1)
            rows = torch.cat((F.rms_norm(latent, (LATENT,)), rotate(rope, places)), dim=-1)
            memory[table[0, places // PAGE].long(), places % PAGE, 0] = rows.to(torch.bfloat16)
            query, turned = (
                (h @ weights["query"]).view(-1, HEADS, HEAD_DIM + ROPE).split((HEAD_DIM, ROPE), -1)
            )
            absorbed = torch.einsum("shd,hdl->shl", query, weights["key"])
            q = torch.cat((absorbed, rotate(turned, places[:, None])), dim=-1).to(torch.bfloat16)
            out, _ = flash_mla_with_kvcache(q[None], memory, table, length, LATENT, schedule, causal=True)
            heads = torch.einsum("shl,hld->shd", out[0].float(), weights["value"])
            x = x + heads.flatten(1) @ weights["out"]
            x = x + F.silu(F.rms_norm(x, (HIDDEN,)) @ weights["wide"]) @ weights["narrow"]
        return F.rms_norm(x[-1], (HIDDEN,)) @ self.head


def rotate(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the last dimension."""
    angles = places[..., None] * 10_000.0 ** -(torch.arange(0, ROPE, 2) / ROPE)
    real, imaginary = x[..., ::2], x[..., 1::2]
    turned = (real * angles.cos() - imaginary * angles.sin(), real * angles.sin() + imaginary * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


class Conversation:
    """Tokens so far, and the blocks of the cache that hold them."""

    def __init__(self, model: Model, cache: PageCache) -> None:
        self.model, self.cache = model, cache
        self.tokens: list[int] = []
        self.digest = hashlib.sha256()  # of all logits since the start of this process

    def blocks(self, count: int) -> list[int]:
        """Blocks for that many tokens. They are spread over the cache, to show that they may."""
        return [number * 7 % self.cache.blocks for number in range(-(-count // PAGE))]

    def read(self, tokens: list[int]) -> int:
        """Takes tokens in, a page at a time; returns what the model would say next."""
        logits = torch.empty(0)
        for begin in range(0, len(tokens), PAGE):
            part = tokens[begin : begin + PAGE]
            start = len(self.tokens)
            self.tokens += part
            logits = self.model.step(part, start, self.cache, self.blocks(len(self.tokens)))
            self.digest.update(logits.numpy().tobytes())
        return int(logits.argmax())

    def answer(self, said: list[int]) -> list[int]:
        """Reads what was said and answers; the last token of the answer is not read yet."""
        answer = [self.read(said)]
        while len(answer) < ANSWER_TOKENS:
            answer.append(self.read(answer[-1:]))
        return answer


def words(seed: int, count: int) -> list[int]:
    chosen = random.Random(seed)
    return [chosen.randrange(VOCABULARY) for _ in range(count)]


def serve(how: str, location: str, prompt_tokens: int) -> None:
    """One server process. Prints what it did as JSON."""
    torch.set_num_threads(1)
    layout = PageLayout(layers=LAYERS, page_tokens=PAGE)
    blocks = -(-(prompt_tokens + 4 * ANSWER_TOKENS) // PAGE)
    blocks += blocks % 7 == 0  # 7 must have no divisor in common with it
    cache = PageCache.allocate(layout, blocks)
    conversation = Conversation(Model(), cache)
    prompt, question = words(1, prompt_tokens), words(2, 10)
    began = time.perf_counter()
    if how == "continues":
        first = conversation.answer(prompt)
        with PagedKVFile.create(location, layout, 4 * blocks, model=MODEL) as file:
            names = file.names(conversation.tokens)
            file.save(names, conversation.blocks(len(conversation.tokens)), cache).wait()
        Path(sys.argv[-1]).write_text(json.dumps([*conversation.tokens, first[-1]]))
        history = [first[-1]]
    else:
        history = json.loads(Path(sys.argv[-1]).read_text())
        if how == "loads":
            with PagedKVFile.open(location, model=MODEL) as file:
                pages = file.match(history)
                known = sum(page.name.tokens for page in pages)
                file.load(pages, conversation.blocks(known), cache).wait()
            conversation.tokens, history = history[:known], history[known:]
    ready = time.perf_counter()
    read_before = len(conversation.tokens)
    conversation.digest = hashlib.sha256()
    second = conversation.answer([*history, *question])
    report = {
        "answer": second,
        "logits": conversation.digest.hexdigest(),
        "known": read_before,
        "ready_s": ready - began,
        "answer_s": time.perf_counter() - ready,
    }
    print(json.dumps(report))


def run(how: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--serve", how, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    report: dict[str, object] = json.loads(done.stdout)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "location", nargs="?", help="a new file of KV pages: a path, or a location on a cluster"
    )
    parser.add_argument("--tokens", type=int, default=1500, help="length of the prompt (1500)")
    parser.add_argument("--serve", choices=["continues", "loads", "computes"], help=argparse.SUPPRESS)
    parser.add_argument("history", nargs="?", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.location, options.tokens)
        return
    with tempfile.TemporaryDirectory() as directory:
        location = options.location or f"{directory}/chat.pages"
        arguments = (f"--tokens={options.tokens}", location, f"{directory}/history.json")
        print(f"a prompt of {options.tokens} tokens, answered; pages saved to {location}")
        continued = run("continues", *arguments)
        loads = run("loads", *arguments)
        computes = run("computes", *arguments)
    again = float(str(computes["ready_s"])) + float(str(computes["answer_s"]))
    loaded = float(str(loads["ready_s"])) + float(str(loads["answer_s"]))
    print(f"without a restart   the second answer is {continued['answer'][:6]} …")  # type: ignore[index]
    print(
        f"restarted, loading  {loads['known']} tokens found in {loads['ready_s']:.3f} s; answered after {loaded:.2f} s"
    )
    print(f"restarted, computed answered after {again:.2f} s")
    if (loads["answer"], loads["logits"]) != (continued["answer"], continued["logits"]):
        sys.exit("the answers differ: that is a defect")
    print(
        f"equal in every bit of every logit; {again - loaded:.2f} s saved, {again / loaded:.1f} times faster"
    )


if __name__ == "__main__":
    main()
