"""Makes the files of `make alpaca`: trails of two systems, exported and judged by our commands."""

from __future__ import annotations

import sys
from pathlib import Path

from srpo.cli.main import run
from srpo.revise.trail import Answer, Trail
from tests.judge import judge_server as js

COUNT = 60


def main(folder: Path) -> None:
    """Writes first.json, second.json and annotations.json there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, every in (("first", 2), ("second", 3)):
        texts = [("good " * (n % every) + 'answer "ß"\n\u2028 1.50').strip() for n in range(COUNT)]
        trails = [Trail(f"Question {n}: 1e5?", (Answer(text, 1),)) for n, text in enumerate(texts)]
        source, target = folder / f"{name}.jsonl", folder / f"{name}.json"
        source.write_text("".join(trail.to_json() + "\n" for trail in trails), "utf-8")
        words = ["--input", str(source), "--output", str(target), "--form", "alpaca", "--name", name]
        run(["exchange", *words])
    with js.judge_server(js.honest) as server:
        words = ["--first", str(folder / "first.json"), "--second", str(folder / "second.json")]
        words += ["--judge", "llm", "--judge_base_url", server.url, "--judge_model", "scripted"]
        words += ["--verdicts", str(folder / "verdicts.jsonl"), "--output", str(folder / "annotations.json")]
        run(["judge", "compare", *words])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
