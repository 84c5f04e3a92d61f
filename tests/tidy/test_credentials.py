"""Functions that take credentials take all three kinds."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = {"secret_file", "token", "token_file"}


def test_functions_that_take_a_secret_or_a_token_take_a_tokens_file_too():
    seen = 0
    for path in [*ROOT.glob("plugins/**/*.py"), *ROOT.glob("fs/client/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
            if "secret_file" in names and not node.name.startswith("_source"):
                assert names >= KINDS, f"{path.relative_to(ROOT)}: {node.name} lacks {KINDS - names}"
                seen += 1
    assert seen > 15, f"{seen} functions were found"
