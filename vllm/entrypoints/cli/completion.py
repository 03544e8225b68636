"""`vllm completion SHELL`: a script that completes commands, options and their values.

The script is made from the parsers, so that it knows what they know; it asks nothing while it completes.

    source <(vllm completion bash)          # or zsh
    vllm completion fish | source
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from vllm.entrypoints.cli import COMMANDS, command_parser

EPILOG = """to keep it:
  bash   vllm completion bash > ~/.local/share/bash-completion/completions/vllm
  zsh    vllm completion zsh > "${fpath[1]}/_vllm"
  fish   vllm completion fish > ~/.config/fish/completions/vllm.fish
"""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option: what it is called, and what may stand behind it."""

    name: str
    help: str
    values: tuple[str, ...] = ()
    takes_value: bool = False
    takes_file: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """What may be written after a command."""

    command: str
    help: str
    flags: list[Flag] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(_SCRIPTS), help="the shell that is to complete")


def run(options: argparse.Namespace) -> None:
    print(script(options.shell), end="")


def script(shell: str) -> str:
    """Return the script for a shell."""
    return _SCRIPTS[shell]([_words(name) for name in COMMANDS])


def _words(name: str) -> Words:
    parser, _ = command_parser(name)
    flags = []
    for flag, action in parser.flags().items():
        if action.help == argparse.SUPPRESS:
            continue
        values = tuple(map(str, action.choices or ()))
        takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
        text = (action.help or "").replace("%%", "%").split(";")[0].split(" (default")[0].rstrip(".")
        flags.append(Flag(flag, text, values, takes_value, takes_value and action.metavar == "FILE"))
    return Words(name, COMMANDS[name].help, flags)


def _bash(commands: list[Words]) -> str:
    cases = "\n".join(
        f'        "{one.command}") words="{" ".join(flag.name for flag in one.flags)}" ;;' for one in commands
    )
    return _BASH.format(
        first=" ".join(_first(commands)), groups=_bash_groups(commands), cases=cases, values=_bash_values(commands)
    )


def _bash_groups(commands: list[Words]) -> str:
    groups = {one.command.split()[0] for one in commands if " " in one.command}
    lines = []
    for group in sorted(groups):
        seconds = " ".join(one.command.split()[1] for one in commands if one.command.startswith(f"{group} "))
        lines.append(f'        {group}) seconds="{seconds}" ;;')
    return "\n".join(lines)


def _bash_values(commands: list[Words]) -> str:
    known: dict[str, Flag] = {flag.name: flag for one in commands for flag in one.flags if flag.values}
    return "\n".join(f'        {name}) values="{" ".join(flag.values)}" ;;' for name, flag in sorted(known.items()))


_BASH = """# Completes the vllm command in bash.
_vllm() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local command="${{COMP_WORDS[1]}}" words="" values="" seconds=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{first} --help --version" -- "$current"))
        return
    fi
    case "$command" in
{groups}
    esac
    if [ -n "$seconds" ]; then
        if [ "$COMP_CWORD" -eq 2 ]; then
            COMPREPLY=($(compgen -W "$seconds --help" -- "$current"))
            return
        fi
        command="$command ${{COMP_WORDS[2]}}"
    fi
    case "$previous" in
{values}
    esac
    if [ -n "$values" ]; then
        COMPREPLY=($(compgen -W "$values" -- "$current"))
        return
    fi
    case "$command" in
{cases}
    esac
    if [ "${{current:0:1}}" = "-" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    fi
}}
complete -o default -F _vllm vllm
"""


def _zsh(commands: list[Words]) -> str:
    lines = [
        "#compdef vllm",
        "# Completes the vllm command in zsh.",
        "_vllm() {",
        "  local -a commands",
        "  commands=(",
    ]
    lines += [f"    {_quoted(f'{name}:{text}')}" for name, text in _first(commands).items()]
    lines += ["  )", "  if (( CURRENT == 2 )); then", "    _describe command commands", "    return", "  fi"]
    lines += ['  local command="${words[2]}" given=2']
    for group in sorted({one.command.split()[0] for one in commands if " " in one.command}):
        members = [one for one in commands if one.command.startswith(f"{group} ")]
        lines += [f"  if [[ $command == {group} ]]; then", "    if (( CURRENT == 3 )); then", "      commands=("]
        lines += [f"        {_quoted(f'{one.command.split()[1]}:{one.help}')}" for one in members]
        lines += ["      )", "      _describe command commands", "      return", "    fi"]
        lines += ['    command="$command ${words[3]}" given=3', "  fi"]
    lines += ["  shift $(( given - 1 )) words", "  (( CURRENT -= given - 1 ))", '  case "$command" in']
    for one in commands:
        lines += [f"    ({_quoted(one.command)})", "      _arguments \\"]
        lines += [f"        {_quoted(_zsh_flag(flag))} \\" for flag in one.flags]
        lines += ["        '*:file:_files' ;;"]
    lines += ["  esac", "}", 'if [ "$funcstack[1]" = "_vllm" ]; then _vllm "$@"; else compdef _vllm vllm; fi']
    return "\n".join(lines) + "\n"


def _zsh_flag(flag: Flag) -> str:
    text = flag.help.replace("[", "(").replace("]", ")").replace(":", " ")
    spec = f"{flag.name}[{text}]"
    if flag.values:
        return f"{spec}:value:({' '.join(flag.values)})"
    if flag.takes_value:
        return f"{spec}:value:{'_files' if flag.takes_file else ' '}"
    return spec


def _fish(commands: list[Words]) -> str:
    lines = ["# Completes the vllm command in fish.", "complete -c vllm -f"]
    for name, text in _first(commands).items():
        lines.append(f"complete -c vllm -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
    for one in commands:
        parts = one.command.split()
        condition = f"__fish_seen_subcommand_from {parts[0]}"
        if len(parts) > 1:
            siblings = " ".join(
                other.command.split()[1] for other in commands if other.command.startswith(f"{parts[0]} ")
            )
            unseen = f"{condition}; and not __fish_seen_subcommand_from {siblings}"
            lines.append(f"complete -c vllm -n {_quoted(unseen)} -a {parts[1]} -d {_quoted(one.help)}")
            condition += f"; and __fish_seen_subcommand_from {parts[1]}"
        elif any(other.command.endswith(f" {parts[0]}") for other in commands):  # `serve` is also a word of `bench`
            others = " ".join(other.command.split()[0] for other in commands if other.command.endswith(f" {parts[0]}"))
            condition += f"; and not __fish_seen_subcommand_from {others}"
        for flag in one.flags:
            line = f"complete -c vllm -n {_quoted(condition)} -l {flag.name.removeprefix('--')} -d {_quoted(flag.help)}"
            if flag.values:
                line += f" -x -a {_quoted(' '.join(flag.values))}"
            elif flag.takes_value:
                line += " -r -F" if flag.takes_file else " -x"
            lines.append(line)
    return "\n".join(lines) + "\n"


def _first(commands: list[Words]) -> dict[str, str]:
    """The first words of commands, with their help."""
    words: dict[str, str] = {}
    for one in commands:
        first = one.command.split()[0]
        words.setdefault(first, one.help if first == one.command else f"{one.help}, and more")
    return words


def _quoted(text: str) -> str:
    """For any of the shells: in single quotes, with no other quote inside."""
    return "'" + text.replace("'", "’").replace("\n", " ") + "'"


_SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
