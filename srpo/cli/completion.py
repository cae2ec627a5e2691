"""`srpo completion`: prints a shell script, made by the library shtab, that completes verbs and flags."""

from __future__ import annotations

from dataclasses import dataclass

from srpo.cli.flags import ONLY_PARSER, FlagParser, ParserMade, parse
from srpo.errors import ConfigError
from srpo.settings import setting

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """Print the completion of verbs and flags for a shell:

    srpo completion bash > ~/.local/share/bash-completion/completions/srpo
    srpo completion zsh  > ~/.zfunc/_srpo          # with `fpath+=~/.zfunc` before compinit in ~/.zshrc
    srpo completion fish > ~/.config/fish/completions/srpo.fish
"""


@dataclass(kw_only=True)
class Arguments:
    """Settings of `srpo completion`, which prints a script with which a shell completes srpo's commands and flags."""

    shell: str = setting("bash", "Name of the shell: bash, zsh or fish.", choices=SHELLS, positional=True)


def parsers() -> dict[str, FlagParser]:
    """Returns verb, such as "train", → its argument parser; actions of `srpo judge` have keys such as "judge check"."""
    from srpo.cli import judge, judge_files
    from srpo.cli.main import VERBS, module_of

    mains = {verb: module_of(verb).main for verb in VERBS if verb != "judge"}
    mains |= {"judge check": judge.check, "judge compare": judge_files.compare, "judge agree": judge_files.agree}
    found = {}
    for verb, main in mains.items():
        try:
            main(ONLY_PARSER)
        except ParserMade as made:
            found[verb] = made.parser
    return found


def whole_parser() -> FlagParser:
    """Returns one argument parser for the command `srpo`, with a subparser for each verb, such as train."""
    from srpo.cli.main import VERBS

    whole = FlagParser(prog="srpo", allow_abbrev=False)
    whole.add_argument("--version", action="store_true", help="Print the version.")
    verbs = whole.add_subparsers(parser_class=FlagParser)
    made = parsers()
    for verb, text in VERBS.items():
        shown = verbs.add_parser(verb, help=text, add_help=False)
        if verb == "judge":
            actions = shown.add_subparsers(parser_class=FlagParser)
            for name in (name for name in made if name.startswith("judge ")):
                _copy(made[name], actions.add_parser(name.partition(" ")[2], add_help=False))
        else:
            _copy(made[verb], shown)
    return whole


def _copy(parser: FlagParser, into: FlagParser) -> None:
    for action in parser._actions:
        into._add_action(action)


def main(argv: list[str]) -> int:
    """Runs `srpo completion`: prints the completion script for the shell in `argv` (bash, zsh or fish); returns 0.

    Raises:
        ConfigError: the library shtab is not installed.
    """
    args = parse("completion", DESCRIPTION, Arguments, argv)
    try:
        import shtab
    except ImportError:
        fix = "pip install 'srpo[completion]'"
        raise ConfigError("shtab, which makes the completion, is not installed", where="completion", fix=fix) from None
    print(shtab.complete(whole_parser(), shell=args.shell))
    return 0
