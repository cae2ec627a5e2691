"""Judges code by unit tests, in the formats of MBPP and HumanEval."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Mapping

from srpo.data.values import Prompt, last_message
from srpo.errors import DataError
from srpo.judge.sandbox import Job, passes

EXPECTED = "test code, a list of asserts (MBPP), code with check(candidate) (HumanEval), or an object with either"
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def unit_tests(prompt: Prompt, answer: str, gold: object) -> float:
    r"""Returns 1 if the code in the answer passes every test, else 0; the code runs in a sandbox with limits.

    Args:
        answer: code, a completion of the prompt's code, or text with fenced code. Of several blocks, the last one
            that defines the tested function counts.
        gold: MBPP's `test_list`, HumanEval's `test`, other test code, or an object with these keys and optionally
            `test_setup_code`, `test_imports` and `entry_point`. Without `entry_point`, the tests' `check` gets the
            last function that the prompt defines.

    Raises:
        DataError: the gold answer has a form other than these, or is not Python code.
        ConfigError: the system is not POSIX.

    Example:
        >>> unit_tests("Double a number.", "```python\ndef f(x):\n    return 2 * x\n```", ["assert f(2) == 4"])
        1.0
    """
    tests, entry_point = _tests(gold)
    tree = _parsed(tests)
    if tree is None:
        raise DataError("the tests are not Python code", expected=EXPECTED)
    start = last_message(prompt)
    checks = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    if checks and not entry_point:
        defined = re.findall(r"^def (\w+)", start, re.MULTILINE)
        if not defined:
            raise DataError("the tests have no entry_point, and the prompt defines no function", expected=EXPECTED)
        entry_point = defined[-1]
    known = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    functions = [entry_point] if checks else [name for name in known if not hasattr(builtins, name)]
    code = _code(start, answer, functions)
    return float(passes(Job(code, tests, functions, known, entry_point if checks else "")))


def _tests(gold: object) -> tuple[str, str]:
    """Test code in a gold answer, and the name of the tested function, "" if the gold answer has no `entry_point`."""
    parts: list[object] = [gold]
    entry_point = ""
    if isinstance(gold, Mapping):
        imports, setup = gold.get("test_imports") or [], gold.get("test_setup_code") or ""
        parts = [*(imports if isinstance(imports, list) else [imports]), setup, gold.get("test_list", gold.get("test"))]
        entry_point = str(gold.get("entry_point") or "")
    lines = [line for part in parts for line in (part if isinstance(part, list) else [part])]
    if not lines or not all(isinstance(line, str) for line in lines) or not str(lines[-1]).strip():
        raise DataError(f"the gold answer is {type(gold).__name__}, without tests", expected=EXPECTED)
    return "\n".join(map(str, lines)), entry_point


def _code(start: str, answer: str, functions: list[str]) -> str:
    """The program to test: the code in `answer`, after the prompt's text `start` where the prompt is code.

    Of several code blocks, the last one that defines one of the tested `functions` is taken.
    """
    answer = answer.replace("\r\n", "\n")
    blocks = _FENCE.findall(answer) or [answer]
    wanted = [block for block in blocks if any(re.search(rf"^def {name}\b", block, re.MULTILINE) for name in functions)]
    code = (wanted or blocks)[-1]
    stub = f"{start.rstrip()}\n    pass\n"  # HumanEval's prompts end in a docstring; an empty body completes them
    # Only the prompt is parsed in this process: a hostile answer can crash Python's parser.
    if "def " not in start or _parsed(stub) is None:
        return code
    return f"{stub}\n{code}" if wanted else start + code


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
