"""Unit tests as a judge: both formats by hand and on real data, and hostile answers that must neither pass nor harm."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from srpo.errors import ConfigError, DataError
from srpo.judge import sandbox
from srpo.judge.sandbox import DEFAULT, Job, Limits, passes
from srpo.judge.single import load_judge
from srpo.judge.unit_tests import unit_tests

MBPP = ["assert double(2) == 4", "assert double(-1) == -2"]
PROMPT = 'import math\n\n\ndef helper(x):\n    return x + x\n\n\ndef double(x: int) -> int:\n    """Doubles."""\n'
HUMAN_EVAL = "def check(candidate):\n    assert candidate(2) == 4\n    assert helper(3) == 6\n"
GOOD, BAD = "def double(x):\n    return 2 * x\n", "def double(x):\n    return x + 2\n"
FAST = Limits(seconds=1, wait=1.5)


@pytest.mark.parametrize(
    ("prompt", "answer", "gold", "score"),
    [
        ("Double.", GOOD, MBPP, 1),
        ("Double.", BAD, MBPP, 0),
        ("Double.", GOOD.replace("\n", "\r\n"), "\n".join(MBPP), 1),
        ("Double.", f"Sure:\n```python\n{BAD}```\nNo, better:\n```python\n{GOOD}```\nDone.", MBPP, 1),
        ("Double.", f"```\n{GOOD}```\nUse it so:\n```\nprint(double(2))\n```", MBPP, 1),
        ("Double.", f"```python\n{GOOD}", MBPP, 1),  # the fence is cut off
        ("Double.", "I cannot do that.", MBPP, 0),
        ("Double.", "", MBPP, 0),
        (PROMPT, "    return 2 * x\n", HUMAN_EVAL, 1),  # a completion
        (PROMPT, "    return x\n", HUMAN_EVAL, 0),
        (PROMPT, f"```python\n{GOOD}```", HUMAN_EVAL, 1),  # the prompt's helper stays
        ([{"role": "user", "content": PROMPT}], GOOD, {"test": HUMAN_EVAL, "entry_point": "double"}, 1),
        (PROMPT, "    return 2 * x\n\ndef check(candidate):\n    pass\n", HUMAN_EVAL.replace("== 4", "== 5"), 0),
        ("Tree.", "class Node:\n    def __init__(self, x):\n        self.x = x\n\ndef value(n):\n    return n.x\n",
         {"test_setup_code": "root = Node(7)", "test_list": ["assert value(root) == 7"]}, 1),
        ("Tree.", "class Node:\n    pass\n\ndef make():\n    return Node()\n", ["assert isinstance(make(), Node)"], 1),
        ("Count.", "from collections import Counter\ndef count(s):\n    return Counter(s)\n",
         ["assert count('aab') == {'a': 2, 'b': 1}"], 1),
        ("Point.", "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f():\n    return P(1).x\n",
         ["assert f() == 1"], 1),
    ],
)  # fmt: skip
def test_worked_examples(prompt: Any, answer: str, gold: object, score: float) -> None:
    assert unit_tests(prompt, answer, gold) == score


@pytest.mark.parametrize("gold", [None, 4, [], [3], "", {"tests": "x"}, {"test_list": []}, "assert (", [None]])
def test_a_gold_answer_without_tests_is_an_error(gold: object) -> None:
    with pytest.raises(DataError, match="tests"):
        load_judge("unit_tests")("Double.", GOOD, gold)


def test_check_without_a_function_is_an_error() -> None:
    with pytest.raises(DataError, match="entry_point"):
        unit_tests("Double.", GOOD, HUMAN_EVAL)


# ---------------------------------------------------------------------- answers that fake a pass

EQUAL = """
class Equal(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __sub__ = __rsub__ = __eq__
"""
FAKES = {
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exit later": "def double(x):\n    raise SystemExit(0)",
    "equal object": EQUAL + "def double(x): return Equal()",
    "equal object inside": EQUAL + "def double(x): return [{1: Equal()}]",
    "equal object under a false name": EQUAL + "Equal.__module__ = 'builtins'\nEqual.__name__ = 'int'\n"
    "def double(x): return Equal()",
    "builtins": "import builtins\nbuiltins.int = builtins.AssertionError = lambda *a: 4\ndef double(x): return 'no'",
    "thread": "import threading, os, time\nthreading.Thread(target=lambda: (time.sleep(.2), os._exit(0))).start()\n"
    "def double(x): return time.sleep(9)",
    "report": "import os\nfor fd in range(30):\n    try: os.write(fd, b'0' * 32)\n    except OSError: pass\n"
    "def double(x): return None",
}


@pytest.mark.parametrize("name", FAKES)
def test_faked_passes_score_0(name: str) -> None:
    tests = "assert double(2) == 4" if "inside" not in name else "assert double(2) == [{1: 4}]"
    assert not passes(Job(FAKES[name], tests, ["double"], ["double"]), FAST)


@pytest.mark.parametrize("name", ["exit", "hard exit", "equal object", "equal object inside", "exit later"])
def test_control_the_same_answers_pass_in_a_plain_process(name: str) -> None:
    tests = "assert double(2) == 4" if "inside" not in name else "assert double(2) == [{1: 4}]"
    assert subprocess.run([sys.executable, "-c", f"{FAKES[name]}\n{tests}"], timeout=20).returncode == 0


# ---------------------------------------------------------------------- answers that do harm


@pytest.fixture(params=["namespaces", "hook alone"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sandbox as it is, and as on a system without namespaces."""
    if request.param == "hook alone":
        monkeypatch.setattr(sandbox, "_namespaces", tuple)
    return str(request.param)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def run_hostile(code: str, limits: Limits = FAST) -> bool:
    return passes(Job(textwrap.dedent(code), "assert True"), limits)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "x = 'a' * 10**10",
        "x = []\nwhile True: x.append(' ' * 10**6)",
        "10 ** 10 ** 9",
        "def f(): f()\nf()",
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.Popen(['sleep', '60'])",
        "import os\nos.system('true')",
        "import ctypes\nctypes.string_at(0)",
        "import _posixsubprocess",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal\nos.killpg(0, signal.SIGKILL)",
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        "(" * 10**5,
        "-" * 10**6 + "1",
        "x = 'a\0b'",
        "x = '\ud800'",
        "def",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    ],
)  # fmt: skip
def test_hostile_code_ends_within_its_limits_and_scores_0(code: str) -> None:
    assert not run_hostile(code)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.Popen(['sleep', '60'])",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import socket\nsocket.socket()",
        "import ctypes\nctypes.string_at(0)",
        "while True: pass",
    ],
)
def test_hostile_code_scores_0_behind_the_hook_alone(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_namespaces", tuple)
    assert not run_hostile(code)


def test_endless_output_is_discarded(layer: str) -> None:
    # Code that must pass gets the limits of a user: a busy machine starts a process in more than 1.5 s.
    assert run_hostile("print('x' * 10**7)\nimport sys\nsys.stderr.write('y' * 10**7)", DEFAULT)


def test_no_file_is_written_changed_or_removed(tmp_path: Path, layer: str) -> None:
    (tmp_path / "kept").write_text("kept")
    for act in (
        "open('{0}/new', 'w').write('x')",
        "open('{0}/kept', 'a').write('x')",
        "import os; os.open('{0}/new', os.O_CREAT | os.O_WRONLY)",
        "import os; os.remove('{0}/kept')",
        "import os; os.rename('{0}/kept', '{0}/other')",
        "import os; os.truncate('{0}/kept', 0)",
        "import os; os.mkdir('{0}/folder')",
        "import os; os.symlink('{0}/kept', '{0}/new')",
        "import os; os.chmod('{0}/kept', 0)",
        "import pathlib; pathlib.Path('{0}/new').touch()",
        "import shutil; shutil.rmtree('{0}')",
        "import sqlite3; sqlite3.connect('{0}/new').execute('create table t (x)')",
        "import tempfile; tempfile.NamedTemporaryFile(dir='{0}', delete=False).write(b'x')",
        "open('scratch', 'w').write('x')",
    ):
        assert not run_hostile(act.format(tmp_path)), act
        assert [path.name for path in tmp_path.iterdir()] == ["kept"], act
        assert (tmp_path / "kept").read_text() == "kept", act
    # Control: a plain process does write.
    subprocess.run([sys.executable, "-c", f"open('{tmp_path}/new', 'w').write('x')"], check=True)
    assert (tmp_path / "new").exists()


def test_the_network_is_out_of_reach(listener: socket.socket, layer: str) -> None:
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 1)"
    assert not run_hostile(code)
    with pytest.raises(TimeoutError):
        listener.accept()
    # Control: a plain process does connect.
    subprocess.run([sys.executable, "-c", code], check=True)
    listener.accept()[0].close()


@pytest.mark.skipif(not sandbox._namespaces(), reason="no namespaces on this system")
def test_without_the_hook_the_namespaces_block_the_network(listener: socket.socket) -> None:
    """The kernel's layer alone: the same connection from a process that has no hook."""
    code = f"import socket\nsocket.create_connection(('127.0.0.1', {listener.getsockname()[1]}), 1)"
    found = subprocess.run([*sandbox._namespaces(), sys.executable, "-c", code], capture_output=True)
    assert found.returncode != 0
    with pytest.raises(TimeoutError):
        listener.accept()


def test_without_the_hook_landlock_blocks_writing(tmp_path: Path) -> None:
    """The kernel's layer alone: the same writes from a process that has no hook."""
    code = "from srpo.judge.sandbox_child import forbid_writing\nassert forbid_writing(), 'none'\n"
    if "none" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr:
        pytest.skip("no Landlock on this system")
    (tmp_path / "kept").write_text("kept")
    for act in ("open('new', 'w')", "open('kept', 'a')", "import os; os.remove('kept')", "import os; os.mkdir('new')"):
        command = [sys.executable, "-c", f"{code}\n{act}"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": os.getcwd()})
        assert "PermissionError" in found.stderr, act
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_sandbox_that_does_not_work_is_an_error_and_not_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHILD", Path("missing.py"))
    sandbox._expect_working.cache_clear()
    with pytest.raises(ConfigError, match="cannot run any code"):
        unit_tests("Double.", GOOD, MBPP)
    sandbox._expect_working.cache_clear()


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted-0123")
    assert passes(Job("import os\nnames = [*os.environ]", "assert not [n for n in names if 'KEY' in n]"))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="no list of processes")
def test_no_process_is_left_behind(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are recognised by their folder: other tests run sandboxes of their own at the same time."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_hostile("import time\ntime.sleep(600)")
    for pid in processes_below(tmp_path):  # killed, and perhaps not gone yet
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(int(pid))], [], [], 60)
    assert not processes_below(tmp_path)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as control:
        assert processes_below(tmp_path) == [str(control.pid)]
        control.kill()


def processes_below(folder: Path) -> list[str]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd").startswith(str(folder)):
                found.append(name)
    return found


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_pass_and_wrong_ones_fail(name: str) -> None:
    if not os.environ.get("SRPO_REAL_DATA"):
        pytest.skip("SRPO_REAL_DATA names no folder")
    folder = Path(os.environ["SRPO_REAL_DATA"])
    if name == "mbpp":
        rows = [json.loads(line) for line in (folder / "mbpp.jsonl").read_text().splitlines()][::20]
        cases = [(row["text"], row["code"], row) for row in rows]
    else:
        text = gzip.decompress((folder / "humaneval.jsonl.gz").read_bytes()).decode()
        rows = [json.loads(line) for line in text.splitlines()][::8]
        cases = [(row["prompt"], row["canonical_solution"], row["test"]) for row in rows]
    assert [unit_tests(*case) for case in cases] == [1.0] * len(cases)
    assert [unit_tests(prompt, "    return None\n", gold) for prompt, _, gold in cases] == [0.0] * len(cases)
