"""How many lines of code there are, without docstrings, comments and blank lines.

python benchmarks/size.py [FOLDER]
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

CORE = ("network", "plan", "optimizers", "layers", "backend", "operations", "formulas")
"""Of xnet/: what is to be read in one sitting."""

NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def lines_of_code(path: Path) -> int:
    """Lines that hold code."""
    source = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def main() -> None:
    """Print the size of each folder, and of the core."""
    home = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    for folder in ("xnet", "backends", "tests", "benchmarks"):
        print(f"{sum(map(lines_of_code, (home / folder).rglob('*.py'))):6,} {folder}")
    core = [home / "xnet" / f"{name}.py" for name in CORE]
    print(f"{sum(lines_of_code(path) for path in core if path.exists()):6,} of them the core")


if __name__ == "__main__":
    main()
