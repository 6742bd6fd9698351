"""Shell completion: `_PREFETCH_CLI_COMPLETE=bash_source prefetch-cli` prints the script to source.

The variable follows click's convention, but the scripts are our own: click's do not complete
COMMAND or `--engine=sp`, and in zsh replace all of `--engine=sp` with `splice`.
"""

import sys
from collections.abc import Iterator, Sequence

from prefetch_cli.base.errors import UsageError
from prefetch_cli.base.text import printable
from prefetch_cli.cli.flags import FLAGS
from prefetch_cli.cli.types import Value
from prefetch_cli.show.streams import Stream

# Each script passes the words up to the cursor as arguments and reads lines of kind, value and
# help, separated by tabs. After `--` the shell completes COMMAND as if it stood alone. Errors go
# to /dev/null: they would land in the middle of the user's line.
_BASH = r"""_prefetch_cli() {
    local i kind value
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            if declare -F _comp_command_offset >/dev/null; then
                _comp_command_offset $((i + 1))
            elif declare -F _command_offset >/dev/null; then
                _command_offset $((i + 1))
            else
                compopt -o default
                ((COMP_CWORD > i + 1)) || mapfile -t COMPREPLY < <(compgen -c -- "$2")
            fi
            return
        fi
    done
    COMPREPLY=()
    while IFS=$'\t' read -r kind value _; do
        case $kind in
            word) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(_PREFETCH_CLI_COMPLETE=bash_complete "${1/#\~/$HOME}" \
        "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o nosort -F _prefetch_cli prefetch-cli prefetch-cli.pyz
"""

_ZSH = r"""#compdef prefetch-cli prefetch-cli.pyz
_prefetch_cli() {
    local -i dashes=${words[(ie)--]}
    if (( dashes < CURRENT )); then
        shift $dashes words
        (( CURRENT -= dashes ))
        _normal
        return
    fi
    local kind value text files
    local -a found
    _PREFETCH_CLI_COMPLETE=zsh_complete ${~words[1]} "${(@)words[2,CURRENT-1]}" "$PREFIX" \
        2>/dev/null | while IFS=$'\t' read -r kind value text; do
        case $kind in
            word) found+=("${value//:/\\:}${text:+:$text}") ;;
            file) files=_files ;;
            dir) files='_files -/' ;;
        esac
    done
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    if [[ -n $files ]]; then
        ${=files}
    else
        _describe -V prefetch-cli found
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _prefetch_cli "$@"
else
    compdef _prefetch_cli prefetch-cli prefetch-cli.pyz
fi
"""

_FISH = r"""function __prefetch_cli
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    if set -l dashes (contains -i -- -- $words)
        set -e words[1..$dashes]
        complete -C (string join ' ' -- (string escape -- $words) $current)
        return
    end
    set -l program (string replace -r '^~' $HOME $words[1])
    set -e words[1]
    env _PREFETCH_CLI_COMPLETE=fish_complete $program $words "$current" 2>/dev/null |
    while read -l -d \t kind value text
        set -l path (string replace -- "$value" '' "$current")
        switch $kind
            case word
                printf '%s\t%s\n' "$value" "$text"
            case file
                complete -C "__no_command $path" | string replace -r -- '^' "$value"
            case dir
                __fish_complete_directories "$path" | string replace -r -- '^' "$value"
        end
    end
end
complete -c prefetch-cli -f -a '(__prefetch_cli)'
complete -c prefetch-cli.pyz -f -a '(__prefetch_cli)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_Answer = tuple[str, str, str]  # kind, value, help


def answer(instruction: str, words: Sequence[str]) -> int:
    """Print the script of a shell, or the completions of the last of the words; return 0.

    Raises UsageError for an instruction that is neither.
    """
    shell, _, task = instruction.partition("_")
    output = Stream(sys.stdout)
    if shell in _SCRIPTS and task == "source":
        output.write(_SCRIPTS[shell])
    elif shell in _SCRIPTS and task == "complete":
        *before, current = words or [""]
        found = _completions(before, current, in_word=shell == "fish")
        output.write("".join("\t".join(part).rstrip("\t") + "\n" for part in found))
    else:
        expected = "bash_source, zsh_source or fish_source"
        raise UsageError(
            f"_PREFETCH_CLI_COMPLETE: expected {expected}, found {printable(instruction)!r}"
        )
    return 0


def _completions(before: list[str], current: str, *, in_word: bool) -> Iterator[_Answer]:
    """Yield what the current word can become; `in_word`: values repeat their `--option=`."""
    flags = {name: flag for flag in FLAGS for name in flag.names}
    if current == "=":  # bash makes three words of `--engine=sp`
        before, current = [*before, "="], ""
    if before[-1:] == ["="]:
        before = before[:-1]
    name, equals, value = current.partition("=")
    last = flags.get(before[-1]) if before else None
    if last is not None and last.value is not None:
        yield from _values(last.value, current)
    elif equals and name in flags:
        prefix = f"{name}=" if in_word else ""
        for kind, word, text in _values(flags[name].value, value):
            yield kind, prefix + word, text
    elif current.startswith("-"):
        for name, flag in flags.items():
            again = not flag.repeatable and not set(flag.names).isdisjoint(before)
            if name.startswith(current) and not again:
                yield "word", name, flag.help
    else:
        yield "file", "", ""


def _values(value: Value | None, current: str) -> Iterator[_Answer]:
    """Yield the words that begin like the current one, or the kind of path that is expected."""
    if value is None:
        return
    if value.paths:
        yield value.paths, "", ""
    yield from (("word", word, "") for word in value.words if word.startswith(current))
